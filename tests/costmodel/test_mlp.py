"""The learned model: it learns an order, is saved without pickle, and weights of other features are refused."""

import tomllib
import zipfile

import numpy as np
import pytest

from nestegg.costmodel import mlp
from nestegg.costmodel.features import FEATURES, VERSION
from nestegg.costmodel.fit import Samples, Training, fit, shrunk
from nestegg.costmodel.mlp import Ensemble, LearnedModel, WeightsError, shipped
from nestegg.costmodel.pick import MARGIN, TRUST, guarded
from nestegg.costmodel.roofline import Roofline
from nestegg.extract.beam import extract_nests
from nestegg.ir.attrs import Attrs
from nestegg.ir.loops import lower
from nestegg.ir.operator import operator
from nestegg.ir.target import host
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_egraph import build

QUICK = Training(hidden=(16,), members=3, steps=300, batch=8, rate=5e-3)


def family(kernels, seed):
    """Kernels whose nests take longer than the roofline says by what one feature says."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(kernels):
        features = rng.standard_normal((24, len(FEATURES))).astype(np.float32)
        prior = 0.3 * rng.standard_normal(24) - 9
        made.append(Samples(features, prior, prior + 0.5 * features[:, 7]))
    return made


def regret(s, score):
    return float(np.exp(s.measured[score.argmin()] - s.measured.min()))


@pytest.fixture(scope="module")
def trained():
    return fit(family(40, 0), QUICK)


def test_it_learns_the_order_that_the_roofline_misses(trained):
    held_out = family(12, 1)
    learned = [regret(s, s.prior + trained.correction(s.features)[0]) for s in held_out]
    assert np.mean(learned) < 0.9 * np.mean([regret(s, s.prior) for s in held_out])


def test_a_fresh_model_is_the_roofline():
    fresh = fit(family(2, 0), Training(hidden=(16,), members=2, steps=1, rate=1e-9))
    mean, _ = fresh.correction(family(1, 3)[0].features)
    assert np.abs(mean).max() < 0.6


def test_refining_starts_from_what_was_learned(trained):
    one = family(1, 5)
    again = fit(one, Training(steps=1, batch=1, rate=1e-9), trained)
    np.testing.assert_allclose(again.members(one[0].features), trained.members(one[0].features), atol=1e-4)


def test_members_disagree_where_nothing_was_seen(trained):
    seen = family(1, 0)[0].features
    _, sure = trained.correction(seen)
    _, unsure = trained.correction(seen * 4)
    assert unsure.mean() > 1.5 * sure.mean()


def test_shrinking_keeps_a_share_of_every_correction(trained):
    x = family(1, 2)[0].features
    np.testing.assert_allclose(shrunk(trained, 0.25).members(x), 0.25 * trained.members(x), rtol=1e-5, atol=1e-7)


def voters(corrections):
    """An ensemble whose members correct a nest by what stands in the features, a column a member."""
    members = len(corrections)
    weights = np.zeros((members, len(FEATURES), 1), np.float32)
    weights[np.arange(members), np.arange(members), 0] = 1.0
    centre, scale = np.zeros(len(FEATURES), np.float32), np.ones(len(FEATURES), np.float32)
    features = np.zeros((len(corrections[0]), len(FEATURES)), np.float32)
    features[:, :members] = np.transpose(corrections)
    return Ensemble(centre, scale, ((weights, np.zeros((members, 1), np.float32)),)), features


def test_the_guard_lets_no_member_doubt():
    sees_it, doubts = [0, -2 * np.log(MARGIN)], [0, 0.0]
    assert guarded(*voters([sees_it] * 7 + [doubts]), np.array([1.0, 1.0])) == (0, 1.0)
    chosen, gain = guarded(*voters([sees_it] * 8), np.array([1.0, 1.0]))
    assert chosen == 1
    assert gain == pytest.approx(MARGIN**2)


def test_the_guard_does_not_follow_where_the_roofline_sees_a_loss():
    sure = [[0, -1.0]] * 4
    assert guarded(*voters(sure), np.array([1.0, TRUST * 1.01]))[0] == 0
    assert guarded(*voters(sure), np.array([1.0, TRUST * 0.99]))[0] == 1


def test_weights_are_saved_without_pickle(trained, tmp_path):
    path = tmp_path / "weights.npz"
    trained.save(path)
    with np.load(path, allow_pickle=False) as archive:
        assert str(archive["features"]) == VERSION
    x = family(1, 2)[0].features
    np.testing.assert_array_equal(Ensemble.load(path).members(x), trained.members(x))


def test_weights_of_other_features_are_refused_by_name(trained, tmp_path, monkeypatch):
    path = tmp_path / "weights.npz"
    monkeypatch.setattr(mlp, "VERSION", "older")
    trained.save(path)
    monkeypatch.undo()
    with pytest.raises(WeightsError, match=f"features of version older, and this nestegg has {VERSION}"):
        Ensemble.load(path)


@pytest.mark.parametrize("damage", ["missing", "text", "pickled", "truncated", "empty"])
def test_files_that_are_no_weights_are_refused(trained, tmp_path, damage):
    path = tmp_path / "weights.npz"
    trained.save(path)
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("weights")
    elif damage == "pickled":
        np.savez(path, features=np.array([{}], object))
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    else:
        with zipfile.ZipFile(path, "w"):
            pass
    with pytest.raises(WeightsError, match="not weights of the cost model"):
        Ensemble.load(path)


def test_the_shipped_weights_are_of_this_version():
    assert shipped().centre.shape == (len(FEATURES),)
    assert mlp.SHIPPED.stat().st_size < 500_000


def test_it_guides_a_beam():
    attrs = Attrs(contract=((1,), (0,)), batch=((), ()))
    kernel = lower(operator("dot").expr((TensorType((24, 32)), TensorType((32, 48))), attrs))
    egraph = build(kernel, host(), 1)
    guided = extract_nests(egraph, LearnedModel(host(), 1))
    assert guided[0].seconds <= guided[-1].seconds
    assert LearnedModel(host(), 1).bound(kernel) == Roofline(host(), 1).bound(kernel)


def test_the_wheel_holds_the_weights():
    root = mlp.SHIPPED.parent.parent.parent
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert mlp.SHIPPED in {file for pattern in data["nestegg.costmodel"] for file in (root / "costmodel").glob(pattern)}
