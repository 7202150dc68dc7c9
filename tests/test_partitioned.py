"""`optimize(..., target="vta")`: which side each kernel is on, and that both together compute what they should."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nestegg
from nestegg.compiler import import_program
from nestegg.vta.check import check, errors
from nestegg.vta.functional import run
from nestegg.vta.partition import Accelerator, Link
from nestegg.vta.program import Program
from nestegg.vta.timing import SIM, Board

BUDGET = 0.1
FREE = Link(bandwidth=1e15, latency=0.0)
SLOW = Link(bandwidth=1e6, latency=1e-2)
#: A clock at which the accelerator beats any CPU.
FAST = Board(mhz=1e6)


@pytest.fixture(scope="module")
def network():
    """Two convolutions with relu, a pooling and a dense layer, its ranges, and an input that they have not seen."""
    rng = np.random.default_rng(0)
    w = [rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12 for _ in range(2)]
    dense = rng.standard_normal((256, 10)).astype(np.float32) / 16

    def fn(x):
        for weights in w:
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, weights, (1, 1), ((1, 1), (1, 1))))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        return x.reshape(len(x), -1) @ dense

    data = [rng.standard_normal((1, 16, 8, 8)).astype(np.float32) for _ in range(5)]
    imported = import_program(fn, data[0])
    return imported, nestegg.calibrate(imported, data=[np.stack(data[:4])]), data[4], fn


def partitioned(network, link, board=SIM, **options):
    imported, ranges, _, _ = network
    accelerator = Accelerator(board=board, link=link, effort=2)
    given = {"accuracy_budget": BUDGET, "ranges": ranges, "threads": 1, "accelerator": accelerator} | options
    return nestegg.optimize(imported, target="vta", **given)


@pytest.fixture(scope="module")
def fast(network):
    return partitioned(network, FREE, FAST)


def sides(program):
    return [k["side"] for k in program.report()["kernels"]]


def test_a_fast_accelerator_takes_the_layers(network, fast):
    x, fn = network[2:]
    report = fast.report()
    assert sides(fast).count("vta") == 3, "two convolutions with their relu, and the pooling"
    assert [s["kernels"] for s in report["streams"]] == [3], "nothing leaves the accelerator between them"
    assert [t["to"] for t in report["transfers"]] == ["vta", "cpu"]
    found = fast.verify(x)
    assert found.ok and found.vta_exact == found.vta_kernels == 3
    assert 0 < found.max_rel_err <= BUDGET
    exact = np.asarray(fn(x))
    assert np.abs(fast(x) - exact).max() <= BUDGET * np.abs(exact).max()


def test_its_streams_run_elsewhere(network, fast, tmp_path):
    (folder,) = fast.dump(tmp_path, network[2])
    program = Program.load(folder)
    assert errors(check(program)) == []
    dram = run(program).dram
    for o in program.outputs:
        assert hashlib.sha256(dram[o.address : o.address + o.size].tobytes()).hexdigest() == o.sha256
    tensors = json.loads((tmp_path / "layouts.json").read_text())["tensors"]
    assert [t["to"] for t in tensors] == ["vta", "cpu"]
    assert np.array_equal(tensors[1]["values"], fast.integers(network[2])[-1])


def test_the_report_has_the_reason_for_every_side(fast):
    for k in fast.report()["kernels"]:
        if k["side"] == "vta":
            assert k["vta_us"] < k["cpu_us"] and "on the CPU" in k["reason"]
        else:
            assert k["vta_us"] is None and "VTA cannot: " in k["reason"]
    quantizes = next(k for k in fast.report()["kernels"] if k["side"] == "cpu")
    assert "computes in f32; the accelerator has integers only" in quantizes["reason"]


def test_a_slow_host_gives_the_layers_to_the_accelerator(network):
    imported, ranges = network[:2]
    accelerator = Accelerator(link=FREE, effort=2, host=1000)
    options = {"accuracy_budget": BUDGET, "ranges": ranges, "threads": 1}
    found = nestegg.optimize(imported, target="vta", accelerator=accelerator, **options)
    assert sides(found).count("vta") == 3


@pytest.mark.parametrize(("link", "board"), [(SLOW, FAST), (FREE, SIM)], ids=["a slow link", "100 MHz"])
def test_a_slow_link_or_clock_leaves_all_to_the_cpu(network, fast, link, board):
    found = partitioned(network, link, board)
    report = found.report()
    assert set(sides(found)) == {"cpu"} and not report["transfers"] and not report["streams"]
    assert report["extraction"]["cost"] > fast.report()["extraction"]["cost"]
    assert found.verify(network[2]).ok


def conv(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)), preferred_element_type=jnp.int32)


def clipped(x, shift):
    return jnp.clip(x >> shift, -127, 127).astype(jnp.int8)


def integers(*shape):
    return np.random.default_rng(sum(shape)).integers(-127, 128, shape).astype(np.int8)


def optimized(fn, *args, link=FREE):
    accelerator = Accelerator(board=FAST, link=link, effort=2)
    return nestegg.optimize(fn, *args, target="vta", accelerator=accelerator, threads=1)


def residual(x):
    h = clipped(conv(x, integers(16, 16, 3, 3)), 9)
    return clipped((conv(h, integers(16, 16, 3, 3)) >> 7) + x.astype(jnp.int32) * 4, 2)


def two_streams(x):
    """What is between the convolutions is nothing for the accelerator."""
    h = clipped(conv(x, integers(16, 16, 3, 3)), 9)
    h = (jnp.abs(jnp.sin(h.astype(jnp.float32))) * 100).astype(jnp.int8)
    return clipped(conv(h, integers(16, 16, 3, 3)), 9), h


def product(a, b):
    return clipped(jax.lax.dot(a, b, preferred_element_type=jnp.int32), 9)


@pytest.mark.parametrize(
    ("fn", "shapes", "streams"),
    [(residual, [(1, 16, 8, 8)], [2]), (two_streams, [(1, 16, 8, 8)], [1, 1]), (product, [(16, 128), (128, 32)], [1])],
    ids=["residual", "two streams", "product of two inputs"],
)
def test_integers_are_exact_wherever_they_are_computed(fn, shapes, streams):
    args = [integers(*s) for s in shapes]
    program = optimized(fn, *args)
    assert [s["kernels"] for s in program.report()["streams"]] == streams
    found = jax.tree.leaves(program(*args))
    for got, wanted in zip(found, jax.tree.leaves(fn(*args)), strict=True):
        assert got.dtype == wanted.dtype and np.array_equal(got, wanted)
    checked = program.verify(*args)
    assert checked.ok and checked.vta_exact == checked.vta_kernels == sum(streams)


def test_results_are_arrays_of_their_own():
    x = integers(1, 16, 8, 8)
    program = optimized(residual, x)
    first = program(x)
    kept = first.copy()
    program(-x)
    assert np.array_equal(first, kept)


def test_a_transfer_costs_its_bytes_and_a_synchronisation():
    link = Link(bandwidth=1e9, latency=1e-9)
    rows = optimized(residual, integers(1, 16, 8, 8), link=link).report()["transfers"]
    assert rows and all(r["us"] == pytest.approx((link.latency + r["bytes"] / 1e9) * 1e6) for r in rows)


def test_the_default_link_is_the_boards():
    link = Link.of(SIM)
    assert link.bandwidth == 8 * 100e6
    assert link.latency == pytest.approx(1e-4)
    assert Link.of(FAST).latency == link.latency, "the host does not become faster"


def test_weights_that_are_packed_are_transfers():
    rows = optimized(product, integers(16, 128), integers(128, 32), link=FREE).report()["transfers"]
    assert [(r["tensor"], r["to"]) for r in rows] == [
        ("i8[16,128]", "vta"), ("i8[16,32]", "cpu"), ("i8[128,32]", "vta"),
    ]  # fmt: skip


def test_an_accelerator_is_for_the_target_vta():
    with pytest.raises(nestegg.NesteggError, match="target='vta' only"):
        nestegg.optimize(residual, integers(1, 16, 8, 8), accelerator=Accelerator())


def test_a_program_is_compiled_once(network, tmp_path, monkeypatch):
    monkeypatch.setenv("NESTEGG_CACHE_DIR", str(tmp_path))
    x = network[2]
    first = partitioned(network, FREE, FAST)
    again = partitioned(network, FREE, FAST)
    assert "partition" in first.seconds and "partition" not in again.seconds, "no e-graph, no extraction"
    assert np.array_equal(first(x), again(x))
    reports = [p.report() | {"seconds": None} for p in (first, again)]
    assert reports[0] == reports[1]
    checked = again.verify(x)
    assert checked.ok and checked.vta_exact == checked.vta_kernels == 3
    other = partitioned(network, FREE, FAST, accuracy_budget=BUDGET / 2)
    assert "partition" in other.seconds, "another budget is another program"
