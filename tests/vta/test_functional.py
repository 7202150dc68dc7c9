"""The functional simulator: recorded outputs, independence of the units' order, and nothing that crashes it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestegg.testing.vta_programs import damaged_programs, vta_programs
from nestegg.vta import asm, isa, vectors
from nestegg.vta.check import check, errors
from nestegg.vta.config import DEFAULT, Config, Memory
from nestegg.vta.errors import ExecutionError
from nestegg.vta.functional import PROFILES, run
from nestegg.vta.isa import AluOp
from nestegg.vta.kernels import kernels
from nestegg.vta.layout import pack, unpack
from nestegg.vta.legality import CODES
from nestegg.vta.program import Program, Segment
from nestegg.vta.timing import simulate

DATA = Path(__file__).parent / "data"
FUZZ = vectors.read(DATA / "fuzz_vectors.json.gz")
LAYERS = vectors.read(DATA / "resnet18_conv_programs.json.gz")
#: Bytes of inputs and weights, and of outputs, that the board counted for the ten layers.
READ_BYTES = [745472, 717824, 398848, 724992, 696320, 245248, 790528, 1280000, 217600, 2409472]
WRITTEN_BYTES = [200704, 100352, 100352, 100352, 50176, 50176, 50176, 25088, 25088, 25088]

ADD_ONE = """
.dram 0x20000
.uops 0x2000
uop 0 0 0
.code 0x1000
load.uop dram=0x800 y=1 x=1 stride=1
load.acc dram=0x400 y=1 x=2 stride=2
alu.add uop=0:1 iter=1,2 dst=0,1 src=0,1 imm=1 push_next
store.out dram=0x1100 y=1 x=2 stride=2 pop_prev push_prev
load.uop pop_next
finish
.data 0x10000 ff000000fe000000
.output result 0x11000 32
"""


def test_the_smallest_program():
    result = run(asm.assemble(ADD_ONE))
    # 255 + 1 keeps its low byte, 0; 254 + 1 is -1 as int8; the other lanes were 0.
    assert result.dram[0x11000:0x11020].view(np.int8).tolist() == [0, -1] + [1] * 30


@pytest.mark.parametrize("recorded", FUZZ, ids=lambda r: str(r.name))
def test_recorded_programs(recorded):
    row = vectors.compare(recorded)
    assert row["output_equal"], row
    assert row["cycles"] == row["recorded_cycles"]


@pytest.mark.parametrize("recorded", LAYERS, ids=lambda r: r.name)
def test_convolution_streams(recorded):
    row = vectors.compare(recorded)
    assert row["output_equal"], row
    assert row["cycles"] == row["recorded_cycles"]


def test_traffic_of_the_published_tilings():
    counters = [run(r.program).counters for r in LAYERS[::3]]
    assert [c.inp_bytes + c.wgt_bytes for c in counters] == READ_BYTES
    assert [c.out_bytes for c in counters] == WRITTEN_BYTES


def test_a_recorded_difference_is_seen():
    output = FUZZ[0].program.outputs[0]
    wrong = replace(FUZZ[0].program, outputs=(output._replace(sha256="0" * 64),))
    assert not vectors.compare(replace(FUZZ[0], program=wrong))["output_equal"]


@given(program=vta_programs(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_units_does_not_matter(program, seed):
    assert errors(check(program)) == []
    rng = np.random.default_rng(seed)
    expected = run(program)
    other = run(program, choose=lambda ready: ready[rng.integers(len(ready))])
    assert np.array_equal(expected.dram, other.dram)
    assert not any(expected.tokens.values())


def outcome(program: Program, profile: str, **options):
    """What a program leaves in DRAM and in the queues, or the words with which it is refused."""
    try:
        result = run(program, PROFILES[profile], work_limit=1 << 22, **options)
    except ExecutionError as e:
        return str(e)
    return result.dram.tobytes(), result.counters, result.tokens


@given(program=vta_programs() | damaged_programs(), profile=st.sampled_from(["strict", "strict-ext", "loose", "fsim"]))
def test_machine_code_runs_instructions_as_python_does(program, profile):
    assert outcome(program, profile) == outcome(program, profile, choose=lambda ready: ready[0])


@given(program=vta_programs())
def test_without_vnni_the_same(program):
    assert np.array_equal(run(program).dram, run(program, vnni=False).dram)


def refusal(program: Program, profile: str) -> str | None:
    """The code with which the simulator refuses a program; None if it runs."""
    try:
        run(program, PROFILES[profile], work_limit=1 << 22)
    except ExecutionError as e:
        return e.code
    return None


@given(program=damaged_programs())
def test_a_damaged_program_is_refused_or_runs(program):
    found = errors(check(program))
    code = refusal(program, "strict")
    assert {f.code for f in found} | {code or "V101"} <= set(CODES)
    if not found:
        # What the checker accepts fails at most for reasons that depend on data or patience.
        assert code in (None, "V703", "V1602")
        assert simulate(program.stream, program.config).cycles > 0


@given(code=st.binary(min_size=16, max_size=320), profile=st.sampled_from(sorted(PROFILES)))
def test_any_bytes_end_with_a_code(code, profile):
    program = Program(DEFAULT, code, 0x1000, b"\0\0\0\0", 0x2000, dram_bytes=1 << 20)
    assert errors(check(program)), "no random bytes are a legal program: it ends with FINISH after its work"
    assert refusal(program, profile) in (None, *CODES)


# --- single instructions against NumPy ------------------------------------------------------------


def alone(text: str, acc: np.ndarray, profile: str = "loose", config: Config = DEFAULT) -> np.ndarray:
    """The first elements of ACC, all lanes alike, after an instruction on them (stored byte by byte by shifting)."""
    lanes = np.broadcast_to(acc[:, None, None], (len(acc), config.batch, config.block))
    n, parts = len(acc), []
    source, target = 0x10000 // config.element_bytes(Memory.ACC), 0x18000 // config.element_bytes(Memory.OUT)
    for shift in (0, 8, 16, 24):
        program = asm.assemble(f"""
            .config {config.name}
            .uops 0x2000
            uop 0 0 0
            uop 0 1 0
            .dram 0x20000
            load.uop dram=0x800 y=1 x=2 stride=2
            load.acc dram={source} y=1 x={n} stride={n}
            {text}
            alu.shr uop=0:1 iter=1,{n} dst=0,1 src=0,1 imm={min(shift, 15)}
            alu.shr uop=0:1 iter=1,{n} dst=0,1 src=0,1 imm={shift - min(shift, 15)} push_next
            store.out dram={target} y=1 x={n} stride={n} pop_prev push_prev
            load.uop pop_next
            finish""")
        data = (Segment(0x10000, pack(lanes, config, Memory.ACC)),)
        dram = run(replace(program, data=data), PROFILES[profile]).dram
        size = n * config.element_bytes(Memory.OUT)
        found = unpack(dram[0x18000 : 0x18000 + size], config, Memory.OUT)
        assert (found == found[:, :1, :1]).all()
        parts.append(found[:, 0, 0] & 255)
    return (parts[0] | parts[1] << 8 | parts[2] << 16 | parts[3] << 24).astype(np.uint32).astype(np.int32)


def wrapped(values: list[int]) -> list[int]:
    return [(v + 2**31) % 2**32 - 2**31 for v in values]


@given(
    op=st.sampled_from(AluOp),
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4),
    imm=st.integers(-31, 31) | st.integers(-(2**15), 2**15 - 1),
)
def test_immediate_operations(op, values, imm):
    if op == AluOp.SHR:
        imm = max(-31, min(31, imm))
    meaning = {
        AluOp.MIN: lambda x: min(x, imm),
        AluOp.MAX: lambda x: max(x, imm),
        AluOp.ADD: lambda x: x + imm,
        AluOp.SHR: lambda x: x >> imm if imm >= 0 else x << -imm,
        AluOp.MUL: lambda x: x * imm,
    }[op]
    n = len(values)
    text = f"alu.{op.name.lower()} uop=0:1 iter=1,{n} dst=0,1 src=0,1 imm={imm}"
    assert alone(text, np.array(values, np.int32)).tolist() == wrapped([meaning(v) for v in values])


@pytest.mark.parametrize(
    ("profile", "amount", "register", "expected"),
    [
        ("loose", 20, False, 1000 >> 20),
        ("hls", 20, False, 1000 << 12),  # 20 is -12 in 5 bits
        ("rtl", 20, False, 1000 >> 20),
        ("hls", -20, False, 1000 >> 12),
        ("rtl", 35, False, 1000 >> 3),
        ("loose", -3, True, 1000 << 3),
        ("hls", -3, True, 1000 << 3),
        ("rtl", -3, True, 1000 >> 29),
    ],
)
def test_shifts_on_which_implementations_differ(profile, amount, register, expected):
    text = f"alu.shr uop={'1:2' if register else '0:1'} iter=1,1" + ("" if register else f" imm={amount}")
    # The last byte's shift is 9 at most here, so the profile's own shifts do not matter.
    assert alone(text, np.array([1000, amount], np.int32), profile)[0] == expected


def test_register_shifts_outside_of_0_to_15_are_refused_in_strict_mode():
    with pytest.raises(ExecutionError, match="V703 instruction 2"):
        alone("alu.shr uop=1:2 iter=1,1", np.array([1, 16], np.int32), "strict")


def test_later_iterations_see_earlier_results():
    # d = 0, 1, 2 and s = d + 1 backwards would differ; forwards each adds its old right neighbour.
    text = "alu.add uop=1:2 iter=1,3 dst=0,1 src=0,1"
    assert alone(text, np.array([1, 10, 100, 1000], np.int32)).tolist() == [11, 110, 1100, 1000]
    # Adding to one's right neighbour carries on.
    carried = "alu.add uop=1:2 iter=1,3 dst=1,0 src=0,0"
    assert alone(carried, np.array([1, 10], np.int32))[0] == 31


def stored_after_load(profile: str) -> int:
    """A LOAD ACC after the ALU instruction, and a STORE: what is stored?"""
    program = asm.assemble(ADD_ONE.replace("imm=1 push_next", "imm=1\nload.acc dram=0x400 y=1 x=2 stride=2 push_next"))
    return int(run(program, PROFILES[profile]).dram[0x11000])


def test_output_that_a_load_touched_last():
    assert stored_after_load("loose") == stored_after_load("fsim") == 255
    assert stored_after_load("hls") == stored_after_load("rtl") == 0  # OUT is a buffer of its own: 255 + 1
    with pytest.raises(ExecutionError, match="V1601 instruction 4: STORE of an output"):
        stored_after_load("strict")


def test_output_that_a_reset_touched_last():
    text = ADD_ONE.replace("imm=1 push_next", "imm=1\ngemm uop=0:1 iter=1,2 dst=0,1 reset push_next")
    found = {name: int(run(asm.assemble(text), PROFILES[name]).dram[0x11001]) for name in ("fsim", "hls", "rtl")}
    # The reset of HLS writes the accumulator (and a product that is 0 here).
    assert found == {"fsim": 0, "hls": 255, "rtl": 255}


def test_rtl_takes_indices_modulo_the_depth_and_no_trips_as_many():
    wrapping = ADD_ONE.replace("uop=0:1 iter=1,2 dst=0,1 src=0,1", "uop=0:1 iter=1,2 dst=2047,1 src=2047,1")
    assert int(run(asm.assemble(wrapping), PROFILES["rtl"]).dram[0x11000]) == 0
    beyond = ADD_ONE.replace("iter=1,2 dst=0,1 src=0,1", "iter=2,2 dst=2047,1 src=2047,1")
    with pytest.raises(ExecutionError, match=r"V301 instruction 2: .*ACC 2048 of 2048"):
        run(asm.assemble(beyond))
    none = ADD_ONE.replace("iter=1,2 dst=0,1 src=0,1", "iter=1,0")
    # 16384 additions of 1 to the first element: its low byte comes back to where it was.
    assert int(run(asm.assemble(none), PROFILES["rtl"]).dram[0x11000]) == 255


def test_a_deadlock_names_who_waits_for_whom():
    text = ADD_ONE.replace(" push_next", "")
    with pytest.raises(ExecutionError) as caught:
        run(asm.assemble(text))
    assert caught.value.code == "V1501"
    assert "store: instruction 3 waits for compute->store (nobody pushes it)" in str(caught.value)
    assert "compute: instruction 4 waits for store->compute (from instruction 3)" in str(caught.value)
    assert "tokens: load->compute 0, compute->load 0, compute->store 0, store->compute 0" in str(caught.value)


def test_work_is_bounded():
    text = ADD_ONE.replace("iter=1,2 dst=0,1 src=0,1", "iter=16383,16383")
    with pytest.raises(ExecutionError, match="V1602 instruction 2: more work than the simulator's limit"):
        run(asm.assemble(text), work_limit=1 << 20)


def test_a_profile_of_one_configuration_refuses_others():
    program = asm.assemble(".config 2x16_i8w8a32_15_15_18_17\n" + ADD_ONE)
    with pytest.raises(ExecutionError, match="profile rtl exists for 1x16"):
        run(program, PROFILES["rtl"])


@pytest.mark.parametrize("width", [1, 2, 4])
def test_narrow_lanes_round_trip(width):
    log = width.bit_length() - 1
    config = Config(log_inp_width=log, log_wgt_width=log, log_inp_buff_size=10, log_wgt_buff_size=13)
    rng = np.random.default_rng(0)
    for memory in (Memory.INP, Memory.WGT, Memory.OUT):
        rows = config.block if memory == Memory.WGT else 1
        values = rng.integers(-(1 << width >> 1), 1 << width >> 1, (5, rows, 16))
        code = pack(values, config, memory)
        assert len(code) == 5 * config.element_bytes(memory)
        assert np.array_equal(unpack(code, config, memory), values)
    lowest_lane_first = {1: 0b01000011, 2: 0b00000111, 4: 0b00011111}[width]
    assert pack([-1, 1, 0, 0, 0, 0, 1, 0], config, Memory.INP)[0] == lowest_lane_first


def test_kernels_are_compiled_once():
    assert kernels(DEFAULT) is kernels(Config())


def test_micro_ops_keep_their_bits():
    ops = isa.uops([(1, 2, 3)])
    for config in (DEFAULT, Config(log_block=5)):
        assert isa.decode_uops(isa.encode_uops(ops, config), config).tolist() == [(1, 2, 3)]
