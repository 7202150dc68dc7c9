"""What a MODEL on the command line names: an .onnx file, zoo:NAME, or package.module:factory."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ir.errors import ImportFailure, NesteggError

if TYPE_CHECKING:
    from .ir.imported import ImportedProgram


def imported_model(model: str, shapes: dict[str, tuple[int, ...]]) -> ImportedProgram:
    """The graph of what MODEL names. Raises `ImportFailure` if it names nothing."""
    from .compiler import import_program

    if model.startswith("zoo:") or model.endswith(".onnx") or Path(model).is_file():
        return import_program(model, shapes=shapes)
    module, found, factory = model.partition(":")
    if not found:
        raise ImportFailure(f"{model}: no such model; give an .onnx file, zoo:NAME or package.module:factory")
    fn, example_args = _call_factory(module, factory)
    return import_program(fn, *example_args, shapes=shapes)


def _call_factory(module: str, name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    where = f"{module}:{name}"
    sys.path.insert(0, os.getcwd())  # as `python -m` does: the user's modules lie here
    try:
        made = getattr(importlib.import_module(module), name)()
    except NesteggError:
        raise
    except Exception as e:
        advice = "give a callable that returns (fn, example_args)"
        raise ImportFailure(f"{where}: {type(e).__name__}: {e}; {advice}") from e
    match made:
        case (fn, tuple() | list() as example_args) if callable(fn):
            return fn, tuple(example_args)
    raise ImportFailure(
        f"{where}: gives {type(made).__name__}; let it return (fn, example_args), a function and a tuple"
    )
