"""Instructions over operands of any width: what the elementary functions of `vecmath.py` are written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from ..ir.target import TABLES
from .llvm_types import first_lanes, has_feature, joined, picked, widened

F32, F64 = ir.FloatType(), ir.DoubleType()
I32, I64 = ir.IntType(32), ir.IntType(64)
SIXTEEN = 16  # lanes of float32 in AVX-512's registers
_CURRENT_ROUNDING = ir.Constant(I32, 4)
_LEAST_MAGNITUDE = ir.Constant(I32, 2)  # of both operands, with the sign of the first
_FUSE = ("contract",)  # fmul + fadd may become one FMA (`llvm.fma` is a libm call on targets without it)


def type_of(value: ir.Value) -> Any:
    """`value.type`, which llvmlite does not declare on its base class."""
    return value.type


class Splat(ir.Constant):
    """A vector constant of equal elements, in LLVM's short form `splat (float 1.0)`."""

    def __init__(self, typ: ir.Type, number: float):
        super().__init__(typ, number)
        self.number = number

    def _get_reference(self) -> str:
        first = self.constant[0]
        return f"splat ({first.type} {first.get_reference()})"


@dataclass(frozen=True)
class Lanes:
    """Instructions over operands of one shape: `count` elements in a vector, or scalars if it is None.

    `b` is the `ir.IRBuilder`; llvmlite's decorators hide from type checkers what its methods return.
    """

    b: Any
    count: int | None

    @classmethod
    def of(cls, builder: ir.IRBuilder, value: ir.Value) -> Lanes:
        typ = type_of(value)
        return cls(builder, typ.count if isinstance(typ, ir.VectorType) else None)

    def type(self, element: ir.Type) -> ir.Type:
        return element if self.count is None else ir.VectorType(element, self.count)

    def const(self, number: float, element: ir.Type = F32) -> ir.Constant:
        return ir.Constant(element, number) if self.count is None else Splat(self.type(element), number)

    def like(self, number: float, x: ir.Value) -> ir.Constant:
        """A constant of x's type."""
        return self.const(number, type_of(x) if self.count is None else type_of(x).element)

    def _operands(self, x: ir.Value | float, y: ir.Value | float) -> tuple[ir.Value, ir.Value]:
        if not isinstance(x, ir.Value):
            assert isinstance(y, ir.Value)
            return self.like(x, y), y
        return x, y if isinstance(y, ir.Value) else self.like(y, x)

    # Arithmetic; one operand of each may be a Python number.

    def add(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fadd(*self._operands(x, y), flags=_FUSE)

    def sub(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fsub(*self._operands(x, y), flags=_FUSE)

    def difference(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        """As `sub`, of rounded operands: a difference to a maximum of products is not above 0, as it might be with a
        product that one instruction multiplies and subtracts from (a softmax of 1e10 would then be infinite)."""
        return self.b.fsub(*self._operands(x, y))

    def mul(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fmul(*self._operands(x, y), flags=_FUSE)

    def product(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        """As `mul`, rounded before anything is added: 1 + erf(x) is 0 where erf(x) rounds to -1."""
        return self.b.fmul(*self._operands(x, y))

    def div(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fdiv(*self._operands(x, y))

    def fma(self, x: ir.Value, y: ir.Value | float, z: ir.Value | float) -> ir.Value:
        """x * y + z, fused where the target can."""
        return self.add(self.mul(x, y), z)

    def horner(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        """The polynomial with these coefficients, that of x**0 first."""
        *rest, last = coefficients
        value: ir.Value = self.like(last, x)
        for c in reversed(rest):
            value = self.fma(value, x, c)
        return value

    # Comparison and choice.

    def less(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fcmp_ordered("<", *self._operands(x, y))

    def equal(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fcmp_ordered("==", *self._operands(x, y))

    def where(self, condition: ir.Value, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.select(condition, *self._operands(x, y))

    def at_most(self, x: ir.Value, bound: float) -> ir.Value:
        """min(x, bound) that passes NaN on; one `vminps`."""
        return self.where(self.less(bound, x), bound, x)

    def at_least(self, x: ir.Value, bound: float) -> ir.Value:
        """max(x, bound) that passes NaN on; one `vmaxps`."""
        return self.where(self.less(x, bound), bound, x)

    # Bits, and what LLVM names by intrinsics.

    def bits(self, x: ir.Value, element: ir.Type = I32) -> ir.Value:
        return self.b.bitcast(x, self.type(element))

    def from_bits(self, x: ir.Value, element: ir.Type = F32) -> ir.Value:
        return self.b.bitcast(x, self.type(element))

    def int(self, number: int, element: ir.Type = I32) -> ir.Constant:
        return self.const(number, element)

    def intrinsic(self, name: str, *args: ir.Value) -> ir.Value:
        """Call `llvm.<name>` for the operands' type (`declare_intrinsic` refuses vectors)."""
        typ = type_of(args[0])
        element = typ if self.count is None else typ.element
        suffix = element.intrinsic_name if self.count is None else f"v{self.count}{element.intrinsic_name}"
        return self.b.call(declare(self.b.module, f"llvm.{name}.{suffix}", typ, [typ] * len(args)), args)

    # What AVX-512 has (`TABLES`), in registers of 16 lanes.

    @property
    def tables(self) -> bool:
        """`lookup`, `scaled` and `within` are an instruction each."""
        return has_feature(self.b.module, TABLES)

    def lookup(self, table: Sequence[float], index: ir.Value) -> ir.Value:
        """The entry of a table of 16 that the low four bits of each index name: `vpermps`."""
        vector, places = ir.VectorType(F32, SIXTEEN), ir.VectorType(I32, SIXTEEN)
        function = declare(self.b.module, "llvm.x86.avx512.permvar.sf.512", vector, [vector, places])
        entries = ir.Constant(vector, [float(entry) for entry in table])
        return self._by_sixteen(lambda k: self.b.call(function, [entries, k]), index)

    def scaled(self, x: ir.Value, n: ir.Value) -> ir.Value:
        """x * 2**floor(n), rounded once: `vscalefps`."""
        return self._by_sixteen(lambda x, n: self._masked("scalef", x, n, _CURRENT_ROUNDING), x, n)

    def within(self, x: ir.Value, bound: float) -> ir.Value:
        """x in [-bound, bound] or the nearest of its ends, and some number in it for NaN: `vrangeps`."""
        limit = Splat(ir.VectorType(F32, SIXTEEN), bound)
        return self._by_sixteen(lambda x: self._masked("range", x, limit, _LEAST_MAGNITUDE, _CURRENT_ROUNDING), x)

    def _masked(self, name: str, x: ir.Value, y: ir.Value, *options: ir.Value) -> ir.Value:
        """An instruction that LLVM knows with a mask only, unmasked. `options`: those before the mask, then those after
        (one option is one after)."""
        vector, mask = type_of(x), ir.IntType(SIXTEEN)
        before, after = options[:-1], options[-1]
        args = [x, y, *before, ir.Constant(vector, ir.Undefined), ir.Constant(mask, -1), after]
        full = f"llvm.x86.avx512.mask.{name}.ps.512"
        return self.b.call(declare(self.b.module, full, vector, [type_of(a) for a in args]), args)

    def _by_sixteen(self, emit: Callable[..., ir.Value], *operands: ir.Value) -> ir.Value:
        """`emit` of vectors of 16 lanes, for operands of any width: filled up with anything, or cut into several."""
        lanes = self.count or 1
        if lanes <= SIXTEEN:
            return first_lanes(self.b, emit(*(widened(self.b, x, SIXTEEN) for x in operands)), lanes)
        whole = None
        for first in range(0, lanes, SIXTEEN):
            places = [min(first + k, lanes - 1) for k in range(SIXTEEN)]
            part = emit(*(picked(self.b, x, places) for x in operands))
            whole = part if whole is None else joined(self.b, whole, part)
        assert whole is not None
        return first_lanes(self.b, whole, lanes)

    def abs(self, x: ir.Value) -> ir.Value:
        return self.intrinsic("fabs", x)

    def with_sign(self, x: ir.Value, sign: ir.Value) -> ir.Value:
        return self.intrinsic("copysign", x, sign)


def declare(module: ir.Module, name: str, result: ir.Type, args: Sequence[ir.Type]) -> ir.Function:
    """The function `name` of the module, declared when it is not there yet."""
    if name not in module.globals:
        ir.Function(module, ir.FunctionType(result, args), name)
    return module.globals[name]
