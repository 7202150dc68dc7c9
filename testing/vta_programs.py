"""Hypothesis strategies for VTA programs: legal ones of every shape, and damaged ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from ..vta.config import DEFAULT, Config, Memory
from ..vta.isa import AluOp
from ..vta.layout import element_bits, element_shape, pack
from ..vta.program import Program
from ..vta.runtime import Buffer, Builder, Loop
from ..vta.tokens import Queue

#: Configurations that programs are drawn for, by what is special about them.
CONFIGS = (
    DEFAULT,
    Config(log_batch=1),
    Config(log_block=5),
    Config(log_inp_width=2, log_wgt_width=2, log_inp_buff_size=14, log_wgt_buff_size=17),
    Config(log_wgt_width=2, log_wgt_buff_size=17),
    Config.from_name("4x8_i8w8a32_15_16_16_18"),
    Config.from_name("1x1_i8w8a32_10_8_6_10"),
    Config.from_name("1x8_i16w8a32_9_12_12_13"),
)
_ELEMENTS = 32  # of each buffer that a program uses; two slots of half of it
_SLOT = _ELEMENTS // 2

Draw = Callable[..., int]


@st.composite
def vta_programs(draw: st.DrawFn, configs: tuple[Config, ...] = CONFIGS) -> Program:
    """A program that keeps every rule of the checker: loads, GEMMs, ALU operations and stores in two buffer slots,
    with tokens that let the units run ahead of each other as far as the data allow.
    """
    config = draw(st.sampled_from(configs))
    builder = Builder(config)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    buffers = {m: _filled(builder, config, m, rng) for m in (Memory.INP, Memory.WGT, Memory.ACC)}
    results = builder.dram.buffer("results", 8 * _SLOT * config.element_bytes(Memory.OUT))

    def integer(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    steps = integer(1, 4)
    for step in range(steps):
        _step(builder, buffers, results, step, integer)
    stored = min(steps, 2)
    return builder.finish([results], wait_for=[Queue.S2C] * stored + [Queue.C2L] * stored)


def _filled(builder: Builder, config: Config, memory: Memory, rng: np.random.Generator) -> Buffer:
    bits = min(16, element_bits(config, memory))
    values = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (_ELEMENTS, *element_shape(config, memory)))
    return builder.dram.holding(memory.name.lower(), pack(values, config, memory))


def _step(builder: Builder, buffers: dict[Memory, Buffer], results: Buffer, step: int, integer: Draw) -> None:
    slot = step % 2 * _SLOT
    if step >= 2:
        builder.pop(Queue.C2L)
    for memory in (Memory.INP, Memory.WGT):
        _load(builder, memory, buffers[memory], slot, integer)
    builder.push(Queue.L2C)
    if step >= 2:
        builder.pop(Queue.S2C)
    if integer(0, 1):
        _load(builder, Memory.ACC, buffers[Memory.ACC], slot, integer)
    else:
        builder.gemm([(slot, 0, 0)], inner=Loop(_SLOT, 1), reset=True)
    builder.pop(Queue.L2C)
    for _ in range(integer(1, 3)):
        _gemm(builder, slot, integer)
    builder.push(Queue.C2L)
    for _ in range(integer(0, 2)):
        _alu(builder, slot, integer)
    # Every element's last writer is an ALU instruction: all may be stored.
    builder.alu(AluOp.SHR, [(slot, slot, 0)], inner=Loop(_SLOT, 1, 1), immediate=integer(0, 8))
    builder.push(Queue.C2S)
    builder.pop(Queue.C2S)
    rows = integer(1, 4)
    builder.store(results, step * 2 * _SLOT, slot + integer(0, 3), rows, integer(1, 3), integer(3, 8))
    builder.push(Queue.S2C)


def _load(builder: Builder, memory: Memory, buffer: Buffer, slot: int, integer: Draw) -> None:
    """A rectangle with padding that fits a slot."""
    pads = [0, 0, 0, 0] if memory == Memory.WGT else [integer(0, 1) for _ in range(4)]
    rows, columns = integer(1, 2), integer(1, 3)
    total = (rows + pads[0] + pads[1]) * (columns + pads[2] + pads[3])
    at = slot + integer(0, max(0, _SLOT - total)) if total <= _SLOT else slot
    if total > _SLOT:
        pads = [0, 0, 0, 0]
    offset, stride = integer(0, 8), integer(3, 8)
    builder.load(memory, buffer, offset, at, rows, columns, stride, (pads[0], pads[1]), (pads[2], pads[3]))


def _gemm(builder: Builder, slot: int, integer: Draw) -> None:
    loops = [Loop(integer(1, 3), integer(0, 2), integer(0, 2), integer(0, 2)) for _ in range(2)]
    top = slot + _SLOT - 1 - 8  # two loops add at most 2 * 2 each
    kernel = [tuple(integer(slot, top) for _ in range(3)) for _ in range(integer(1, 5))]
    builder.gemm(kernel, *loops)  # type: ignore[arg-type]


def _alu(builder: Builder, slot: int, integer: Draw) -> None:
    op = AluOp(integer(0, 2))
    count = integer(1, 4)
    if integer(0, 1):
        kernel = [(slot + i, slot + i, 0) for i in range(count)]
        builder.alu(op, kernel, Loop(2, 8, 8), immediate=integer(-300, 300))
    else:  # sources in the other half of the slot: no iteration reads what one before it wrote
        kernel = [(slot + i, slot + 8 + integer(0, 4), 0) for i in range(count)]
        builder.alu(op, kernel, Loop(2, 4, 0))


@st.composite
def damaged_programs(draw: st.DrawFn) -> Program:
    """A program some of whose instruction or micro-op bytes have been changed at random."""
    program = draw(vta_programs())
    code, uops = bytearray(program.code), bytearray(program.uops)
    for _ in range(draw(st.integers(1, 6))):
        damaged = draw(st.sampled_from([code, code, uops]))
        damaged[draw(st.integers(0, len(damaged) - 1))] = draw(st.integers(0, 255))
    return Program(
        *(program.config, bytes(code), program.code_address, bytes(uops), program.uop_address),
        *(program.data, program.outputs, program.dram_bytes),
    )
