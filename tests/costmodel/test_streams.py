"""Nests of kernels that read from memory walk it in long runs."""

from dataclasses import replace
from itertools import islice

import numpy as np

from nestegg.costmodel.access import Access, runs
from nestegg.costmodel.roofline import Roofline
from nestegg.costmodel.streams import STORED_ROWS, Streams
from nestegg.extract.beam import extract_nests
from nestegg.ir.attrs import Attrs
from nestegg.ir.loops import LoopKernel, lower
from nestegg.ir.nest import STREAMED, Store, points
from nestegg.ir.operator import operator
from nestegg.ir.target import target
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_egraph import build

MACHINE = target("x86-64-v4")
ROWS, COLUMNS = 4096, 2048  # 32 MiB


def sums(axis: int) -> LoopKernel:
    kernel = lower(operator("reduce").expr((TensorType((ROWS, COLUMNS)),), Attrs(kind="sum", axes=(axis,))))
    assert isinstance(kernel, LoopKernel)
    return kernel


def addresses(axis: int, count: int) -> list[int]:
    kernel = sums(axis)
    nest = extract_nests(build(kernel, MACHINE), Roofline(MACHINE))[0].nest
    (read,) = kernel.update_reads
    strides = [read.index[0].coefficient(a) for a in kernel.axes]
    return [sum(s * i for s, i in zip(strides, p, strict=True)) for p in islice(points(nest, len(strides)), count)]


def test_rows_are_summed_one_after_another():
    assert sorted(addresses(1, 4 * COLUMNS)) == list(range(4 * COLUMNS))
    assert max(addresses(1, COLUMNS)) == COLUMNS - 1


def test_sums_of_columns_walk_few_rows_at_a_time():
    assert max(addresses(0, 16 * COLUMNS)) < 32 * COLUMNS


def test_a_transposition_stores_runs_of_several_lines_past_the_caches():
    kernel = lower(operator("transpose").expr((TensorType((ROWS, COLUMNS)),), Attrs(perm=(1, 0))))
    nest = extract_nests(build(kernel, MACHINE), Roofline(MACHINE))[0].nest
    assert isinstance(nest, Store)
    assert nest.how == STREAMED
    stored = list(islice(points(nest.body, 2), 16 * 64))  # four tiles of 16 x 16
    assert len({row for row, _ in stored}) == 16
    assert len({column for _, column in stored}) == 64


def test_loops_begin_streams_unless_they_go_on_with_those_of_their_bodies():
    # Blocks of a 64x256 matrix of float32: 1x16, 1x256 (a row), 8x16, 8x256, 16x16.
    domain = np.array([[1, 16], [1, 256], [8, 16], [8, 256], [16, 16]])
    matrix = Access(np.array([1024, 4]), 4, True)
    assert runs(matrix, domain).rows.tolist() == [1, 1, 8, 1, 16]
    streams = Streams.of([(0, matrix)], domain, 1)

    def loop(axis: int, child: int, trips: int, begun: float) -> float:
        step = domain[child, axis]
        arrays = (np.array([v]) for v in (axis, step, trips, child, True))
        return float(streams.loop(*arrays, np.full((1, 1, 1), begun))[0, 0, 0])

    assert loop(1, child=0, trips=16, begun=1) == 1  # along a row
    assert loop(0, child=1, trips=16, begun=1) == 1  # row after row
    assert loop(0, child=0, trips=16, begun=1) == 16  # a piece of each of 16 rows
    assert loop(1, child=2, trips=16, begun=8) == 8  # those of 8 rows to their ends
    assert loop(0, child=3, trips=8, begun=8) == 64  # the next 8 rows side by side
    assert loop(1, child=4, trips=16, begun=16) == 256  # more rows than the prefetchers follow
    streams = replace(streams, written=STORED_ROWS)
    assert loop(1, child=4, trips=16, begun=16) == 16  # but not more than are stored side by side


def test_what_is_read_goes_on_if_each_run_was_walked_as_one():
    # Blocks of 2x4x256 (two slices, rows of 256): 2x1x256.
    domain = np.array([[2, 1, 256]])
    slices = Access(np.array([1 << 20, 1024, 4]), 4, True)
    streams = Streams.of([(0, slices), (1, slices)], domain, 2)

    def rows(begun: float) -> list[float]:
        arrays = (np.array([v]) for v in (1, 1, 64, 0, True))
        return streams.loop(*arrays, np.full((1, 1, 2), begun)).reshape(-1).tolist()

    assert rows(begun=2) == [2, 2]
    assert rows(begun=4) == [256, 4], "no one waits for what is written"
