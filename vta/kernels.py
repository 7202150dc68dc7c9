"""Machine code for the inner loops of GEMM and ALU instructions, generated for a configuration.

The order of a GEMM's iterations is free (it never writes what it reads, and int32 addition wraps), so the loop that
keeps the weight comes innermost: a weight element stays in registers while it runs. Inputs and weights lie
in int16 shadows, weights with the pairs of one output channel side by side, `[BLOCK_IN / 2, BLOCK_OUT, 2]`: a pair of
products and their sum is what `vpdpwssd` does. The code says it in plain integer arithmetic, in which LLVM finds
`vpdpwssd`, `vpmaddwd`, or whatever the machine has.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

from llvmlite import ir

from ..codegen import jit
from ..codegen.llvm_types import I8, I32, I64
from ..ir.target import Target, host
from .config import Config
from .emitting import address, function, loop, number, summed, word
from .interpreter import add_interpreter
from .isa import AluOp

_I16 = ir.IntType(16)
#: Vector registers that are left for accumulators and inputs when weights are held in the others.
_SPARE_REGISTERS = 8
_C_TYPES = {"ptr": ctypes.c_void_p, "i64": ctypes.c_int64}


@dataclass(frozen=True)
class Kernels:
    """Loops in machine code. Memory is passed by address: to ask an array for its own costs as much as a short loop.

    `state` has a byte for every accumulator: 1 when an ALU or GEMM instruction wrote it last. Indices are int64, one
    for each micro-op. Every loop has one iteration or more, and nobody checks indices here: the caller has.
    """

    functions: Mapping[str, Callable[..., None]]

    @cached_property
    def _alu(self) -> list[Callable[..., None]]:
        return [self.functions[f"alu_{op.name.lower()}"] for op in AluOp]

    def gemm(
        self,
        memories: Iterable[int],
        indices: Iterable[int],
        groups: int,
        outer: tuple[int, int, int, int],
        middle: tuple[int, int, int, int],
        inner: tuple[int, int, int],
    ) -> None:
        """Accumulate. `memories`: accumulators, state, inputs, weights. Micro-ops come in groups of one weight;
        `indices`: dst and src of each micro-op, weight of each group, 0 followed by the end of each group. A loop is
        its number of iterations and its factors of dst, src and wgt; the inner one keeps the weight.
        """
        self.functions["gemm"](*memories, *indices, groups, *outer, *middle, *inner)

    def alu(
        self,
        op: int,
        memories: Iterable[int],
        indices: Iterable[int],
        count: int,
        outer: tuple[int, int, int],
        inner: tuple[int, int, int],
    ) -> None:
        """Apply an operation (an `AluOp`'s number) in program order. `memories`: accumulators, state, right operands;
        `indices`: dst, src; a loop is its number of iterations and its factors of dst and src.
        """
        self._alu[op](*memories, *indices, count, *outer, *inner)

    def reset(
        self, memories: Iterable[int], index: int, count: int, outer: tuple[int, int], inner: tuple[int, int]
    ) -> None:
        """Clear accumulators and their state. `memories`: these two; `index`: dst; a loop: iterations and factor."""
        self.functions["reset"](*memories, index, count, *outer, *inner)

    def execute(self, state: int) -> None:
        """Run instructions until there is one that Python has to look at, or none that can go: see `interpreter.py`.
        `state`: the address of its state."""
        self.functions["execute"](state)


@cache
def kernels(config: Config, vnni: bool = True) -> Kernels:
    """The kernels of a configuration on this machine; without `vnni`, as for one that lacks `vpdpwssd`."""
    target = host() if vnni else without_vnni(host())
    module = ir.Module(name="vta")
    _gemm(module, config, target)
    _reset(module, config, target)
    for op in AluOp:
        _alu(module, config, target, op)
    add_interpreter(module, config)
    signatures = {f.name: [_C_TYPES[str(a.type)] for a in f.args] for f in module.functions}
    loaded = jit.load_object(jit.compile_object(str(module), target), tuple(signatures))
    return Kernels({name: loaded.function(name, *types) for name, types in signatures.items()})


def without_vnni(target: Target) -> Target:
    """The target with its dot-product instructions switched off."""
    kept = [f for f in target.features.split(",") if "vnni" not in f]
    off = [f"-{f[1:]}" for f in target.features.split(",") if "vnni" in f]
    return replace(target, name=f"{target.name}-no-vnni", features=",".join((*kept, *off)))


# --- code -----------------------------------------------------------------------------------------


def _gemm(module: ir.Module, config: Config, target: Target) -> None:
    width = min(config.block, target.lanes(4))
    parts, pairs, row = config.block // width, max(1, config.block // 2), 2 * max(1, config.block // 2)
    vector, raw = ir.VectorType(I32, width), ir.VectorType(_I16, 2 * width)
    b, (acc, state, inp, wgt, dst, src, group_wgt, ends), numbers = function(module, "gemm", 8, 12)
    groups, outer, middle, inner = numbers[0], numbers[1:5], numbers[5:9], numbers[9:12]

    def weight(base: ir.Value, pair: int, part: int) -> ir.Value:
        at = address(b, base, (pair * parts + part) * 4 * width, 1)
        return b.load(at, typ=raw, align=2)

    def row_of(d: ir.Value, s: ir.Value, weights: list[list[ir.Value]]) -> None:
        where = [address(b, d, part * 4 * width, 1) for part in range(parts)]
        totals = [b.load(at, typ=vector, align=4) for at in where]
        for pair in range(pairs):
            x = b.bitcast(_splat(b, b.load(address(b, s, 4 * pair, 1), typ=I32, align=2), width), raw)
            for part in range(parts):
                totals[part] = b.add(totals[part], _pair_product(b, x, weights[pair][part], width))
        for at, total in zip(where, totals, strict=True):
            b.store(total, at, align=4)

    with loop(b, outer[0]) as i, loop(b, middle[0]) as j:
        d0, s0, w0 = (b.add(b.mul(i, outer[k]), b.mul(j, middle[k])) for k in (1, 2, 3))
        with loop(b, groups) as g:
            begin, end = word(b, ends, g), word(b, ends, b.add(g, number(1)))
            base = address(b, wgt, b.add(w0, word(b, group_wgt, g)), 2 * row * config.block)
            held = [[weight(base, pair, part) for part in range(parts)] for pair in range(pairs)]
            with loop(b, b.sub(end, begin)) as m:
                u = b.add(begin, m)
                d1, s1 = b.add(d0, word(b, dst, u)), b.add(s0, word(b, src, u))
                with loop(b, inner[0]) as n:
                    d, s = summed(b, d1, (n, inner[1])), summed(b, s1, (n, inner[2]))
                    b.store(ir.Constant(I8, 1), address(b, state, d, 1))
                    d, s = (b.mul(v, ir.Constant(I64, config.batch)) for v in (d, s))
                    with loop(b, config.batch) as r:
                        weights = held
                        if pairs * parts > target.registers - _SPARE_REGISTERS:
                            weights = [[weight(base, pair, part) for part in range(parts)] for pair in range(pairs)]
                        d_row = address(b, acc, b.add(d, r), 4 * config.block)
                        row_of(d_row, address(b, inp, b.add(s, r), 2 * row), weights)
    b.ret_void()


def _splat(b: ir.IRBuilder, value: ir.Value, width: int) -> ir.Value:
    vector = ir.VectorType(value.type, width)
    undefined = ir.Constant(vector, ir.Undefined)
    first = b.insert_element(undefined, value, ir.Constant(I32, 0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, width), [0] * width))


def _pair_product(b: ir.IRBuilder, x: ir.Value, w: ir.Value, width: int) -> ir.Value:
    """x[2n] · w[2n] + x[2n+1] · w[2n+1] for each of `width` lanes n, in int32."""
    wide = ir.VectorType(I32, width)

    def half(value: ir.Value, odd: int) -> ir.Value:
        mask = ir.Constant(wide, [2 * n + odd for n in range(width)])
        return b.sext(b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask), wide)

    even, odd = (b.mul(half(x, k), half(w, k)) for k in (0, 1))
    return b.add(even, odd)


def _alu(module: ir.Module, config: Config, target: Target, op: AluOp) -> None:
    lanes = config.batch * config.block
    width = min(lanes, target.lanes(4))
    vector = ir.VectorType(I32, width)
    b, (acc, state, right, *indices), numbers = function(module, f"alu_{op.name.lower()}", 5, 7)
    count, outer, inner = numbers[0], numbers[1:4], numbers[4:7]
    with loop(b, outer[0]) as i, loop(b, inner[0]) as j, loop(b, count) as u:
        d, s = (
            summed(b, word(b, array, u), (i, outer[k]), (j, inner[k]))
            for k, array in enumerate(indices, 1)
        )
        b.store(ir.Constant(I8, 1), address(b, state, d, 1))
        d, s = address(b, acc, d, 4 * lanes), address(b, right, s, 4 * lanes)
        for part in range(lanes // width):
            at = address(b, d, part * 4 * width, 1)
            x = b.load(at, typ=vector, align=4)
            y = b.load(address(b, s, part * 4 * width, 1), typ=vector, align=4)
            b.store(_OPERATIONS[op](b, x, y, vector), at, align=4)
    b.ret_void()


def _reset(module: ir.Module, config: Config, target: Target) -> None:
    lanes = config.batch * config.block
    vector = ir.VectorType(I32, min(lanes, target.lanes(4)))
    b, (acc, state, dst), (count, *loops) = function(module, "reset", 3, 5)
    with loop(b, loops[0]) as i, loop(b, loops[2]) as j, loop(b, count) as u:
        d = summed(b, word(b, dst, u), (i, loops[1]), (j, loops[3]))
        b.store(ir.Constant(I8, 0), address(b, state, d, 1))
        first = address(b, acc, d, 4 * lanes)
        for part in range(lanes // vector.count):
            b.store(ir.Constant(vector, None), address(b, first, part * 4 * vector.count, 1), align=4)
    b.ret_void()


def _shift_right(b: ir.IRBuilder, x: ir.Value, y: ir.Value, vector: ir.VectorType) -> ir.Value:
    """Arithmetic shift right, or left if y < 0. By 32 or more all bits have left."""

    def constant(n: int) -> ir.Value:
        return ir.Constant(vector, [n] * vector.count)

    left = b.neg(y)
    right_amount = b.select(b.icmp_signed("<", y, constant(31)), y, constant(31))
    left_fits = b.icmp_unsigned("<", left, constant(32))
    shifted_left = b.select(left_fits, b.shl(x, b.select(left_fits, left, constant(0))), constant(0))
    negative = b.icmp_signed("<", y, constant(0))
    right = b.ashr(x, b.select(negative, constant(0), right_amount))
    return b.select(negative, shifted_left, right)


_OPERATIONS = {
    AluOp.MIN: lambda b, x, y, _: b.select(b.icmp_signed("<", x, y), x, y),
    AluOp.MAX: lambda b, x, y, _: b.select(b.icmp_signed(">", x, y), x, y),
    AluOp.ADD: lambda b, x, y, _: b.add(x, y),
    AluOp.SHR: _shift_right,
    AluOp.MUL: lambda b, x, y, _: b.mul(x, y),
}
