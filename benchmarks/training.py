"""The training data of the learned cost model, and the model: measurements over kernels that no benchmark uses.

    python benchmarks/training.py collect [--log FILE] [--seconds 300]     measure; go on where it stopped
    python benchmarks/training.py refine [--log FILE] [--seconds 300]      measure what matters again, interleaved
    python benchmarks/training.py validate [--log FILE]                    cross-validation: what fit.py's constants do
    python benchmarks/training.py fit [--log FILE]                         train, write costmodel/weights/

The family: matrix products, convolutions (with bias, residual or pooling), depthwise and grouped convolutions, chains
of elementwise operators, reductions, softmaxes, norms and transposes, of sizes drawn with a fixed seed. The costliest
kernels that the compiler makes of each are measured, in whatever layout they are, without those of the benchmarks' held
out cases (`data/held_out.txt`). Of each kernel about sixty nests: the roofline's best, ones drawn near them, and ones
drawn uniformly. One thread.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

if TYPE_CHECKING:
    import numpy as np

    from nestegg.costmodel.fit import Samples
    from nestegg.costmodel.log import Trial
    from nestegg.ir.loops import Lowered
    from nestegg.ir.nest import Nest

LOG = Path(__file__).parent / "data" / "training.sqlite"
#: Of the nests of a kernel: how many are the roofline's best, and drawn at which temperatures.
BEST, DRAWN = 16, ((0.03, 12), (0.15, 16), (0.6, 12), (1e9, 4))
#: Kernels measured of one workload, costliest first, and the time one of them may take under the model.
KERNELS, LONGEST = 2, 3e-3

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Log = Annotated[Path, typer.Option("--log", help="the SQLite file")]


# --- the family ---------------------------------------------------------------------------------------------------


def workloads() -> Iterator[tuple[str, Callable[..., Any], tuple[np.ndarray, ...]]]:
    """Name, JAX function, example arguments: without end, the same on every run."""
    import numpy as np

    rng = np.random.default_rng(20)
    makers = (_matmul, _convolution, _depthwise, _elementwise, _matmul, _reduction, _convolution, _norm, _pointwise)
    for number in range(10**6):
        maker = makers[number % len(makers)]
        name, fn, args = maker(rng)
        yield f"{number}:{maker.__name__[1:]} {name}", fn, args


def _array(rng: np.random.Generator, *shape: int) -> np.ndarray:
    import numpy as np

    return (rng.standard_normal(shape) / 8).astype(np.float32)


def _size(rng: np.random.Generator, low: int, high: int) -> int:
    """An extent: mostly round, sometimes not; geometric between the limits."""
    import numpy as np

    n = int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
    step = int(rng.choice([1, 4, 8, 16, 32]))
    return max(low, n // step * step)


def _activation(rng: np.random.Generator) -> Callable[[Any], Any]:
    import jax
    import jax.numpy as jnp

    functions = (lambda y: y, jax.nn.relu, jnp.tanh, jax.nn.gelu, jax.nn.sigmoid)
    return functions[int(rng.choice(5, p=[0.4, 0.3, 0.1, 0.1, 0.1]))]


def _matmul(rng: np.random.Generator) -> Any:
    m, k, n = (_size(rng, 1 if rng.random() < 0.2 else 12, 900) for _ in range(3))
    w, b, act = _array(rng, k, n), _array(rng, n), _activation(rng)
    biased = rng.random() < 0.5
    return f"{m}x{k}x{n}", lambda x: act(x @ w + b if biased else x @ w), (_array(rng, m, k),)


def _convolution(rng: np.random.Generator) -> Any:
    import jax
    import jax.numpy as jnp

    extent, inputs, outputs = _size(rng, 6, 72), _size(rng, 3, 320), _size(rng, 8, 320)
    kernel, stride = int(rng.choice([1, 3, 3, 5])), int(rng.choice([1, 1, 2]))
    while extent**2 * inputs * outputs * kernel**2 / stride**2 > 1.2e8:
        inputs, outputs = max(3, inputs // 2), max(8, outputs // 2)
    w, b, act = _array(rng, outputs, inputs, kernel, kernel), _array(rng, 1, outputs, 1, 1), _activation(rng)
    pad = kernel // 2

    def fn(x: Any) -> Any:
        return act(jax.lax.conv_general_dilated(x, jnp.asarray(w), (stride, stride), ((pad, pad), (pad, pad))) + b)

    return f"{extent}x{inputs}x{outputs} {kernel}/{stride}", fn, (_array(rng, 1, inputs, extent, extent),)


def _depthwise(rng: np.random.Generator) -> Any:
    import jax
    import jax.numpy as jnp

    extent, channels = _size(rng, 6, 96), _size(rng, 8, 768)
    kernel, stride = int(rng.choice([3, 3, 5])), int(rng.choice([1, 1, 2]))
    while extent**2 * channels > 1.2e6:
        channels //= 2
    w, b, act = _array(rng, channels, 1, kernel, kernel), _array(rng, 1, channels, 1, 1), _activation(rng)
    pad = kernel // 2

    def fn(x: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x, jnp.asarray(w), (stride, stride), ((pad, pad), (pad, pad)), feature_group_count=channels
        )
        return act(y + b)

    return f"{extent}x{channels} {kernel}/{stride}", fn, (_array(rng, 1, channels, extent, extent),)


def _elementwise(rng: np.random.Generator) -> Any:
    import jax.numpy as jnp

    m, n = _size(rng, 1, 1500), _size(rng, 16, 1500)
    act, kind = _activation(rng), int(rng.integers(4))
    fns = (lambda x, y: act(x * y + x), lambda x, y: act(x + y[:1]), lambda x, y: act(x.T) * 2.0,
           lambda x, y: jnp.maximum(x - y, 0.0) * jnp.minimum(x, y))  # fmt: skip
    return f"{m}x{n} kind {kind}", fns[kind], (_array(rng, m, n), _array(rng, m, n))


def _reduction(rng: np.random.Generator) -> Any:
    import jax.numpy as jnp

    m, n, axis = _size(rng, 4, 1500), _size(rng, 4, 1500), int(rng.integers(2))
    how = (jnp.sum, jnp.max, jnp.mean, lambda x, axis: jnp.sum(jnp.exp(x), axis))[int(rng.integers(4))]
    return f"{m}x{n} over {axis}", lambda x: how(x, axis=axis), (_array(rng, m, n),)


def _norm(rng: np.random.Generator) -> Any:
    import jax

    m, n, kind = _size(rng, 8, 900), _size(rng, 24, 1200), int(rng.integers(3))
    g, b = _array(rng, n), _array(rng, n)

    def layer_norm(x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * g + b

    def rms_norm(x: Any) -> Any:
        return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * g

    fn = (layer_norm, lambda x: jax.nn.softmax(x, axis=-1), rms_norm)[kind]
    return f"{m}x{n} kind {kind}", fn, (_array(rng, m, n),)


def _pointwise(rng: np.random.Generator) -> Any:
    import jax
    import jax.numpy as jnp

    extent, inputs, outputs = _size(rng, 5, 40), _size(rng, 16, 400), _size(rng, 16, 400)
    w, b = _array(rng, outputs, inputs, 1, 1), _array(rng, 1, outputs, 1, 1)

    def fn(x: Any, skip: Any) -> Any:
        return jax.nn.relu(jax.lax.conv_general_dilated(x, jnp.asarray(w), (1, 1), "VALID") + b + skip)

    arguments = _array(rng, 1, inputs, extent, extent), _array(rng, 1, outputs, extent, extent)
    return f"{extent}x{inputs}x{outputs}", fn, arguments


# --- collecting ---------------------------------------------------------------------------------------------------


def held_out() -> set[str]:
    """Digests of the kernels of the benchmark's cases, of which `costmodel.py` keeps the list."""
    path = Path(__file__).parent / "data" / "held_out.txt"
    return {line.split()[0] for line in path.read_text().splitlines() if line} if path.exists() else set()


def nests_of(kernel: Lowered, seed: int) -> list[Nest]:
    """The nests of a kernel that are measured, each once."""
    import numpy as np

    from nestegg.costmodel.roofline import Roofline
    from nestegg.extract.beam import swept
    from nestegg.extract.sampling import Sampler
    from nestegg.ir.target import host
    from nestegg.rewrite.loop_egraph import build

    egraph = build(kernel, host(), 1)
    sweep, rng = swept(egraph, Roofline(host()), width=BEST), np.random.default_rng(seed)
    sampler = Sampler(sweep)
    drawn = [sampler.draw(rng, t) for t, count in DRAWN for _ in range(count)]
    uniform = [n for _ in range(4) if (n := egraph.sample(rng)) is not None]
    return list(dict.fromkeys([*(s.nest for s in sweep.best(egraph.root)), *drawn, *uniform]))


@app.command()
def collect(log: Log = LOG, seconds: float = 300.0, place: int = 0, places: int = 1) -> None:
    """Measure kernels of the family until the time is over; what the log holds already is not measured again.

    Several processes (`places`) may share the work, each with its `place`, on a CPU of its own.
    """
    begun = time.monotonic()
    import nestegg
    from nestegg.costmodel.log import TuningLog
    from nestegg.costmodel.roofline import Roofline
    from nestegg.costmodel.worker import Effort, Worker
    from nestegg.ir.errors import NesteggError
    from nestegg.ir.records import digest
    from nestegg.ir.target import host

    progress = log.with_suffix(f".done{place}")
    done = int(progress.read_text()) if progress.exists() else 0
    excluded = held_out()
    with TuningLog(log) as store, Worker(host(), 1, place) as worker:
        for number, (name, fn, args) in enumerate(workloads()):
            if number < done or number % places != place:
                continue
            if time.monotonic() - begun > seconds:
                return
            try:
                compiled = nestegg.optimize(fn, *args, threads=1, cost_model="roofline")
            except NesteggError as e:
                print(f"{name}: {e}", file=sys.stderr)
                continue
            rows = zip(compiled.program.calls, compiled.found["kernels"], strict=True)
            sized = [c for c, row in rows if c.seconds < LONGEST and row["programs"] > 200]
            wanted = [c.kernel for c in sorted(sized, key=lambda c: -c.seconds) if digest(c.kernel) not in excluded]
            for kernel in wanted[:KERNELS]:
                if len(store.trials(kernel, host(), 1)) > 20:
                    continue
                nests = nests_of(kernel, number)
                give_up = 15 * Roofline(host()).bound(kernel) + 1e-3
                trials = worker.measure(kernel, nests, Effort(samples=6, min_sample=0.001, limit=5.0, give_up=give_up))
                for t in trials:
                    store.add(kernel, host(), 1, t)
                behind = trials[0].seconds / min(t.seconds for t in trials)
                print(f"{name}: {len(trials)} nests, the roofline's {behind:.2f} of the best", flush=True)
            progress.write_text(str(number + 1))


#: Measured again: the fastest of the log, the roofline's best as it is now, some drawn near them; and how often.
FASTEST, ANEW, NEAR, ROUNDS = 14, 12, (0.06, 6), 3


@app.command()
def refine(log: Log = LOG, seconds: float = 300.0) -> None:
    """Measure the nests that matter of every kernel of the log again, in interleaved rounds; the fastest time counts.

    A single measurement may have met somebody else's work, and the roofline's best change when the roofline does.
    """
    begun = time.monotonic()
    from nestegg.costmodel.log import TuningLog
    from nestegg.costmodel.worker import Effort, Worker
    from nestegg.ir.records import digest
    from nestegg.ir.target import host

    progress = log.with_suffix(".refined")
    done = set(progress.read_text().split()) if progress.exists() else set()
    with TuningLog(log) as store, Worker(host(), 1) as worker:
        todo = [(k, t) for k, t in store.everything(host(), 1).items() if digest(k) not in done]
        for number, (kernel, trials) in enumerate(todo):
            if time.monotonic() - begun > seconds:
                print(f"the time is over; {len(todo) - number} kernels are left", flush=True)
                return
            best = min(t.seconds for t in trials)
            effort = Effort(samples=3, min_sample=0.001, limit=5.0, give_up=4 * best)
            nests = _that_matter(kernel, [t for t in trials if t.ok])
            for _ in range(ROUNDS):
                for t in worker.measure(kernel, nests, effort):
                    store.add(kernel, host(), 1, t)
            with progress.open("a") as file:
                file.write(digest(kernel) + "\n")


def _that_matter(kernel: Lowered, trials: list[Trial]) -> list[Nest]:
    import numpy as np

    from nestegg.costmodel.roofline import Roofline
    from nestegg.extract.beam import swept
    from nestegg.extract.sampling import Sampler
    from nestegg.ir.target import host
    from nestegg.rewrite.loop_egraph import build

    egraph = build(kernel, host(), 1)
    sweep, rng = swept(egraph, Roofline(host()), width=ANEW), np.random.default_rng(0)
    sampler, (temperature, count) = Sampler(sweep), NEAR
    fastest = sorted(trials, key=lambda t: t.seconds)[:FASTEST]
    drawn = [sampler.draw(rng, temperature) for _ in range(count)]
    return list(dict.fromkeys([*(t.nest for t in fastest), *(s.nest for s in sweep.best(egraph.root)), *drawn]))


# --- training -----------------------------------------------------------------------------------------------------


@app.command()
def fit(log: Log = LOG, output: Path | None = None) -> None:
    """Train the ensemble on the log's kernels, without the held-out ones, and write its weights."""
    from nestegg.costmodel import mlp
    from nestegg.costmodel.fit import fit as train
    from nestegg.costmodel.fit import shrunk
    from nestegg.ir.target import host

    data = family(log)
    begun = time.monotonic()
    trained = shrunk(train(list(data.values())))
    where = output or mlp.SHIPPED
    trained.save(where)
    nests = sum(len(s.measured) for s in data.values())
    print(f"{where}: {nests} nests of {len(data)} kernels on {host().cpu}, {time.monotonic() - begun:.0f} s")


#: Cross-validation: parts of the family, each predicted by an ensemble that was trained on the others.
FOLDS = 4


@app.command()
def validate(log: Log = LOG) -> None:
    """Regret and losses of picks among the nests of kernels of the family that the ensemble was not trained on.

    Of each share of the correction: the geometric mean of the pick's time over the best's; then of the roofline's pick
    over the model's (above 1: faster), and over the guarded one's, with the worst kernel's.
    """
    import numpy as np

    from nestegg.costmodel.fit import fit as train
    from nestegg.costmodel.fit import shrunk
    from nestegg.costmodel.pick import guarded

    data = list(family(log).values())
    fold = np.random.default_rng(7).permutation(len(data)) % FOLDS
    ensembles = [train([s for s, k in zip(data, fold, strict=True) if k != q]) for q in range(FOLDS)]

    def row(name: str, gains: list[float], regrets: list[float]) -> str:
        mean, worst = np.exp(np.mean(gains)), np.exp(np.min(gains))
        changed = sum(abs(g) > 1e-6 for g in gains)
        return f"{name:28} regret {np.exp(np.mean(regrets)):.4f}  gain {mean:.4f}  worst {worst:.2f}  changed {changed}"

    print(f"{len(data)} kernels, {FOLDS} folds")
    for share in (0.0, 0.1, 0.15, 0.25, 0.5, 1.0):
        plain, careful = ([], []), ([], [])
        for s, k in zip(data, fold, strict=True):
            ensemble, order = shrunk(ensembles[k], share), np.argsort(s.prior, kind="stable")
            features, prior, measured = s.features[order], s.prior[order], s.measured[order]
            best = int((prior + ensemble.correction(features)[0]).argmin())
            picks = best, guarded(ensemble, features, np.exp(prior))[0]
            for (gains, regrets), pick in zip((plain, careful), picks, strict=True):
                gains.append(float(measured[0] - measured[pick]))
                regrets.append(float(measured[pick] - measured.min()))
        print(row(f"share {share:g}", *plain))
        print(row(f"share {share:g}, guarded", *careful))


def family(log: Path) -> dict[Lowered, Samples]:
    """The samples of the log's kernels that no benchmark holds, and that take longer than their call."""
    from nestegg.costmodel.fit import samples
    from nestegg.costmodel.log import TuningLog
    from nestegg.costmodel.pick import SHORTEST
    from nestegg.ir.records import digest
    from nestegg.ir.target import host

    excluded = held_out()
    with TuningLog(log) as store:
        found = store.everything(host(), 1)
        for line in store.refused:
            print(line, file=sys.stderr)
    return {
        k: samples(k, trials, host(), 1)
        for k, trials in found.items()
        if digest(k) not in excluded and sum(t.ok for t in trials) > 8 and min(t.seconds for t in trials) > SHORTEST
    }


if __name__ == "__main__":
    app()
