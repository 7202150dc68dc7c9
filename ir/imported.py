"""What a front end returns: the graph, and how a caller's arguments and results relate to its inputs and
outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from .errors import CallError
from .graph import Graph


@dataclass(frozen=True, eq=False)
class ImportedProgram:
    """A program read by a front end.

    `input_names` and `output_names` are in the order of `graph.inputs` and `graph.outputs`. `in_tree` and
    `out_tree` are the pytree structures of the arguments (as one tuple) and of the result; None stands for
    flat arrays (ONNX). `function` is the JAX function it was read from, if it was.
    """

    graph: Graph
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    in_tree: Any = None
    out_tree: Any = None
    source: str = ""
    function: Callable[..., Any] | None = None

    @cached_property
    def takes_arrays(self) -> bool:
        """Whether the arguments are the graph's inputs themselves, in order."""
        if self.in_tree is None:
            return True
        import jax

        return self.in_tree == jax.tree.structure((0,) * len(self.input_names))

    @cached_property
    def returns(self) -> Literal["array", "tuple", "tree"]:
        """What the result is: the only output, the tuple of the outputs, or another pytree of them."""
        count = len(self.output_names)
        if self.out_tree is None:
            return "array" if count == 1 else "tuple"
        import jax

        if self.out_tree == jax.tree.structure(0):
            return "array"
        return "tuple" if self.out_tree == jax.tree.structure((0,) * count) else "tree"

    def flatten(self, *args: Any) -> list[Any]:
        """The graph's inputs from call arguments. Raises `CallError` if they are structured otherwise."""
        if self.in_tree is None:
            if len(args) != len(self.input_names):
                names = ", ".join(self.input_names)
                raise CallError(
                    f"{self.source}: {len(args)} arguments given; it takes {len(self.input_names)} ({names})"
                )
            return list(args)
        import jax

        leaves, tree = jax.tree.flatten(args)
        if tree != self.in_tree:
            raise CallError(
                f"{self.source}: arguments of structure {tree} given; it was optimized for {self.in_tree}"
            )
        return leaves

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The result as the original program returns it: its pytree, or one array or a tuple of arrays
        (ONNX).
        """
        if self.out_tree is None:
            return outputs[0] if len(outputs) == 1 else tuple(outputs)
        import jax

        return jax.tree.unflatten(self.out_tree, outputs)
