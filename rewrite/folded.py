"""Values of compile-time tensors inside the e-graph: how they are made, and the arrays themselves when a rule asks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..ir.attrs import Attrs
from ..ir.reference import fold


@dataclass(frozen=True, eq=False)
class Folded:
    """A constant of the graph (`given`), or an operator on such; computed when first asked for, and kept."""

    op: str = ""
    attrs: Attrs | None = None
    args: tuple[Folded, ...] = ()
    given: np.ndarray | None = None

    @cached_property
    def array(self) -> np.ndarray:
        if self.given is not None:
            return self.given
        assert self.attrs is not None
        return fold(self.op, [a.array for a in self.args], self.attrs)
