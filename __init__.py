"""nestegg: a tensor and loop-program optimizer built on equality saturation.

    compiled = nestegg.optimize(fn, *example_args)      # a JAX function, an .onnx file, or "zoo:dqn"
    compiled(*args); compiled.report(); compiled.verify()

Everything else is reached through its room: `nestegg.ir`, `rewrite`, `extract`, `codegen`, `vta`, `costmodel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .calibration import calibrate
    from .compiler import Compiled, Options, jit, optimize
    from .ir.calibration import Ranges
    from .ir.errors import NesteggError
    from .rewrite.loop_language import loop_rule
    from .rewrite.pattern import op
    from .rewrite.rule import equation, load_rules, rule

#: Public name -> the module that defines it; loaded when first used, so that importing nestegg is quick.
_PUBLIC = {
    # compiling
    "optimize": "compiler",
    "jit": "compiler",
    "Compiled": "compiler",
    "Options": "compiler",
    # quantization
    "calibrate": "calibration",
    "Ranges": "ir.calibration",
    # writing rules
    "rule": "rewrite.rule",
    "equation": "rewrite.rule",
    "loop_rule": "rewrite.loop_language",
    "load_rules": "rewrite.rule",
    "op": "rewrite.pattern",
    # errors
    "NesteggError": "ir.errors",
}

# Spelled out, not from _PUBLIC: type checkers read it.
__all__ = [
    "Compiled",
    "NesteggError",
    "Options",
    "Ranges",
    "__version__",
    "calibrate",
    "equation",
    "jit",
    "load_rules",
    "loop_rule",
    "op",
    "optimize",
    "rule",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nestegg' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
