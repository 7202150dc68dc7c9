"""The table of machine instructions, each declared once: its meaning, what a target must have, its code.

Throughputs are relative to the target's multiply-add: Intel's and AMD's cores start as many `vpdpbusd` and
`vdpbf16ps` a cycle as `vfmadd` of the same width (uops.info; `benchmarks/limits.py` measures it here).
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


def widened_pairs(builder: Any, accumulator: Any, a: Any, b: Any) -> Any:
    """u8 x s8 by AVX2's multiply-add of 16-bit pairs: exact, where `vpmaddubsw` would saturate."""
    from llvmlite import ir

    wide = ir.VectorType(ir.IntType(16), a.type.count)
    return builder.add(accumulator, _pmaddwd(builder, builder.zext(a, wide), builder.sext(b, wide)))


def _pmaddwd(builder: Any, a: Any, b: Any) -> Any:
    from llvmlite import ir

    name = "llvm.x86.avx2.pmadd.wd"
    function = builder.module.globals.get(name)
    if function is None:
        result = ir.VectorType(ir.IntType(32), a.type.count // 2)
        function = ir.Function(builder.module, ir.FunctionType(result, [a.type, b.type]), name)
    return builder.call(function, [a, b])


def word_pairs(builder: Any, accumulator: Any, a: Any, b: Any) -> Any:
    """s16 x s16 in pairs (their sum overflows for four times -32768 only, and then wraps as int32 does)."""
    return builder.add(accumulator, _pmaddwd(builder, a, b))


# --- x86: four bytes, or two bfloat16, a lane ------------------------------------------------------------------------

U8S8_16, U8S8_8 = (dot_lanes(n, 4, "u8", "i8", "i32") for n in (16, 8))
declare(Intrinsic("vpdpbusd_512", U8S8_16, "x86_64", ("avx512vnni",), call("llvm.x86.avx512.vpdpbusd.512")))
declare(Intrinsic("vpdpbusd_256", U8S8_8, "x86_64", ("avxvnni",), call("llvm.x86.avx512.vpdpbusd.256")))
declare(Intrinsic("vpmaddwd_u8s8", dot_lanes(8, 2, "u8", "i8", "i32"), "x86_64", ("avx2",), widened_pairs, rate=0.4))
declare(Intrinsic("vpmaddwd", dot_lanes(8, 2, "i16", "i16", "i32"), "x86_64", ("avx2",), word_pairs, rate=0.7))

BF16_16, BF16_4 = (dot_lanes(n, 2, "bf16", "bf16", "f32") for n in (16, 4))
_BF16 = "llvm.x86.avx512bf16.dpbf16ps"
# `repeat` as measured on a Zen 4: a tile of 16 rows and one vector runs at 72 % of the peak, of 8 rows and two at 99 %.
declare(Intrinsic("vdpbf16ps_512", BF16_16, "x86_64", ("avx512bf16",), call(f"{_BF16}.512", "bfloat"), repeat=1.35))

# --- ARM: four bytes a lane ------------------------------------------------------------------------------------------

_NEON = "v4i32.v16i8"
declare(Intrinsic("udot", dot_lanes(4, 4, "u8", "u8", "i32"), "aarch64", ("dotprod",), call(f"llvm.aarch64.neon.udot.{_NEON}")))
declare(Intrinsic("sdot", dot_lanes(4, 4, "i8", "i8", "i32"), "aarch64", ("dotprod",), call(f"llvm.aarch64.neon.sdot.{_NEON}")))
declare(Intrinsic("usdot", dot_lanes(4, 4, "u8", "i8", "i32"), "aarch64", ("i8mm",), call(f"llvm.aarch64.neon.usdot.{_NEON}")))
declare(Intrinsic("bfdot", BF16_4, "aarch64", ("bf16",), call("llvm.aarch64.neon.bfdot.v4f32.v8bf16", "bfloat")))
