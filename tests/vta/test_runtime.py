"""The runtime: tokens on the right instructions, micro-op kernels that survive eviction, streams that are split."""

import numpy as np
import pytest

from nestegg.vta.asm import disassemble
from nestegg.vta.check import check
from nestegg.vta.config import DEFAULT, Config, Memory
from nestegg.vta.errors import ProgramError
from nestegg.vta.functional import run, run_all
from nestegg.vta.isa import AluOp
from nestegg.vta.layout import pack
from nestegg.vta.program import Program
from nestegg.vta.runtime import Builder, Dram, Loop, Streams
from nestegg.vta.tokens import Queue


def add_one(builder: Builder, count: int = 4) -> Program:
    """Load accumulators, add 1, store."""
    values = np.arange(count * 16).reshape(count, 1, 16)
    source = builder.dram.holding("source", pack(values, DEFAULT, Memory.ACC))
    target = builder.dram.buffer("target", count * 16)
    builder.load(Memory.ACC, source, 0, 0, 1, count, count)
    builder.alu(AluOp.ADD, [(0, 0, 0)], inner=Loop(count, 1, 1), immediate=1)
    builder.push(Queue.C2S)
    builder.pop(Queue.C2S)
    builder.store(target, 0, 0, 1, count, count)
    return builder.finish([target])


def test_the_smallest_program():
    program = add_one(Builder())
    assert check(program) == []
    out = program.outputs[0]
    result = run(program).dram[out.address : out.address + out.size].view(np.int8)
    assert result.tolist() == list(range(1, 65))
    assert [line.split()[0] for line in disassemble(program.code)] == [
        *("load.uop", "load.acc", "alu.add", "store.out", "load.uop", "finish"),
    ]
    # The push is on the ALU instruction, the pop on the store: no no-ops but the one before FINISH.
    assert disassemble(program.code)[2].endswith("push_next")
    assert disassemble(program.code)[3].endswith("pop_prev push_prev")


def test_tokens_that_need_no_ops():
    builder = Builder()
    source = builder.dram.buffer("source", 4096)
    builder.push(Queue.C2L)  # nothing to carry it
    builder.push(Queue.C2L)  # the no-op carries one already
    builder.pop(Queue.C2L)
    builder.pop(Queue.C2L)  # pending already
    builder.load(Memory.INP, source, 0, 0, 1, 1, 1)
    builder.push(Queue.L2C)
    builder.pop(Queue.L2C)
    builder.push(Queue.C2L)  # a pop is pending, which comes first
    lines = disassemble(builder.finish(wait_for=[Queue.C2L]).code)
    assert lines == [
        "load.uop push_prev",
        "load.uop push_prev",
        "load.inp pop_next",
        "load.inp dram=0x100 y=1 x=1 stride=1 pop_next push_next",
        "load.uop pop_prev push_prev",
        "load.inp pop_next push_next",
        "load.uop pop_prev",
        "finish",
    ]


def test_a_resident_kernel_is_not_loaded_again():
    builder = Builder()
    for _ in range(3):
        builder.gemm([(0, 0, 0), (1, 0, 0)], reset=True)
        builder.gemm([(2, 0, 0)], reset=True)
    lines = disassemble(builder.finish().code)
    assert [line.split()[0] for line in lines] == ["load.uop", *["gemm"] * 6, "finish"]


def test_evicted_kernels_keep_their_micro_ops():
    """What the original runtime got wrong: more micro-ops in a stream than the buffer holds."""
    config = Config(log_uop_buff_size=6)  # 16 micro-ops
    builder = Builder(config)
    count = 40
    source = builder.dram.holding("source", pack(np.zeros((1, 1, 16)), config, Memory.ACC))
    target = builder.dram.buffer("target", count * 16)
    for i in range(count):
        builder.load(Memory.ACC, source, 0, i, 1, 1, 1)
    for i in [*range(count), *range(count)]:  # 3 micro-ops each, and each is loaded twice
        builder.alu(AluOp.ADD, [(i, i, 0), (i + 100, i + 100, 0), (i, i, 0)], immediate=i)
    builder.push(Queue.C2S)
    builder.pop(Queue.C2S)
    builder.store(target, 0, 0, 1, count, count)
    program = builder.finish([target])
    assert check(program) == []
    loads = [line for line in disassemble(program.code, config) if line.startswith("load.uop sram") or "dram=" in line]
    # Five fit and come first; the ring has evicted each before its second use.
    assert len([line for line in loads if line.startswith("load.uop")]) == 1 + (count - 5) + count
    assert len(program.uops) == 4 * 3 * count  # in DRAM each is once
    found = run(program).dram[target.address : target.address + target.size].view(np.int8)
    assert found.reshape(count, 16)[:, 0].tolist() == [4 * i - (256 if 4 * i > 127 else 0) for i in range(count)]


def test_long_work_is_split_into_several_programs():
    streams = Streams(limit=24)
    values = np.zeros((1, 1, 16))
    source = streams.dram.holding("source", pack(values, DEFAULT, Memory.ACC))
    results = streams.dram.buffer("results", 10 * 16)
    for i in range(10):
        builder = streams.split(room=6)
        builder.load(Memory.ACC, source, 0, i, 1, 1, 1)
        builder.alu(AluOp.ADD, [(i, i, 0)], immediate=i)
        builder.push(Queue.C2S)
        builder.pop(Queue.C2S)
        builder.store(results, i, i, 1, 1, 1)
    programs = streams.finish([results])
    assert len(programs) > 2
    assert all(check(p) == [] and len(p.stream) <= 24 for p in programs)
    found = run_all(programs).dram[results.address : results.address + results.size]
    assert found.reshape(10, 16)[:, 3].tolist() == list(range(10))


def test_mistakes_are_refused():
    builder = Builder(limit=2)
    small = builder.dram.buffer("small", 64)
    with pytest.raises(ProgramError, match=r"buffer small: elements 0 … 5 leave its 64 bytes"):
        builder.load(Memory.INP, small, 0, 0, 1, 5, 5)
    with pytest.raises(ProgramError, match="a micro-op kernel of 0: the buffer holds 8192"):
        builder.gemm([])
    for sram in (0, 1):
        builder.load(Memory.INP, small, 0, sram, 1, 1, 1)
    with pytest.raises(ProgramError, match="more than 2 instructions: split the stream"):
        builder.load(Memory.INP, small, 0, 2, 1, 1, 1)
    with pytest.raises(ProgramError, match="buffer x: 3 bytes of data do not fit 2"):
        Dram().buffer("x", 2, b"abc")


def test_buffers_are_aligned_to_elements():
    dram = Dram()
    first, second = dram.buffer("a", 1), dram.buffer("b", 5000)
    assert (first.address, second.address) == (0x1000, 0x2000)
    assert second.element(DEFAULT, Memory.WGT, 3) == 0x20 + 3
