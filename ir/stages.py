"""Stages: a scalar body with several reductions taken apart into steps with one reduction each.

    softmax[i, j] = exp(x[i, j] - max(k) x[i, k]) / sum(k) exp(x[i, k] - max(l) x[i, l])

      stage 0:  m[i]      = max(k) x[i, k]
      stage 1:  s[i]      = sum(k) exp(x[i, k] - m[i])
      stage 2:  out[i, j] = exp(x[i, j] - m[i]) / s[i]                         all of them for every i: i is *shared*

Equal reductions are one stage, whatever the names of their axes. What belongs to a result only (`rsqrt(acc / n + e)`)
is computed where that result is made. A value that several stages need (`exp(x - m)`) can be computed by each of them
or once, by a stage of its own: both are `sequences`, and the loop e-graph holds both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from .errors import UnsupportedError
from .expr import IndexValue, Kept, Read, ReadAt, Reduce, Scalar, Weighted, When, children, cost, rebuild, walk
from .index import Axis, Index

#: `Read(ACCUMULATOR, (), dtype)` in an epilogue is the finished reduction.
ACCUMULATOR = -1

#: Cost (in fused multiply-adds) from which a value that several stages need may have a stage of its own.
WORTH_KEEPING = 4.0


@dataclass(frozen=True)
class StageBody:
    """What a stage computes for every point of the shared axes and of its `own` spatial ones.

    `kind`, `reduce`, `update`, `epilogue` as in a `LoopKernel`. A read of input `inputs + n` is one of stage n's
    result, at an index of stage n's own axes; the shared axes are understood.
    """

    own: tuple[Axis, ...]
    reduce: tuple[Axis, ...]
    kind: str
    update: Scalar | None
    epilogue: Scalar


@dataclass(frozen=True)
class Staging:
    """`sequences`: the stages (numbers) to run in order; the last one of each makes the result."""

    shared: tuple[Axis, ...]
    stages: tuple[StageBody, ...]
    sequences: tuple[tuple[int, ...], ...]


def needs_stages(body: Scalar, axes: Sequence[Axis]) -> bool:
    """Several reductions, or one whose result several elements of the tensor share."""
    if any(isinstance(s, Kept) for s in walk(body)):
        return True
    found = list(dict.fromkeys(s for s in walk(body) if isinstance(s, Reduce)))
    if len(found) == 1 and not _guarded_reduction(body):
        return not set(axes) <= free(found[0])
    return len(found) > 1


def take_apart(body: Scalar, axes: Sequence[Axis], inputs: int) -> Staging:
    """The stages of `body` over `axes`. Raises `UnsupportedError` if a reduction stands under a bounds test."""
    if _guarded_reduction(body):
        raise UnsupportedError("a reduction under a bounds test has no stage of its own: it may read out of bounds")
    body = _named_by_height(body)
    reductions = [s for s in walk(body) if isinstance(s, (Reduce, Kept))]
    shared = tuple(a for a in axes if all(a in free(r) for r in reductions))
    stager = _Stager(inputs, frozenset(shared))
    last = stager.add(body, tuple(a for a in axes if a not in shared))
    base = tuple(range(last + 1))
    stages, kept = _with_kept_values(stager.stages, frozenset(shared), inputs)
    return Staging(shared, stages, (base,) if kept == base else (base, kept))


# --- scalars --------------------------------------------------------------------------------------------------------


def own_indices(s: Scalar) -> tuple[Index, ...]:
    """The scalar's own indices, without its operands'."""
    if isinstance(s, Read):
        return s.index
    if isinstance(s, ReadAt):
        return (s.base,)
    if isinstance(s, (IndexValue, Weighted)):
        return (s.index,)
    if isinstance(s, When):
        return tuple(i for i, _, _ in s.bounds)
    return ()


def own_axes(s: Scalar) -> Iterator[Axis]:
    """The axes that those indices use."""
    for i in own_indices(s):
        yield from sorted(i.axes, key=lambda a: a.name)


@cache
def free(s: Scalar) -> frozenset[Axis]:
    """The axes that a scalar's value depends on."""
    found = frozenset(own_axes(s)).union(*map(free, children(s)))
    return found - set(s.axes) if isinstance(s, Reduce) else found


@cache
def _reduces(s: Scalar) -> bool:
    return isinstance(s, (Reduce, Kept)) or any(map(_reduces, children(s)))


def _guarded_reduction(body: Scalar) -> bool:
    return any(isinstance(s, When) and _reduces(s) for s in walk(body))


def _substituted(s: Scalar, mapping: dict[Axis, Index]) -> Scalar:
    memo: dict[Scalar, Scalar] = {}

    def go(n: Scalar) -> Scalar:
        if n not in memo:
            memo[n] = rebuild(n, go, lambda i: i.substitute(mapping))
        return memo[n]

    return go(s)


def _named_by_height(s: Scalar) -> Scalar:
    """Reduction axes named by how many reductions stand below: equal reductions become equal values."""
    memo: dict[Scalar, tuple[Scalar, int]] = {}

    def go(n: Scalar) -> tuple[Scalar, int]:
        if n not in memo:
            below = {c: go(c) for c in children(n)}
            height = max((h for _, h in below.values()), default=0)
            new = rebuild(n, lambda c: below[c][0], lambda i: i)
            if isinstance(new, Reduce):
                height += 1
                names = {a: Axis(f"h{height}_{d}", a.extent) for d, a in enumerate(new.axes)}
                inner = _substituted(new.body, {a: Index.of(b) for a, b in names.items()})
                new = Reduce(new.kind, tuple(names.values()), inner, new.dtype)
            memo[n] = new, height
        return memo[n]

    return go(s)[0]


def _height(r: Reduce) -> int:
    return int(r.axes[0].name[1:].split("_")[0])


def _as_function(s: Scalar, shared: frozenset[Axis]) -> tuple[Scalar, tuple[Axis, ...], tuple[Axis, ...]]:
    """A value as a function of the axes that are not shared: its body, its parameters, and their values here."""
    depends = free(s) - shared
    here = tuple(dict.fromkeys(a for n in walk(s) for a in own_axes(n) if a in depends))
    parameters = tuple(Axis(f"p{d}", a.extent) for d, a in enumerate(here))
    return _substituted(s, dict(zip(here, map(Index.of, parameters), strict=True))), parameters, here


# --- one reduction a stage ------------------------------------------------------------------------------------------


class _Stager:
    """Collects stages; each is added after those whose results it reads."""

    def __init__(self, inputs: int, shared: frozenset[Axis]) -> None:
        self.inputs, self.shared = inputs, shared
        self.stages: list[StageBody] = []
        self.numbers: dict[Scalar, int] = {}

    def add(self, s: Scalar, own: tuple[Axis, ...]) -> int:
        """The number of the stage that computes `s`, which may keep one reduction as its accumulator."""
        context = frozenset(own)
        kept = self._accumulator(s, context)
        finished: Scalar | None = None if kept is None else Read(ACCUMULATOR, (), kept.dtype)
        epilogue = self._with_stages(s, context, kept, finished)
        update, kind, reduce = None, "", ()
        if kept is not None and finished is not None:
            body, _, here = _as_function(kept, self.shared)
            if body in self.numbers:
                epilogue = _replaced(epilogue, finished, self._read(self.numbers[body], here, kept.dtype))
            else:
                update = self._with_stages(kept.body, context | set(kept.axes), None, None)
                kind, reduce = kept.kind, kept.axes
        self.stages.append(StageBody(own, reduce, kind, update, epilogue))
        return len(self.stages) - 1

    def _accumulator(self, s: Scalar, context: frozenset[Axis]) -> Reduce | None:
        """The reduction of `s` that depends on all the stage's axes; of several, the one that reads the others."""
        found = [r for r in _outermost_reductions(s) if context <= free(r)]
        return max(found, key=_height, default=None)

    def _with_stages(
        self, s: Scalar, context: frozenset[Axis], kept: Reduce | None, finished: Scalar | None
    ) -> Scalar:
        """`s` with what other stages compute read from them: reductions, and what depends on fewer axes."""

        def go(n: Scalar) -> Scalar:
            if finished is not None and n == kept:
                return finished
            if not _reduces(n):
                return n
            if isinstance(n, (Reduce, Kept)) or free(n) - self.shared < context:
                return self._from_stage(n)
            return rebuild(n, go, lambda i: i)

        return go(s)

    def _from_stage(self, s: Scalar) -> Scalar:
        body, parameters, here = _as_function(s, self.shared)
        if body not in self.numbers:
            self.numbers[body] = self.add(body.arg if isinstance(body, Kept) else body, parameters)
        return self._read(self.numbers[body], here, s.dtype)

    def _read(self, stage: int, at: tuple[Axis, ...], dtype: str) -> Scalar:
        return Read(self.inputs + stage, tuple(map(Index.of, at)), dtype)


def _outermost_reductions(s: Scalar) -> Iterator[Reduce]:
    if isinstance(s, Reduce):
        yield s
    elif not isinstance(s, Kept):
        for c in children(s):
            yield from _outermost_reductions(c)


def _replaced(s: Scalar, old: Scalar, new: Scalar) -> Scalar:
    def go(n: Scalar) -> Scalar:
        return new if n == old else rebuild(n, go, lambda i: i)

    return go(s)


# --- values that several stages need --------------------------------------------------------------------------------


def _with_kept_values(
    stages: Sequence[StageBody], shared: frozenset[Axis], inputs: int
) -> tuple[tuple[StageBody, ...], tuple[int, ...]]:
    """The stages and those of another sequence, in which costly values that several need are stages of their own."""
    used: dict[Scalar, set[int]] = {}
    for k, stage in enumerate(stages):
        for n in _values(stage):
            if cost(n) >= WORTH_KEEPING:
                used.setdefault(_as_function(n, shared)[0], set()).add(k)
    keep = {body for body, by in used.items() if len(by) > 1}
    every, sequence = list(stages), []
    now: dict[int, int] = {}
    numbers: dict[Scalar, int] = {}

    def renumbered(s: Scalar) -> Scalar:
        def go(n: Scalar) -> Scalar:
            if isinstance(n, Read) and n.input >= inputs:
                return replace(n, input=inputs + now[n.input - inputs])
            return rebuild(n, go, lambda i: i)

        return go(s)

    def add(stage: StageBody, k: int | None) -> int:
        if k is None or stage != stages[k]:
            every.append(stage)
            k = len(every) - 1
        sequence.append(k)
        return k

    def go(n: Scalar) -> Scalar:
        if isinstance(n, When) or not keep:
            return renumbered(n)
        if cost(n) >= WORTH_KEEPING and not _accumulates(n):
            body, parameters, here = _as_function(n, shared)
            if body in keep:
                if body not in numbers:
                    numbers[body] = add(StageBody(parameters, (), "", None, renumbered(body)), None)
                return Read(inputs + numbers[body], tuple(map(Index.of, here)), n.dtype)
        return rebuild(n, go, lambda i: i) if children(n) else renumbered(n)

    for k, stage in enumerate(stages):
        update = None if stage.update is None else go(stage.update)
        now[k] = add(replace(stage, update=update, epilogue=go(stage.epilogue)), k)
    return tuple(every), tuple(sequence)


def _values(stage: StageBody) -> Iterator[Scalar]:
    """The values that a stage computes outside bounds tests and before its reduction is finished."""
    todo = [stage.epilogue, *(() if stage.update is None else (stage.update,))]
    while todo:
        n = todo.pop()
        if isinstance(n, When):
            continue
        if not _accumulates(n):
            yield n
        todo.extend(children(n))


@cache
def _accumulates(s: Scalar) -> bool:
    return (isinstance(s, Read) and s.input == ACCUMULATOR) or any(map(_accumulates, children(s)))
