"""The timing model: single instructions as the RTL measured them, every instruction of recorded programs, its speed."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from nestegg.testing.vta_programs import vta_programs
from nestegg.vta import asm, isa
from nestegg.vta.analysis import analyse
from nestegg.vta.config import DEFAULT
from nestegg.vta.errors import ExecutionError
from nestegg.vta.isa import Opcode, Unit
from nestegg.vta.timing import Board, Cause, simulate
from nestegg.vta.trace import bars, chrome_trace, html, write_png

DATA = Path(__file__).parent / "data"

#: Cycles from start to end of an instruction alone (D=16, g=1), measured on the RTL: section 15 of the specification.
SINGLE = [
    *[(f"gemm uop=0:1 iter=1,{n}", n + 6) for n in (1, 8, 128, 1764)],
    *[(f"alu.add uop=0:1 iter=1,{n} imm=1", n + 6) for n in (8, 128)],
    *[(f"alu.add uop=0:1 iter=1,{n}", cycles) for n, cycles in ((8, 22), (128, 262))],
    *[(f"load.inp y=1 x={x} stride={x}", cycles) for x, cycles in ((1, 24), (8, 38), (128, 278))],
    *[(f"load.wgt y=1 x={x} stride={x}", cycles) for x, cycles in ((1, 54), (8, 278), (64, 2070))],
    *[(f"load.acc y=1 x={x} stride={x}", cycles) for x, cycles in ((1, 30), (8, 86), (128, 1046))],
    *[(f"load.uop y=1 x={x} stride={x}", cycles) for x, cycles in ((1, 22), (8, 25), (128, 85))],
    ("load.inp y=14 x=14 stride=56", 414),
    ("load.inp y=14 x=14 stride=56 ypad=1,1 xpad=1,1", 454),
    ("load.inp y=14 x=14 stride=56 ypad=3,3 xpad=3,3", 598),
    ("load.inp y=1 x=1 stride=1 ypad=15,15 xpad=15,15", 964),
    *[(f"store.out y=1 x={x} stride={x}", cycles) for x, cycles in ((1, 6), (4, 15), (128, 387), (256, 774))],
    ("store.out y=14 x=14 stride=56", 633),
]


@pytest.mark.parametrize(("text", "cycles"), SINGLE, ids=[s[0] for s in SINGLE])
def test_a_single_instruction(text, cycles):
    timeline = simulate(asm.instructions(f"{text}\nfinish"))
    assert timeline.end[0] - timeline.start[0] == cycles
    assert timeline.start[0] == 16 + 8 + 2 * 2  # D + 8 + 2n


def test_every_instruction_of_recorded_programs():
    content = json.loads(gzip.decompress((DATA / "fuzz_vectors.json.gz").read_bytes()))
    for vector in content["vectors"]:
        timeline = simulate(isa.decode(bytes.fromhex(vector["insns"]), DEFAULT))
        for unit in Unit:
            of = timeline.of_unit(unit)
            measured = vector["timeline"][unit.name.lower()]
            assert np.column_stack((timeline.start[of], timeline.end[of])).tolist() == measured, vector["id"]


@given(program=vta_programs())
def test_a_timeline_respects_units_and_tokens(program):
    timeline = simulate(program.stream, program.config)
    for unit in Unit:
        of = timeline.of_unit(unit)
        assert (timeline.start[of][1:] > timeline.end[of][:-1]).all()
    waited = timeline.after >= 0
    assert (timeline.start[waited] == timeline.end[timeline.after[waited]] + 1).all()
    assert (timeline.cause[waited] != Cause.FETCH).all()
    path = timeline.critical_path()
    assert path == sorted(path, key=lambda i: timeline.start[i])
    slower = simulate(program.stream, program.config, Board(64, 2))
    assert slower.cycles >= timeline.cycles


def test_an_analysis_accounts_for_every_cycle():
    content = json.loads(gzip.decompress((DATA / "resnet18_conv_programs.json.gz").read_bytes()))
    layer = content[0]
    timeline = simulate(isa.decode(bytes.fromhex(layer["insns"]), DEFAULT))
    found = analyse(timeline)
    assert found.gemm_iterations == layer["ideal"]
    assert found.utilisation == layer["ideal"] / layer["cycles"]["16,1"]
    assert found.read_bytes["inp"] + found.read_bytes["wgt"] == 745472
    assert sum(found.critical_path.values()) == timeline.end.max()
    for unit in Unit:
        of = timeline.of_unit(unit)
        name = unit.name.lower()
        between = len(of) - 1  # one cycle from one instruction to the next
        assert found.busy[name] + sum(found.idle[name].values()) + between == timeline.end[of[-1]]
    assert found.bound_by == "compute" and 0.9 < found.of_bound <= 1
    assert found.stalls == sorted(found.stalls, key=lambda s: -s.cycles)


def test_fetch_stops_at_a_full_queue():
    # 600 no-ops of Load wait for a token that Compute gives after its GEMM, which stands behind them.
    text = "load.inp pop_next\n" + "load.inp\n" * 600 + "gemm uop=0:1 iter=1,1 push_prev\nfinish"
    with pytest.raises(ExecutionError, match=r"V1202 .*the load queue is full at 512"):
        simulate(asm.instructions(text))
    ahead = "gemm uop=0:1 iter=100,1000 push_prev\n" + text.replace(" push_prev", "")
    timeline = simulate(asm.instructions(ahead))
    late = timeline.start[602]  # the second GEMM: dispatched when the queue of Load empties
    assert late > timeline.end[0] and timeline.cause[602] == Cause.FETCH


def test_a_deadlock_is_refused():
    with pytest.raises(ExecutionError, match=r"V1501 instruction 0: .*nobody pushes it"):
        simulate(asm.instructions("load.inp pop_next\nfinish"))
    with pytest.raises(ExecutionError, match="V1401"):
        _ = simulate(asm.instructions("load.inp")).cycles


def test_drawings(tmp_path):
    content = json.loads(gzip.decompress((DATA / "resnet18_conv_programs.json.gz").read_bytes()))
    timeline = simulate(isa.decode(bytes.fromhex(content[0]["insns"]), DEFAULT))
    events = chrome_trace(timeline)["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == len(timeline.stream)
    assert max(e["ts"] + e["dur"] for e in spans) == timeline.end.max()
    begins, ends = ([e for e in events if e["ph"] == kind] for kind in "sf")
    assert len(begins) == len(ends) == int((timeline.cause >= Cause.L2C).sum())
    page = html(timeline, "a <layer>")
    assert "a &lt;layer&gt;" in page and "518,007 cycles" in page
    joined = bars(timeline, Unit.LOAD, gap=10**9)
    assert sum(bar.count for bar in joined) == len(timeline.of_unit(Unit.LOAD)) > len(joined)
    pytest.importorskip("matplotlib")
    write_png(timeline, tmp_path / "layer.png", "a layer")
    assert (tmp_path / "layer.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_speed():
    """At least 200,000 instructions a second of processor time."""
    content = json.loads(gzip.decompress((DATA / "resnet18_conv_programs.json.gz").read_bytes()))
    streams = [isa.decode(bytes.fromhex(c["insns"]), DEFAULT)[:-1] for c in content] * 10
    stream = np.concatenate([*streams, isa.instruction(Opcode.FINISH)])
    begun = time.process_time()
    simulate(stream)
    assert len(stream) / (time.process_time() - begun) > 200_000
