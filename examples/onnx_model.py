"""An ONNX file in, a callable out; written first by the model zoo, so that the example stands alone.

python examples/onnx_model.py [FILE.onnx]
"""

import sys
import tempfile
from pathlib import Path

import nestegg
from nestegg.ir import zoo


def main(file: Path) -> None:
    """Optimize a model file, verify it, and run it on random inputs."""
    compiled = nestegg.optimize(file)
    print(f"{file.name}: {compiled.verify()}")
    inputs = compiled.example_inputs(seed=1)
    outputs = compiled(*inputs)
    print("outputs:", outputs.shape if hasattr(outputs, "shape") else [o.shape for o in outputs])
    print(compiled.program)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder) / "lenet.onnx"
            zoo.write("lenet", where)
            main(where)
