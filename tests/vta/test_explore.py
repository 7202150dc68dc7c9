"""Configurations explored for a network: each compiled anew, the frontier marked, what does not run kept with why."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nestegg.ir.jax_frontend import from_jax
from nestegg.vta.config import DEFAULT, Config
from nestegg.vta.explore import Point, configurations, explore, frontier, write_png


def layer(x):
    w = np.random.default_rng(0).integers(-128, 128, (32, 32, 3, 3)).astype(np.int8)
    y = lax.conv_general_dilated(x, w, (1, 1), [(1, 1)] * 2, preferred_element_type=jnp.int32)
    return jnp.clip(y >> 9, 0, 127).astype(jnp.int8)


def test_larger_blocks_take_fewer_cycles_and_more_multipliers(tmp_path):
    configs = [*configurations(blocks=(4, 5), batches=(0,), halvings=(0,)), Config(log_wgt_buff_size=11)]
    points = explore(from_jax(layer, np.zeros((1, 32, 20, 20), np.int8)).graph, configs, effort=2)
    assert [p.macs for p in points] == [32 * 32, 16 * 16, 16 * 16]
    assert points[0].cycles < points[1].cycles
    assert all(p.best for p in points[:2])
    assert "no tiling" in points[2].reason and not points[2].best
    assert points[1].to_json()["name"] == DEFAULT.name
    pytest.importorskip("matplotlib")
    write_png(points, tmp_path / "e.png", "one layer")
    assert (tmp_path / "e.png").read_bytes()[1:4] == b"PNG"


def test_only_legal_configurations_are_tried():
    found = list(configurations(blocks=(2, 3, 4), batches=(0,), halvings=(0, 1)))
    assert len(found) == len(set(found))
    assert DEFAULT in found
    assert all(c.log_block > 2 or c.log_inp_buff_size < 15 for c in found)


def test_the_frontier_is_beaten_by_none():
    larger = Config(log_block=5)
    points = [Point(DEFAULT, 100), Point(DEFAULT, 120), Point(larger, 90), Point(larger, 100)]
    assert [p.best for p in frontier(points)] == [True, False, True, False]
    assert not frontier([Point(DEFAULT, 0, reason="it does not fit")])[0].best
