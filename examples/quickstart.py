"""A JAX function with its weights, optimized at its first call, and what nestegg did with it.

python examples/quickstart.py
"""

import jax
import jax.numpy as jnp
import numpy as np

import nestegg

rng = np.random.default_rng(0)
W1 = rng.standard_normal((256, 128)).astype(np.float32) / 16
W2 = rng.standard_normal((128, 10)).astype(np.float32) / 11
BIAS = rng.standard_normal(128).astype(np.float32)


def model(x: jax.Array) -> jax.Array:
    """Class scores of 32 rows."""
    return jnp.maximum(x @ W1 + BIAS, 0) @ W2


@nestegg.jit
def fast(x: jax.Array) -> jax.Array:
    """The same; compiled when it is first called with arguments of new shapes or dtypes."""
    return model(x)


if __name__ == "__main__":
    x = jnp.asarray(rng.standard_normal((32, 256)), jnp.float32)
    difference = jnp.abs(fast(x) - jax.jit(model)(x)).max()
    print(f"largest difference from jax.jit: {difference:.1e}")

    compiled = nestegg.optimize(model, x)
    print(compiled.verify())
    for kernel in compiled.report().to_json()["kernels"]:
        print(f"\n{kernel['name']}: {kernel['expression']}")
        print(f"chosen among {kernel['programs']:,} loop nests, {kernel['predicted_us']:.1f} us predicted:")
        print(kernel["schedule"])
