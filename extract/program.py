"""The 0/1 program of one piece in HiGHS: building it, the LP rounds that find cuts, and the MIP
rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import highspy
import numpy as np
import numpy.typing as npt

from .flat import Int32Array
from .greedy import LocalSearch, greedy_choice
from .part import Cut, Part, violated_cuts
from .result import restrict, validate
from .tree import dearest_path

_REPAIR_SHARE = 0.1
_MAX_LP_ROUNDS = 400
_PATIENCE = 60
"""LP rounds after which a hundredth of the gap must be gone."""
_GAP = 1e-9
_FAVOUR = 1e-3

Row = tuple[list[int], list[float], float, float]
"""Columns, coefficients, lower and upper bound."""


class Program:
    """Columns: `x[n]` for each node, then `z[c]` for each class. Then `choice` (None if nothing was found),
    `cost`, `bound` and `limit` ("time" if the search was cut short)."""

    def __init__(self, part: Part, limits: Sequence[float] = (), cuts: Sequence[Cut] = ()) -> None:
        self.part, self.limits = part, limits
        self.choice: Int32Array | None = None
        self.cost = math.inf
        self.bound = dearest_path(part.egraph)
        self.limit = ""
        self.cuts = list(cuts)
        largest = float(part.egraph.node_cost.max(initial=0.0))
        # Solver tolerances are absolute: costs of 1e-9 would all look like 0.
        whole = bool(np.all(part.egraph.node_cost == np.round(part.egraph.node_cost)))
        self.scale = 1.0 if largest == 0.0 or (whole and largest < 1e6) else 100.0 / largest
        self.rows = self._base_rows()

    def relax(self, deadline: float, starts: Sequence[Int32Array]) -> None:
        """Take the best of `starts`, then a bound from the LP, with the cuts that it breaks."""
        for start in starts:
            self.offer(start)
        self._cut_lp(deadline)

    def search(self, deadline: float) -> None:
        """MIP after MIP, each with the cuts that the one before broke, until one breaks none or
        `deadline` (`time.perf_counter`). May be called again with more time."""
        self.limit = ""
        while not self.limit and not self.closed:
            point = self._run_mip(deadline)
            if point is None:
                return
            cuts = violated_cuts(self.part, np.round(point))
            if not cuts:
                self.offer(self._program_of(point))
                return
            self.cuts += cuts
            self._repair(point, deadline)

    @property
    def closed(self) -> bool:
        """Whether `choice` is proved to be the best."""
        return self.bound >= self.cost - _GAP * (1.0 + abs(self.cost))

    # Programs

    def offer(self, choice: Int32Array) -> None:
        """Keep `choice` if it is valid, within the budgets and cheaper than the best so far."""
        egraph = self.part.egraph
        kept = restrict(egraph, choice)
        nodes = kept[kept >= 0]
        cost = float(egraph.node_cost[nodes].sum())
        spent = self.part.weights[:, nodes].sum(axis=1)
        within = all(
            used <= cap + _GAP * (1 + abs(cap)) for used, cap in zip(spent, self.limits, strict=True)
        )
        if cost < self.cost and within and validate(egraph, kept):
            self.choice, self.cost = kept, cost

    def _program_of(self, point: npt.NDArray[np.float64]) -> Int32Array:
        choice = np.full(self.part.egraph.n_classes, -1, np.int32)
        nodes = np.flatnonzero(point > 0.5)
        choice[self.part.egraph.node_class[nodes]] = nodes
        return choice

    def _repair(self, point: npt.NDArray[np.float64], deadline: float) -> None:
        """Make a program of a point with cycles or fractions: greedy, what the point likes being nearly
        free."""
        egraph = self.part.egraph
        costs = egraph.node_cost * (1.0 + _FAVOUR - np.clip(point, 0.0, 1.0))
        choice = greedy_choice(egraph, costs.tolist())
        self.offer(choice)
        now = time.perf_counter()
        self.offer(LocalSearch(egraph, choice).run(now + _REPAIR_SHARE * max(0.0, deadline - now)))

    # Rows

    def _base_rows(self) -> list[Row]:
        egraph, n = self.part.egraph, self.part.egraph.n_nodes
        rows: list[Row] = []
        for cls in range(egraph.n_classes):
            nodes = egraph.nodes_of(cls).tolist()
            rows.append(([*nodes, n + cls], [1.0] * len(nodes) + [-1.0], 0.0, 0.0))
            needs: dict[int, list[int]] = {}
            for node in nodes:
                for kid in egraph.child_sets[node]:
                    needs.setdefault(kid, []).append(node)
            for kid, wanting in needs.items():
                rows.append(([*wanting, n + kid], [1.0] * len(wanting) + [-1.0], -math.inf, 0.0))
        for weights, cap in zip(self.part.weights, self.limits, strict=True):
            used = np.flatnonzero(weights)
            rows.append((used.tolist(), weights[used].tolist(), -math.inf, cap))
        return rows

    def _cut_row(self, cut: Cut) -> Row:
        head, loop = cut
        exits = self.part.exits(loop)
        columns = [*exits, self.part.egraph.n_nodes + head]
        return columns, [1.0] * len(exits) + [-1.0], 0.0, math.inf

    def _highs(self, integral: bool) -> highspy.Highs:
        egraph, rows = self.part.egraph, [*self.rows, *map(self._cut_row, self.cuts)]
        n, columns = egraph.n_nodes, egraph.n_nodes + egraph.n_classes
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = columns, len(rows)
        lp.col_cost_ = np.concatenate([egraph.node_cost * self.scale, np.zeros(egraph.n_classes)])
        lower = np.zeros(columns)
        lower[[n + root for root in egraph.roots]] = 1.0
        lp.col_lower_, lp.col_upper_ = lower, np.ones(columns)
        lp.row_lower_ = np.array([row[2] for row in rows])
        lp.row_upper_ = np.array([row[3] for row in rows])
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.cumsum([0] + [len(row[0]) for row in rows]).astype(np.int32)
        lp.a_matrix_.index_ = np.array([c for row in rows for c in row[0]], np.int32)
        lp.a_matrix_.value_ = np.array([v for row in rows for v in row[1]], np.float64)
        if integral:
            kinds = (highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous)
            lp.integrality_ = [kinds[0]] * n + [kinds[1]] * egraph.n_classes
        highs = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
            highs.setOptionValue(option, value)
        highs.passModel(lp)
        return highs

    # Solves

    def _cut_lp(self, deadline: float) -> None:
        """Solve the LP, add the cuts it breaks, and again, until it breaks none or gains little."""
        highs = self._highs(integral=False)
        n, point, before = self.part.egraph.n_nodes, None, self.bound
        for number in range(1, _MAX_LP_ROUNDS + 1):
            left = deadline - time.perf_counter()
            if left <= 0:
                break
            if number % _PATIENCE == 0:
                if self.bound - before < 0.01 * (self.cost - before):
                    break
                before = self.bound
            highs.setOptionValue("time_limit", highs.getRunTime() + left)
            highs.run()
            if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
                break
            self.bound = max(self.bound, highs.getInfo().objective_function_value / self.scale)
            point = np.array(highs.getSolution().col_value)[:n]
            cuts = violated_cuts(self.part, point)
            if not cuts or self.closed:
                break
            self.cuts += cuts
            for columns, values, low, high in map(self._cut_row, cuts):
                highs.addRow(low, high, len(columns), np.array(columns, np.int32), np.array(values))
        if point is not None:
            self._repair(point, deadline)

    def _run_mip(self, deadline: float) -> npt.NDArray[np.float64] | None:
        """One MIP; its node values if it was solved to optimality, else None with `limit` or `bound` set."""
        left = deadline - time.perf_counter()
        if left <= 0:
            self.limit = "time"
            return None
        highs = self._highs(integral=True)
        options = {"time_limit": left, "mip_rel_gap": _GAP, "mip_abs_gap": 1e-7}
        for option, value in options.items():
            highs.setOptionValue(option, value)
        self._warm_start(highs)
        highs.run()
        status, info = highs.getModelStatus(), highs.getInfo()
        if status == highspy.HighsModelStatus.kInfeasible:
            self.bound = math.inf
            return None
        if math.isfinite(info.mip_dual_bound):
            self.bound = max(self.bound, info.mip_dual_bound / self.scale)
        found = info.primal_solution_status == 2
        point = np.array(highs.getSolution().col_value)[: self.part.egraph.n_nodes] if found else None
        if status == highspy.HighsModelStatus.kOptimal:
            return point
        self.limit = "time"
        if point is not None:
            self.offer(self._program_of(point))
            self._repair(point, deadline)
        return None

    def _warm_start(self, highs: highspy.Highs) -> None:
        if self.choice is None:
            return
        egraph = self.part.egraph
        values = np.zeros(egraph.n_nodes + egraph.n_classes)
        values[self.choice[self.choice >= 0]] = 1.0
        values[egraph.n_nodes + np.flatnonzero(self.choice >= 0)] = 1.0
        solution = highspy.HighsSolution()
        solution.col_value = values.tolist()
        highs.setSolution(solution)
