"""Instructions and micro-ops: golden encodings, and round trips in every configuration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestegg.vta import asm, isa
from nestegg.vta.config import DEFAULT, Config, Memory
from nestegg.vta.errors import ConfigError, EncodingError
from nestegg.vta.isa import Opcode, instruction

GOLDEN = [
    (
        "501500d0480000000300070009002143",
        "load.inp sram=5 dram=0x1234 y=3 x=7 stride=9 ypad=1,2 xpad=3,4 pop_next push_next",
    ),
    ("c0fc0ffcffffff030200120048000000", "load.wgt sram=0x3ff dram=0xffffffff y=2 x=18 stride=72 push_next"),
    ("08400000800000000100400040000000", "load.uop sram=16 dram=0x2000 y=1 x=64 stride=64 pop_prev"),
    ("f8010000000000000000000000000000", "load.acc pop_prev pop_next push_prev push_next"),
    ("291e00000c00000004000e0038000000", "store.out sram=7 dram=0x300 y=4 x=14 stride=56 pop_prev push_prev"),
    (
        "2a030005700012001c10800e0290c000",
        "gemm uop=3:40 iter=14,9 dst=28,2 src=58,1 wgt=9,3 pop_prev push_prev",
    ),
    ("82002000080000070008000000000000", "gemm uop=0:1 iter=1,896 dst=0,1 reset"),
    ("0428200510008003c009007002b00800", "alu.shr uop=40:41 iter=2,448 dst=448,1 src=448,1 imm=8"),
    ("442820050800000700080000029081ff", "alu.max uop=40:41 iter=1,896 dst=0,1 src=0,1 imm=-127 push_next"),
    ("04296005080002000000000000200000", "alu.add uop=41:43 iter=1,1"),
    ("03000000000000000000000000000000", "finish"),
]
GOLDEN_UOPS = [
    ("01e45580", (1025, 700, 513)),
    ("ff070000", (2047, 0, 0)),
    ("00f83f00", (0, 2047, 0)),
    ("0000c0ff", (0, 0, 1023)),
]
#: Configurations that the original functional simulator was seen to run, and the smallest micro-op buffers.
CONFIGS = [
    DEFAULT,
    Config(log_batch=1),
    Config(log_block=5),
    Config(log_inp_width=2, log_wgt_width=2, log_inp_buff_size=14, log_wgt_buff_size=17),
    Config(log_wgt_width=2, log_wgt_buff_size=17),
    Config.from_name("4x8_i8w8a32_15_16_16_18"),
    Config(log_uop_buff_size=4, log_acc_buff_size=12),
    Config(log_uop_buff_size=2),
]


@pytest.mark.parametrize(("code", "text"), GOLDEN, ids=[code for code, _ in GOLDEN])
def test_golden_instructions(code, text):
    stream = asm.instructions(text)
    assert isa.encode(stream, DEFAULT).hex() == code
    assert np.array_equal(isa.decode(bytes.fromhex(code), DEFAULT), stream)
    assert not len(isa.reserved_bits(bytes.fromhex(code), DEFAULT))


@pytest.mark.parametrize(("code", "op"), GOLDEN_UOPS)
def test_golden_uops(code, op):
    assert isa.encode_uops(isa.uops([op]), DEFAULT).hex() == code
    assert isa.decode_uops(bytes.fromhex(code), DEFAULT).tolist() == [op]


@st.composite
def streams(draw, config: Config):
    """Instructions whose every field is any value of its bits."""
    rows = []
    for opcode in draw(st.lists(st.sampled_from(Opcode), min_size=1, max_size=6)):
        row = np.zeros(1, isa.INSTRUCTION)
        for name, slot in isa.layout(config, opcode).items():
            lowest = -(1 << (slot.width - 1)) if slot.signed else 0
            row[name] = draw(st.integers(lowest, lowest + (1 << slot.width) - 1))
        row["opcode"] = opcode
        rows.append(row)
    return np.concatenate(rows)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@given(data=st.data())
def test_encoding_round_trips(config, data):
    stream = data.draw(streams(config))
    code = isa.encode(stream, config)
    assert np.array_equal(isa.decode(code, config), stream)
    assert not len(isa.reserved_bits(code, config))


@given(code=st.binary(min_size=16, max_size=16))
def test_any_bytes_decode_and_only_reserved_bits_are_lost(code):
    stream = isa.decode(code, DEFAULT)
    if stream["opcode"][0] in isa.FIELDS:
        lost = isa.encode(stream, DEFAULT) != code
        assert lost == bool(len(isa.reserved_bits(code, DEFAULT)))


def test_a_field_slides_into_the_first_word_when_micro_ops_are_few():
    config = Config(log_uop_buff_size=4, log_acc_buff_size=12)
    assert isa.layout(config, Opcode.GEMM)["dst_factor_out"].word == 0
    assert isa.layout(DEFAULT, Opcode.GEMM)["dst_factor_out"] == isa.Slot(1, 0, 11)


def test_a_field_that_does_not_fit_is_refused():
    with pytest.raises(EncodingError, match=r"instruction 1: x_pad_0=16 is outside 0 … 15"):
        isa.encode(np.concatenate([instruction(Opcode.FINISH), instruction(Opcode.LOAD, x_pad_0=16)]), DEFAULT)
    with pytest.raises(EncodingError, match="GEMM has no field imm"):
        instruction(Opcode.GEMM, imm=1)
    with pytest.raises(EncodingError, match="micro-op 0: dst=2048 does not fit 11 bits"):
        isa.encode_uops(isa.uops([(2048, 0, 0)]), DEFAULT)
    with pytest.raises(EncodingError, match="17 bytes"):
        isa.decode(bytes(17), DEFAULT)


def test_derived_sizes_of_the_default():
    assert [DEFAULT.element_bytes(m) for m in Memory] == [4, 256, 16, 64, 16, 16]
    assert [DEFAULT.log_depth(m) for m in Memory] == [13, 10, 11, 11, 11, 11]
    assert DEFAULT.name == "1x16_i8w8a32_15_15_18_17"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_a_configuration_reads_what_it_writes(config):
    assert Config.from_name(config.name) == config
    assert Config.from_json(config.to_json() | {"TARGET": "sim", "LOG_BLOCK_IN": config.log_block}) == config


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"log_block": 3}, r"A \+ max\(A, I\) \+ W <= 32"),
        ({"log_inp_width": 2, "log_wgt_width": 2}, r"A \+ max\(A, I\) \+ W <= 32"),
        ({"log_uop_buff_size": 16}, r"2U \+ 37 <= 64"),
        ({"log_acc_buff_size": 18, "log_inp_buff_size": 12, "log_wgt_buff_size": 12}, r"4A \+ 20 <= 64"),
        ({"log_block": 7}, "at most 4096 bytes"),
        ({"log_acc_width": 4}, "LOG_ACC_WIDTH = 5"),
        ({"log_inp_width": 5}, "LOG_INP_WIDTH <= 4"),
        ({"log_block": 0, "log_inp_width": 2}, "whole number of bytes"),
        ({"log_wgt_buff_size": 7}, "at least one element"),
    ],
)
def test_an_illegal_configuration_is_refused_with_its_rule(changes, rule):
    with pytest.raises(ConfigError, match=rule):
        Config(**changes)


def test_a_configuration_that_contradicts_itself_is_refused():
    with pytest.raises(ConfigError, match="LOG_BLOCK_IN=5: follows from the others and is 4"):
        Config.from_json({"LOG_BLOCK_IN": 5})
    with pytest.raises(ConfigError, match="LOG_BLOK: no such key"):
        Config.from_json({"LOG_BLOK": 5})
    with pytest.raises(ConfigError, match="write it as"):
        Config.from_name("16x1")
