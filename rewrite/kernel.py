"""Kernels: what graph extraction chooses between. A kernel is a composed tensor expression with its fusion stage."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

from ..ir.attrs import Attrs
from ..ir.compose import (
    compose,
    has_nested_reduce,
    is_filter,
    is_map,
    is_movement,
    keep,
    merge_inputs,
    reads_always,
    reads_at,
    reads_once,
    shares,
    streams,
    visits_once,
)
from ..ir.errors import UnsupportedError
from ..ir.expr import TensorExpr, cost
from ..ir.lazy import hashed_once
from ..ir.loops import LoopKernel, Lowered, StagedKernel, lower
from ..ir.operator import operator
from ..ir.stages import free
from ..ir.types import DTYPES, TensorType

MAX_INPUTS = 8
#: The widest kernels have more: constants count among them, and a tensor may be several until operands are merged.
MAX_STAGE_INPUTS = 12
MAX_SCALARS = 96
#: What ends the unrolling of e-classes that hold terms of one another.
MAX_OPERATORS = 40

#: Cost (in fused multiply-adds) up to which a row's value may be computed again for each of the row's elements.
LITTLE_WORK = 4.0

#: Points up to which stages are run one after the other although they share no axis: their operands stay in cache.
SMALL_POINTS = 16384


#: Elements that an operand has at least if copying it may pay, and results that share each of them.
KEPT_SIZE, KEPT_USES = 256, 8
#: Rows a multiple of so many bytes apart share few sets of a first cache of 64 sets and lines of 64 bytes: four.
SAME_SETS = 1024

#: Results of a reduction, over those of them that an epilogue takes: who takes a smaller part shares it with others.
MOST_LEFT = 2

#: Points of stages, over those of their kernels apart: windows that overlap are computed again for each. The transform
#: of the tiles of a convolution, F(2, 3), has 1.33.
RECOMPUTED = 1.35


@hashed_once
@dataclass(frozen=True)
class Kernel:
    """`expr`, and how far fusion has gone.

    `op`: the operator if nothing is fused yet. `operators`: number of arithmetic operators fused. `unit`: one operator,
    or several of which fusing them was no choice (`only_reader`). `closed`: an epilogue has been fused, after which
    producers are no longer inlined (prologues first, epilogues last, one unit at a time: one order for each fused
    group, so that the e-graph grows with the number of groups, not of orders). `joins`: concatenations fused.
    """

    expr: TensorExpr
    op: str = ""
    operators: int = 1
    closed: bool = False
    kept: bool = False
    loss: float = 0.0
    conversions: int = 0
    unit: bool = True
    moved: bool = field(default=False, compare=False)
    joins: int = field(default=0, compare=False)

    @property
    def light(self) -> bool:
        """A map that is a unit, or one operator besides conversions and movement of its operands."""
        return is_map(self.expr) and (self.unit or self.operators - self.conversions <= 1)


@cache
def of_operator(name: str, attrs: Attrs, *types: TensorType) -> Kernel:
    """The kernel of one operator."""
    declared = operator(name)
    expr = declared.expr(types, attrs)
    moves = is_movement(expr)
    kept = declared.inlining == "stored" and not moves
    converts = int(declared.inlining == "conversion")
    joins = int(moves and len(types) > 1)
    loss = attrs.get("loss", 0.0)
    return Kernel(expr, name, 0 if moves else 1, kept=kept, loss=loss, conversions=converts, joins=joins)


def _fits(consumer: Kernel, i: int, producer: Kernel, most: int = MAX_INPUTS) -> bool:
    if i >= len(consumer.expr.inputs) or reads_at(consumer.expr, i) or (producer.kept and consumer.operators):
        return False
    if consumer.operators + producer.operators > MAX_OPERATORS:
        return False
    inputs = len(consumer.expr.inputs) + len(producer.expr.inputs) - 1
    return inputs <= most and consumer.expr.operations + producer.expr.operations <= MAX_SCALARS


def _inlining(k: Kernel) -> str:
    """`Operator.inlining` of a kernel of one operator."""
    return operator(k.op).inlining if k.op else ""


def _inlines(consumer: Kernel, i: int, producer: Kernel) -> bool:
    return producer.unit and not consumer.closed and _fits(consumer, i, producer)


@cache
def is_alias(k: Kernel) -> bool:
    """An operator whose result is its operand's memory as it stands: a reshape."""
    return bool(k.op) and len(k.expr.inputs) == 1 and is_movement(k.expr) and lower(k.expr).is_alias


def prologue_alias(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """What is another tensor's memory under another shape is read there: that is the same kernel, so the one that reads
    the alias is dropped. A layout operator stays one."""
    return is_alias(producer) and not is_alias(consumer) and _inlines(consumer, i, producer)


def only_reader(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """A map that one map alone reads, each element once, is computed there and never stored: the fused kernel reads
    and writes less, so the unfused one is dropped. Which layout and which type a tensor is stored in stays a choice."""
    if not (is_map(consumer.expr) and consumer.operators and is_map(producer.expr)):
        return False
    chooses = consumer.conversions or producer.conversions or _inlining(producer) in ("blocks", "stored", "always")
    return not chooses and _inlines(consumer, i, producer) and visits_once(consumer.expr, i)


def prologue_broadcast(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """A broadcast is read through, never stored: the fused kernel reads less, so the unfused one is dropped."""
    return _inlining(producer) == "always" and consumer.operators > 0 and _inlines(consumer, i, producer)


def prologue_unpack(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """A constant that can be had in blocks is read in blocks: packing it costs nothing at run time.

    Not by a conversion, which is a constant itself: whoever reads that reads through it first.
    """
    reads = consumer.operators > 0 and _inlining(consumer) != "conversion"
    return reads and _inlining(producer) == "blocks" and _inlines(consumer, i, producer)


def prologue_movement(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """A layout, slice or padding operator may be read through, by any kernel without an epilogue.

    Not `pack`: a kernel that reads through it reads what its operand's own e-class offers already. Not an operand of
    concatenations one inside the other, which is read as it is stored: of DenseNet's, up to seven with four layouts
    each, all combinations would be kernels.
    """
    if len(producer.expr.inputs) > 1 or consumer.joins > 1:
        return False
    return _moves(consumer, i, producer) and not prologue_broadcast(consumer, i, producer)


def prologue_join(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """A concatenation may be read through, by a map: a reduction would ask at every step which part it is in."""
    return len(producer.expr.inputs) > 1 and is_map(consumer.expr) and _moves(consumer, i, producer)


def _moves(consumer: Kernel, i: int, producer: Kernel) -> bool:
    return _inlines(consumer, i, producer) and is_movement(producer.expr) and _inlining(producer) != "stored"


def prologue_arithmetic(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """An elementwise operator may be computed where other arithmetic reads it, if it is little work (what several read
    would be computed several times)."""
    maps = is_map(consumer.expr) and consumer.operators > 0
    return maps and _is_little(producer) and _inlines(consumer, i, producer)


def prologue_of_reduction(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """An elementwise operator may be computed where a reduction reads it, if that is once an element."""
    if is_map(consumer.expr) or not _is_arithmetic(producer) or not _inlines(consumer, i, producer):
        return False
    return visits_once(consumer.expr, i)


def _is_arithmetic(k: Kernel) -> bool:
    return k.operators > 0 and is_map(k.expr)


def _is_little(k: Kernel) -> bool:
    return _is_arithmetic(k) and cost(k.expr.body) <= LITTLE_WORK


def _computed_where_read(consumer: Kernel, i: int, producer: Kernel) -> bool:
    if not _is_arithmetic(producer):
        return False
    if is_map(consumer.expr) and _is_little(producer):
        return True
    return visits_once(consumer.expr, i) or (is_map(consumer.expr) and not shares(consumer.expr, i))


def prologue_widening_integer(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """Integers are read in the narrow type that they are stored in: an intrinsic may take them as they are, and there
    is less to move; the unfused kernel is dropped."""
    if _inlining(producer) != "conversion" or not consumer.operators or not _inlines(consumer, i, producer):
        return False
    narrow, wide = (DTYPES[t.dtype] for t in (producer.expr.inputs[0], producer.expr.type))
    return narrow.size < wide.size and {narrow.kind, wide.kind} <= {"int", "uint"}


def prologue_widening(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """A conversion to a wider type may be made where it is read: the narrow operand is less to move, and an intrinsic
    may take it as it is. One that computes more than the conversion is not made again for every reading."""
    if _inlining(producer) != "conversion" or not _inlines(consumer, i, producer) or cost(producer.expr.body) > 1:
        return False
    others = (prologue_arithmetic, prologue_of_reduction, prologue_widening_integer)
    if any(applies(consumer, i, producer) for applies in others):
        return False
    return DTYPES[producer.expr.inputs[0].dtype].size < DTYPES[producer.expr.type.dtype].size


def is_single_filter(k: Kernel) -> bool:
    """A filter bank that nothing but movement is fused with."""
    return is_filter(k.expr) and k.operators == 1 and not k.closed


def prologue_filter(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """A filter bank along another axis is a stage of the one that reads it: what lies between stays in cache."""
    if not (is_single_filter(consumer) and is_single_filter(producer)) or not _fits(consumer, i, producer):
        return False
    whole = lower(compose(consumer.expr, i, producer.expr))
    return whole.points <= RECOMPUTED * sum(lower(k.expr).points for k in (consumer, producer))


def whole_prologue(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """All the arithmetic that leads to an operand may be computed where it is read, if that is once an element."""
    return _fits(consumer, i, producer, MAX_STAGE_INPUTS) and _computed_where_read(consumer, i, producer)


def _after_reduction(consumer: Kernel, i: int, producer: Kernel) -> bool:
    if not consumer.light or is_map(producer.expr) or is_alias(consumer) or _inlining(consumer) == "always":
        return False
    if not _fits(consumer, i, producer) or producer.expr.type.size > MOST_LEFT * consumer.expr.type.size:
        return False
    simple = is_filter(producer.expr) or not has_nested_reduce(producer.expr)
    return simple and reads_always(consumer.expr, i) and reads_once(consumer.expr, i)


def epilogue(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """A map of one tensor is applied to each result of a reduction as it is made."""
    one = consumer.operators > 0 and len(consumer.expr.inputs) == 1
    return one and _after_reduction(consumer, i, producer)


def epilogue_layout(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """The result of a reduction may be stored in another layout, which is one operator."""
    return not (consumer.operators or producer.moved) and _after_reduction(consumer, i, producer)


def epilogue_residual(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """A map of several tensors (bias, residual add) is applied to each result of a reduction as it is made."""
    return len(consumer.expr.inputs) > 1 and _after_reduction(consumer, i, producer)


def row_reduction(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """A reduction whose results the consumer's elements share (a row's maximum, its mean) becomes a stage of it.

    The stages run over the axes that they share, a few rows at a time: what they read stays in cache. Each point is
    computed once, so nothing is lost but the choice of separate loops. A contraction (a product, a convolution) has
    nothing to gain: its results are few beside the work on each (two convolutions of a residual block in one kernel
    doubled the time to compile ResNet-18).
    """
    if is_map(producer.expr) or not streams(producer.expr):
        return False
    if not _fits(consumer, i, producer, MAX_STAGE_INPUTS) or not shares(consumer.expr, i):
        return False
    try:
        apart = [lower(k.expr) for k in (consumer, producer)]
        whole = lower(compose(consumer.expr, i, producer.expr))
    except UnsupportedError:
        return False
    if not isinstance(whole, StagedKernel) or whole.points > sum(k.points for k in apart):
        return False
    return bool(whole.shared) or whole.points <= SMALL_POINTS


def shared_operand(k: Kernel, i: int) -> bool:
    """An operand of a contraction that changes along the results' rows, and whose own rows lie across or a power of two
    apart, may be copied before it is read, a block at a time: what many results share then lies together. Each of its
    elements is copied once."""
    e = k.expr
    reads = [r for r in e.reads if i < len(e.inputs) and r.input == i]
    if len(reads) != 1 or is_map(e) or streams(e) or e.inputs[i].size < KEPT_SIZE:
        return False
    used = free(reads[0])
    repeats = math.prod(a.extent for a in e.axes if a not in used)
    once = math.prod(a.extent for a in used) <= e.inputs[i].size
    along = next(a for a in reversed(e.axes) if a.extent != 1) in used
    if not (along and once and repeats >= KEPT_USES and _lies_apart(e, i)):
        return False
    return isinstance(_lowered(keep(e, i)), StagedKernel)


def _lies_apart(e: TensorExpr, i: int) -> bool:
    """What the steps of the reduction read of input i competes for few sets of the caches, or neighbouring results read
    it across."""
    kernel = _lowered(e)
    if not isinstance(kernel, LoopKernel):
        return False
    reads = [r.index[0] for r in kernel.update_reads if r.input == i]
    rows = [a for a in kernel.spatial if kernel.out.coefficient(a) == 1]
    if len(reads) != 1 or not reads[0].is_affine or not rows:
        return False
    steps = [s for a in kernel.reduce if (s := abs(reads[0].coefficient(a)))]
    apart = min(steps, default=1) * DTYPES[e.inputs[i].dtype].size % SAME_SETS == 0
    return apart or reads[0].coefficient(rows[0]) > 1


def _lowered(e: TensorExpr) -> Lowered | None:
    try:
        return lower(e)
    except UnsupportedError:
        return None


@cache
def keep_operand(k: Kernel, i: int) -> Kernel:
    """The kernel with a copy of operand i as a stage of its own. It is finished: nothing more is fused with it."""
    return replace(k, expr=keep(k.expr, i), op="", closed=True, unit=False)


def merge_operands(k: Kernel, i: int, j: int) -> Kernel:
    """The kernel whose operands i and j (i < j) are one tensor, read as operand i."""
    return replace(k, expr=merge_inputs(k.expr, {j: i}))


@cache
def fuse(consumer: Kernel, i: int, producer: Kernel) -> Kernel:
    """The composition; closed once a reduction has an epilogue."""
    closed = consumer.closed or producer.closed or (is_map(consumer.expr) and not is_map(producer.expr))
    operators = consumer.operators + producer.operators
    expr = compose(consumer.expr, i, producer.expr)
    kept, loss = consumer.kept or producer.kept, consumer.loss + producer.loss
    moved = not consumer.operators and not is_map(producer.expr)
    conversions = consumer.conversions + producer.conversions
    joins = consumer.joins + producer.joins
    return Kernel(expr, "", operators, closed, kept, loss, conversions, unit=False, moved=moved, joins=joins)


@cache
def fuse_unit(consumer: Kernel, i: int, producer: Kernel) -> Kernel:
    """The composition of two units that could not be had apart. What reads through an alias is still its operator."""
    op = consumer.op if is_alias(producer) else ""
    return replace(fuse(consumer, i, producer), op=op, unit=consumer.unit and producer.unit)


#: Any kernel, where a trait is named.
ANY = "any"
#: What e-matching may ask of a kernel before a fusion rule's condition is called: pairs without them are never tried.
TRAITS: dict[str, Callable[[Kernel], bool]] = {
    "open": lambda k: not k.closed,
    "open_map": lambda k: not k.closed and is_map(k.expr),
    "open_computing": lambda k: not k.closed and k.operators > 0,
    "open_arithmetic": lambda k: not k.closed and _is_arithmetic(k),
    "open_reduction": lambda k: not k.closed and not is_map(k.expr),
    "open_of_few_joins": lambda k: not k.closed and k.joins <= 1,
    "repeating": lambda k: _inlining(k) == "always",
    "unpacking": lambda k: _inlining(k) == "blocks",
    "converting": lambda k: _inlining(k) == "conversion",
    "moving": lambda k: _read_through(k) and len(k.expr.inputs) == 1,
    "joining": lambda k: _read_through(k) and len(k.expr.inputs) > 1,
    "computing": lambda k: k.unit and _is_arithmetic(k),
    "computing_little": lambda k: k.unit and _is_little(k),
    "alias": is_alias,
    "making": lambda k: not is_alias(k),
    "filter": is_single_filter,
    "light": lambda k: k.light,
    "light_layout": lambda k: not k.operators and _takes_results(k),
    "light_of_one": lambda k: k.operators > 0 and len(k.expr.inputs) == 1 and _takes_results(k),
    "light_of_several": lambda k: len(k.expr.inputs) > 1 and _takes_results(k),
    "map": _is_arithmetic,
    "reducing": lambda k: not is_map(k.expr),
    "reducing_unmoved": lambda k: not is_map(k.expr) and not k.moved,
    "streaming": lambda k: genus(k) == 1,
}
#: Of what `about` says of a kernel: how many bits lie below its genus, and below its width.
GENUS_AT, WIDTH_AT = len(TRAITS), len(TRAITS) + 2
#: Bytes of a kernel's text that order kernels as wide as it.
_TEXT_BYTES = 192


def _read_through(k: Kernel) -> bool:
    return bool(k.op) and is_movement(k.expr) and _inlining(k) != "stored"


def _takes_results(k: Kernel) -> bool:
    """Whether the kernel may be an epilogue, by one of its operands."""
    if not k.light or is_alias(k) or _inlining(k) == "always":
        return False
    return any(reads_always(k.expr, i) and reads_once(k.expr, i) for i in range(len(k.expr.inputs)))


def genus(k: Kernel) -> int:
    """Map, row reductions, or contraction: a tensor has a widest kernel of each."""
    return 0 if is_map(k.expr) else 1 if streams(k.expr) else 2


def width(k: Kernel) -> int:
    """A number that is larger the more operators a kernel fuses; of equal ones, the less work it has (in 1/256 of a
    fused multiply-add), then the fewer operands, then, of maps, the plainer its operands' layouts.

    What agrees in all that is told apart by its text, so that a tensor has one widest kernel of a genus: maps in no
    order of their layouts. (One order everywhere gave densenet121 20 % more e-nodes, and a dearer program.)
    """
    work, operands, text = int(cost(k.expr.body) * 256), len(k.expr.inputs), str(k.expr).encode()
    dims, order = 0, int.from_bytes(text[:_TEXT_BYTES].ljust(_TEXT_BYTES)) << 32
    if is_map(k.expr):
        dims, order = sum(len(t.shape) for t in k.expr.inputs), 0
    rank = (k.operators + 1 << 56) - (work << 16) - (operands << 8) - dims
    return rank << 8 * _TEXT_BYTES + 32 | order | zlib.crc32(text)


def about(k: Kernel) -> str:
    """All that e-matching asks of a kernel in one number, in decimal: a bit for each of `TRAITS`, its genus and its
    width."""
    has = sum(1 << n for n, holds in enumerate(TRAITS.values()) if holds(k))
    return str(has | genus(k) << GENUS_AT | width(k) << WIDTH_AT)
