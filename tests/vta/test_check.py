"""The checker: every code has a program that trips it, alone, and that is legal without the fault."""

import numpy as np
import pytest
from hypothesis import given

from nestegg.testing.vta_programs import vta_programs
from nestegg.vta import asm
from nestegg.vta.check import check, errors, vector_clocks
from nestegg.vta.legality import CODES
from nestegg.vta.program import Program

#: Loads, GEMM, ALU, store, and the tokens between them. Tests change a line of it.
LEGAL = """
.dram 0x20000
.uops 0x8000
uop 0 0 0
uop 1 0 0
.code 0x1000
load.uop dram=0x2000 y=1 x=2 stride=2
load.inp dram=0x1000 y=2 x=3 stride=4
load.wgt dram=0x110 y=1 x=2 stride=2 push_next
gemm uop=0:1 iter=1,8 dst=0,1 reset
gemm uop=0:2 iter=2,2 dst=2,0 src=1,1 wgt=1,0 pop_prev
alu.shr uop=0:1 iter=2,4 dst=4,1 src=4,1 imm=4 push_next
store.out dram=0x1800 y=2 x=4 stride=8 pop_prev push_prev
load.uop pop_next
finish
"""
SHR = "alu.shr uop=0:1 iter=2,4 dst=4,1 src=4,1 imm=4 push_next"
STORE = "store.out dram=0x1800 y=2 x=4 stride=8 pop_prev push_prev"
INP = "load.inp dram=0x1000 y=2 x=3 stride=4"
WGT = "load.wgt dram=0x110 y=1 x=2 stride=2 push_next"
UOP = "load.uop dram=0x2000 y=1 x=2 stride=2"
GEMM = "gemm uop=0:2 iter=2,2 dst=2,0 src=1,1 wgt=1,0 pop_prev"

#: code, the line that is replaced, what by
FAULTS = [
    ("V101", "finish", "raw 05000000000000000000000000000000\nfinish"),
    ("V102", STORE, STORE.replace("store.out", "store.inp")),
    ("V103", INP, f"{INP} push_prev"),
    ("V104", "finish", "raw 03000000000000000000000000000080"),
    ("V105", "finish", "raw 0428200510008003c009007002d00800\nfinish"),
    ("V201", GEMM, GEMM.replace("uop=0:2", "uop=2:2")),
    ("V201", GEMM, GEMM.replace("uop=0:2", "uop=0:8193")),
    ("V202", GEMM, GEMM.replace("iter=2,2", "iter=2,0")),
    ("V301", GEMM, GEMM.replace("dst=2,0", "dst=2047,0")),
    ("V301", SHR, SHR.replace("dst=4,1 src=4,1", "dst=2047,1 src=2047,1")),
    ("V302", GEMM, GEMM.replace("src=1,1", "src=1024,1024")),
    ("V303", GEMM, GEMM.replace("wgt=1,0", "wgt=1023,1")),
    ("V304", GEMM, GEMM.replace("uop=0:2", "uop=0:3")),
    ("V401", INP, INP.replace("dram", "sram=2043 dram")),
    ("V402", STORE, STORE.replace("dram", "sram=2041 dram")),
    ("V403", STORE, f"{STORE} xpad=1,0"),
    ("V404", INP, INP.replace("y=2", "y=0")),
    ("V405", UOP, UOP.replace("y=1", "y=2")),
    ("V406", WGT, f"{WGT} xpad=1,0"),
    ("V601", INP, INP.replace("0x1000", "0x1fff")),
    ("V602", STORE, STORE.replace("0x1800", "0x100")),
    ("V602", STORE, STORE.replace("0x1800", "0x800")),
    ("V701", SHR, SHR.replace("imm=4", "imm=32")),
    ("V702", SHR, SHR.replace("imm=4", "imm=-16")),
    ("V801", SHR, SHR.replace("src=4,1", "src=0,1")),
    ("V801", SHR, SHR.replace("uop=0:1", "uop=1:2")),
    ("V901", GEMM, GEMM.replace(" pop_prev", "\nload.uop pop_prev")),
    ("V902", "load.uop pop_next", "load.acc dram=0x602 y=1 x=1 stride=1\nload.uop pop_next"),
    ("V1001", SHR, SHR.replace("dst=4,1 src=4,1", "dst=4,0 src=4,0")),
    ("V1001", SHR, SHR.replace("dst=4,1 src=4,1 imm=4", "dst=4,1 src=4,0")),
    ("V1001", SHR, f"alu.add uop=0:2 iter=1,4 dst=0,2 src=0,2\n{SHR}"),
    ("V1101", INP, INP.replace("y=2 x=3", "y=1 x=2048")),
    ("V1202", INP, "\n".join([*["load.uop pop_prev"] * 514, *["load.inp push_next"] * 514, INP])),
    ("V1301", SHR, SHR.replace("shr", "mul")),
    ("V1401", "finish", "load.uop"),
    ("V1402", "finish", "finish\nload.uop"),
    ("V1403", "finish", "load.inp push_next\nfinish pop_prev"),
    ("V1404", "finish", "load.inp\nfinish"),
    ("V1501", STORE, STORE.replace(" push_prev", "")),
    ("V1502", INP, f"{INP} push_next"),
    ("V1601", SHR, SHR.replace("push_next", "\ngemm uop=1:2 iter=1,1 reset push_next")),
]  # fmt: skip


def codes(program: Program) -> list[str]:
    return [f.code for f in check(program)]


def test_the_legal_program_has_no_finding():
    assert check(asm.assemble(LEGAL)) == []


@pytest.mark.parametrize(("code", "line", "other"), FAULTS, ids=[f"{f[0]}-{i}" for i, f in enumerate(FAULTS)])
def test_a_fault_is_found_under_its_code(code, line, other):
    assert LEGAL.count(f"{line}\n") == 1
    found = check(asm.assemble(LEGAL.replace(f"{line}\n", f"{other}\n")))
    assert code in [f.code for f in found], found
    assert all(str(f).startswith(f.code) for f in found)


def test_every_code_has_a_fault():
    elsewhere = {
        "V501",  # needs an image of more than 4 GiB, which `Program` refuses: see below
        "V703",  # data: test_functional
        "V1201",  # below
        "V1602",  # the simulator's limit: test_functional
        "V1603",  # below
    }
    assert {code for code, *_ in FAULTS} | elsewhere == set(CODES)


def test_addresses_above_4_gib():
    text = LEGAL.replace(WGT, WGT.replace("0x110", "0xffffff0"))
    assert {"V501", "V601"} <= set(codes(asm.assemble(text)))


def test_code_that_is_cut_off():
    program = asm.assemble(LEGAL)
    cut = Program(program.config, program.code[:-1], program.code_address, program.uops, program.uop_address)
    assert codes(cut) == ["V1603"]


@pytest.mark.parametrize(("more", "expected"), [(254, []), (255, ["V1201"])])
def test_more_tokens_than_the_hardware_counts(more, expected):
    # Compute may be so late that none of them has been taken when the last one comes.
    text = LEGAL.replace(f"{WGT}\n", f"{WGT}\n" + "load.inp push_next\n" * more)
    text = text.replace("load.uop pop_next\n", "load.uop pop_next\n" + "load.uop pop_prev\n" * more)
    assert codes(asm.assemble(text)) == expected


def test_a_deadlock_is_explained():
    (finding,) = errors(check(asm.assemble(LEGAL.replace(f"{WGT}\n", f"{WGT.replace(' push_next', '')}\n"))))
    assert finding.code == "V1501"
    assert "compute: instruction 4 waits for load->compute (nobody pushes it)" in finding.detail


def test_a_race_names_both_instructions():
    text = LEGAL.replace(GEMM, GEMM.replace(" pop_prev", "\nload.uop pop_prev"))
    races = [f for f in check(asm.assemble(text)) if f.code == "V901"]
    assert [(f.index, f.detail) for f in races] == [(4, "INP, with instruction 1")]


def test_vector_clocks():
    program = asm.assemble(LEGAL)
    order, clocks = vector_clocks(program.stream)
    assert sorted(order) == list(range(len(program.stream)))
    # The second GEMM begins after both loads and the two compute instructions before it.
    assert clocks[4] == (2, 2, 0)
    # The store's clock has all of that, and the GEMM and ALU instructions.
    assert clocks[6] == (2, 4, 0)
    assert clocks[8] == (2, 5, 1)


@given(program=vta_programs())
def test_a_dropped_token_is_always_noticed(program):
    for name in ("pop_prev", "pop_next", "push_prev", "push_next"):
        for index in np.flatnonzero(program.stream[name]):
            damaged = program.stream.copy()
            damaged[name][index] = 0
            code = asm.isa.encode(damaged, program.config)
            changed = Program(
                *(program.config, code, program.code_address, program.uops, program.uop_address),
                *(program.data, program.outputs, program.dram_bytes),
            )
            assert errors(check(changed)), (name, index)
