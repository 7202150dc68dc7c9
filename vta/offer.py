"""What the accelerator offers for one kernel of the graph: a price in cycles and a program, or a reason why not.

This is all that a partition between the CPU and the accelerator needs to know. Prices come in two steps, as those of
the CPU do (`extract/choose.py`): a lower bound at once, and the timing model's cycles when the schedule is searched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..ir.expr import TensorExpr
from .choose import EFFORT, Tilings
from .config import DEFAULT, Config
from .errors import ProgramError
from .lower import CompiledKernel, bound, compile_work
from .recognise import Unsuitable, Work, recognise
from .timing import SIM, Board


@dataclass(frozen=True, eq=False)
class Offer:
    """`reason`: why the accelerator cannot compute the kernel, "" if it can; only then the rest has values.

    `narrow`: as it was asked for. `bound`: cycles below which no program of it stays. `kernel`, `cycles`: its program
    and what the timing model says of it; the schedule is searched when one of them is asked for.
    """

    expr: TensorExpr
    constants: Mapping[int, NDArray[np.integer]]
    config: Config = DEFAULT
    board: Board = SIM
    effort: int = EFFORT
    reason: str = ""
    work: Work | None = None
    bound: int = 0
    narrow: tuple[int, ...] = ()
    tilings: Tilings | None = None
    _failed: list[str] = field(default_factory=list, repr=False)

    @cached_property
    def kernel(self) -> CompiledKernel | None:
        """The compiled kernel: `program`, `emit`, `report` and so on; None if there is none, which `why_not` explains
        (a kernel may turn out not to fit the accelerator's buffers when its schedules are searched)."""
        if self.work is None:
            return None
        try:
            known = self.work, self.expr, self.constants
            return compile_work(*known, self.config, self.board, self.effort, self.tilings)
        except ProgramError as e:
            self._failed.append(str(e))
            return None

    @property
    def why_not(self) -> str:
        """The reason, that of a failed search included."""
        return self.reason or next(iter(self._failed), "")

    @property
    def cycles(self) -> float:
        """Cycles of the timing model, infinite without a program."""
        return self.kernel.cycles if self.kernel is not None else float("inf")

    @property
    def seconds(self) -> float:
        """The same at the board's clock."""
        return self.cycles / self.board.mhz / 1e6


def offer(
    expr: TensorExpr,
    constants: Mapping[int, NDArray[np.integer]] | None = None,
    config: Config = DEFAULT,
    board: Board = SIM,
    effort: int = EFFORT,
    narrow: Collection[int] = (),
    tilings: Tilings | None = None,
) -> Offer:
    """The accelerator's offer for a kernel, given by its tensor expression. `constants`: the arrays of known inputs;
    `narrow`: inputs of a wider type whose values fit the accelerator's inputs, as the results of any offer do.
    `tilings`: schedules that were found before.

    Never raises for a kernel that does not suit: `reason` says so.
    """
    known = constants or {}
    try:
        work = recognise(expr, config, known, narrow)
        least = bound(work, config)
    except Unsuitable as e:
        return Offer(expr, known, config, board, effort, str(e))
    return Offer(expr, known, config, board, effort, "", work, least, tuple(sorted(narrow)), tilings)
