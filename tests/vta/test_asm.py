"""Assembly text: it says what the bytes say, both ways, and a wrong line is refused by its number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestegg.testing.vta_programs import vta_programs
from nestegg.vta import asm
from nestegg.vta.errors import AssemblyError, ConfigError, ProgramError
from nestegg.vta.program import Output, Program, Segment


def example() -> str:
    """The program in the module's own documentation."""
    return asm.__doc__.split("\n\n")[1]


def test_the_example_of_the_documentation():
    program = asm.assemble(example())
    assert len(program.stream) == 6
    assert program.outputs == (Output("result", 0x100000, 3136),)
    assert program.data == (Segment(0x40000, b"\x00\xff\x01"),)


@given(program=vta_programs())
def test_programs_round_trip(program):
    again = asm.assemble(asm.format_program(program))
    assert (again.code, again.uops, again.config) == (program.code, program.uops, program.config)
    assert (again.code_address, again.uop_address) == (program.code_address, program.uop_address)
    assert again.outputs == program.outputs
    assert (again.image() == program.image()).all()


@given(count=st.integers(1, 8), data=st.data())
def test_any_bytes_round_trip(count, data):
    code = data.draw(st.binary(min_size=16 * count, max_size=16 * count))
    assert asm.assemble("\n".join(asm.disassemble(code))).code == code


@given(program=vta_programs())
def test_folders_round_trip(tmp_path_factory, program):
    folder = tmp_path_factory.mktemp("program")
    program.save(folder)
    again = Program.load(folder)
    assert (again.code, again.uops, again.config, again.outputs) == (
        *(program.code, program.uops, program.config, program.outputs),
    )
    assert (again.image() == program.image()).all()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("jump 3", "jump: no such instruction or directive"),
        ("load.xyz sram=1", r"load\.xyz: no such instruction"),
        ("gemm imm=3", "gemm has no operand imm; it has uop, iter, dst"),
        ("load.inp sram=one", "one: not a number"),
        ("load.inp ypad=1", "wrong number or form of operands"),
        ("load.inp xpad=16,0", "x_pad_0=16 is outside 0 … 15"),
        ("uop 1 2", "wrong number or form of operands"),
        ("uop 1 2 1024", "wgt=1024 does not fit 10 bits"),
        ("raw 00", "give 32 hexadecimal digits"),
        (".data 0 0", "wrong number or form"),
        (".config 1x16", "write it as 1x16_i8w8a32"),
    ],
)
def test_a_wrong_line_is_refused(line, why):
    with pytest.raises(AssemblyError, match=f"line 2: .*{why}"):
        asm.assemble(f"finish\n{line} ; a comment\n")


def test_a_program_outside_of_its_memory_is_refused():
    with pytest.raises(ProgramError, match="lie outside a DRAM of 4096 bytes"):
        asm.assemble(".dram 0x1000\n.code 0x1000\nfinish")
    with pytest.raises(ProgramError, match="overlap: 0x1000 with 16 bytes and 0x1008"):
        asm.assemble(".code 0x1000\n.uops 0x1008\nfinish\nuop 0 0 0")


def test_a_malformed_folder_is_refused(tmp_path):
    with pytest.raises(ProgramError, match="no program can be read"):
        Program.load(tmp_path)
    asm.assemble("finish").save(tmp_path)
    meta = (tmp_path / "meta.json").read_text()
    (tmp_path / "meta.json").write_text(meta.replace('"insns"', '"code"'))
    with pytest.raises(ProgramError, match=r"meta.json: malformed \(KeyError: 'insns'\)"):
        Program.load(tmp_path)
    (tmp_path / "meta.json").write_text(meta.replace('"LOG_BLOCK": 4', '"LOG_BLOCK": 3'))
    with pytest.raises(ConfigError, match="micro-op has 32 bits"):
        Program.load(tmp_path)
