"""The table of machine instructions, each declared once: its meaning, what a target must have, its code.

Throughputs are relative to the target's multiply-add: Intel's and AMD's cores start as many `vpdpbusd` and
`vdpbf16ps` a cycle as `vfmadd` of the same width (`benchmarks/limits.py` measures it here).

Integers are exact modulo 2**32, as the additions they stand for. `vdpbf16ps` and `bfdot` take denormals for zeros, and
add the two products of a lane before the accumulator, each sum rounded: within depth * 2**-24 of the sum of magnitudes.
"""

from __future__ import annotations

from typing import Any

from .expr import TensorExpr, cast, reduce
from .index import Axis
from .intrinsic import Emit, Intrinsic, declare
from .types import TensorType


def dot_lanes(lanes: int, depth: int, a: str, b: str, acc: str) -> TensorExpr:
    """out[n] = sum(k < depth) acc(x0[n, k]) * acc(x1[n, k]) for n < lanes."""
    k = Axis("k", depth)
    types = [TensorType((lanes, depth), a), TensorType((lanes, depth), b)]
    return TensorExpr.build(
        types, (lanes,), lambda x, y: lambda n: reduce("sum", [k], cast(x[n, k], acc) * cast(y[n, k], acc))
    )


def call(name: str, element: str = "") -> Emit:
    """An LLVM intrinsic of (accumulator, registers…); `element`: the registers' element type, if not what they hold."""

    def emit(builder: Any, accumulator: Any, *registers: Any) -> Any:
        from llvmlite import ir

        if element:
            named = ir.VectorType(_NamedType(element), registers[0].type.count)
            registers = tuple(builder.bitcast(r, named) for r in registers)
        operands = [accumulator, *registers]
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(accumulator.type, [o.type for o in operands])
            function = ir.Function(builder.module, kind, name)
        return builder.call(function, operands)

    return emit


def _NamedType(name: str) -> Any:
    """An LLVM type that llvmlite has no class for, by its name."""
    from llvmlite import ir

    class Named(ir.Type):
        def _to_string(self) -> str:
            return name

        def __eq__(self, other: object) -> bool:
            return str(self) == str(other)

        def __hash__(self) -> int:
            return hash(name)

    return Named()


def _word_pairs(builder: Any, a: Any, b: Any) -> Any:
    """`vpmaddwd`: sums of two products of 16-bit integers (wrong only for four times -32768, where int32 wraps too)."""
    from llvmlite import ir

    lanes = a.type.count // 2
    name = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[lanes]
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VectorType(ir.IntType(32), lanes), [a.type, b.type])
        function = ir.Function(builder.module, kind, name)
    return builder.call(function, [a, b])


def words(builder: Any, accumulator: Any, a: Any, b: Any) -> Any:
    return builder.add(accumulator, _word_pairs(builder, a, b))


def widened(left: str, right: str) -> Emit:
    """8-bit operands as 16-bit ones: exact, where `vpmaddubsw` would saturate. `left`, `right`: zext or sext."""

    def emit(builder: Any, accumulator: Any, a: Any, b: Any) -> Any:
        from llvmlite import ir

        wide = ir.VectorType(ir.IntType(16), a.type.count)
        return words(builder, accumulator, getattr(builder, left)(a, wide), getattr(builder, right)(b, wide))

    return emit


# --- x86: four bytes a lane, or two 16-bit numbers -------------------------------------------------------------------


def _x86(name: str, feature: str, expr: TensorExpr, emit: Emit, rate: float = 1.0, repeat: float = 1.0) -> None:
    declare(Intrinsic(name, expr, "x86_64", (feature,), emit, rate, repeat))


_DPBUSD, _DPBF16 = "llvm.x86.avx512.vpdpbusd", "llvm.x86.avx512bf16.dpbf16ps"
_x86("vpdpbusd_512", "avx512vnni", dot_lanes(16, 4, "u8", "i8", "i32"), call(f"{_DPBUSD}.512"))
_x86("vpdpbusd_256", "avxvnni", dot_lanes(8, 4, "u8", "i8", "i32"), call(f"{_DPBUSD}.256"))
# `repeat` as measured on a Zen 4: a tile of 16 rows and one vector runs at 72 % of the peak, of 8 rows and two at 99 %.
_BF16 = dot_lanes(16, 2, "bf16", "bf16", "f32")
_x86("vdpbf16ps_512", "avx512bf16", _BF16, call(f"{_DPBF16}.512", "bfloat"), repeat=1.35)
for _lanes, _feature in ((16, "avx512bw"), (8, "avx2")):
    _x86(f"vpmaddwd_{32 * _lanes}", _feature, dot_lanes(_lanes, 2, "i16", "i16", "i32"), words, rate=0.5)
    _x86(f"vpmaddwd_u8_{32 * _lanes}", _feature, dot_lanes(_lanes, 2, "u8", "i8", "i32"), widened("zext", "sext"), 0.4)
    _x86(f"vpmaddwd_i8_{32 * _lanes}", _feature, dot_lanes(_lanes, 2, "i8", "i8", "i32"), widened("sext", "sext"), 0.4)

# --- ARM: four bytes a lane, or two bfloat16 -------------------------------------------------------------------------


def _arm(name: str, feature: str, expr: TensorExpr, emit: Emit) -> None:
    declare(Intrinsic(name, expr, "aarch64", (feature,), emit))


_NEON = "llvm.aarch64.neon"
_arm("udot", "dotprod", dot_lanes(4, 4, "u8", "u8", "i32"), call(f"{_NEON}.udot.v4i32.v16i8"))
_arm("sdot", "dotprod", dot_lanes(4, 4, "i8", "i8", "i32"), call(f"{_NEON}.sdot.v4i32.v16i8"))
_arm("usdot", "i8mm", dot_lanes(4, 4, "u8", "i8", "i32"), call(f"{_NEON}.usdot.v4i32.v16i8"))
_arm("bfdot", "bf16", dot_lanes(4, 2, "bf16", "bf16", "f32"), call(f"{_NEON}.bfdot.v4f32.v8bf16", "bfloat"))
