import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from benchmarks.quality import peers
from benchmarks.quality.scores import Independent
from benchmarks.quality.sets import Set, Split
from models.distributions import Gaussian


def noisy_lines(rows: int, *, seed: int = 0):
    """Two targets of different units and noise, a constant column among the inputs."""
    random = np.random.default_rng(seed)
    x = np.column_stack([random.uniform(-2, 2, rows), np.full(rows, 7.0), random.uniform(0, 100, rows)])
    truth = np.column_stack([3 * x[:, 0], 1e-3 * x[:, 2]])
    return x, truth, truth + random.standard_normal((rows, 2)) * [0.5, 0.01]


class Recorded:
    """A regressor that remembers what it was made and fitted with."""

    made: ClassVar[list["Recorded"]]

    def __init_subclass__(cls):
        cls.made = []

    def __init__(self, *_, **options):
        self.options = options
        self.made.append(self)

    def fit(self, x, y):
        self.x, self.y = x, y
        return self


def test_the_deep_ensemble_learns_means_and_noise_of_all_targets():
    x, _, y = noisy_lines(1000)
    unseen, truth, observed = noisy_lines(500, seed=1)
    predicted = peers.deep_ensemble(x, y, 0)(unseen)
    lower, upper = predicted.interval(0.9)
    covered = ((lower <= observed) & (observed <= upper)).mean(axis=0)
    assert np.sqrt(np.mean((predicted.mean - truth) ** 2, axis=0)) == pytest.approx([0, 0], abs=0.3)
    assert np.all(covered > 0.8)
    assert predicted.marginal.std.mean(axis=0) == pytest.approx([0.5, 0.01], rel=0.35)


def test_a_deep_ensemble_is_what_its_seed_makes_it():
    x, _, y = noisy_lines(120)
    one, again, other = (peers.deep_ensemble(x, y, seed)(x).mean for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_ngboost_has_a_model_a_target(monkeypatch):
    class Regressor(Recorded):
        def pred_dist(self, x):
            return SimpleNamespace(params={"loc": x[:, 0] + self.y[0], "scale": np.full(len(x), self.y[1])})

    monkeypatch.setitem(sys.modules, "ngboost", SimpleNamespace(NGBRegressor=Regressor))
    x, y = np.arange(6.0).reshape(3, 2), np.array([[10.0, 20.0], [1.0, 2.0], [0.0, 0.0]])
    predicted = peers.ngboost(x, y, 5)(x)
    assert np.array_equal(predicted.mean, [[10, 20], [12, 22], [14, 24]])
    assert np.array_equal(predicted.marginal.std, [[1, 2]] * 3)
    assert [model.options for model in Regressor.made] == [{"random_state": 5, "verbose": False}] * 2


def test_catboost_gives_mean_and_variance(monkeypatch):
    class Regressor(Recorded):
        def predict(self, x, *, prediction_type):
            assert prediction_type == self.options["loss_function"] == "RMSEWithUncertainty"
            return np.column_stack([np.full(len(x), self.y[0]), np.full(len(x), self.y[1])])

    monkeypatch.setitem(sys.modules, "catboost", SimpleNamespace(CatBoostRegressor=Regressor))
    predicted = peers.catboost(np.zeros((2, 1)), np.array([[1.0, 2.0], [9.0, 16.0]]), 0)(np.zeros((3, 1)))
    assert np.array_equal(predicted.mean, [[1, 2]] * 3)
    assert np.array_equal(predicted.marginal.std, [[3, 4]] * 3)


def test_conformal_boosting_calibrates_on_rows_that_it_was_not_fitted_to(monkeypatch):
    class Conformal(Recorded):
        def conformalize(self, x, y):
            self.held_out = y
            return self

        def predict_interval(self, x):
            middle = np.full(len(x), self.y.mean())
            return middle, np.stack([middle - 1, middle + 2], axis=1)[:, :, None]

    monkeypatch.setitem(sys.modules, "mapie.regression", SimpleNamespace(SplitConformalRegressor=Conformal))
    x, y = np.arange(50.0)[:, None], np.column_stack([np.arange(50.0), 100 + np.arange(50.0)])
    predicted = peers.gb_mapie(x, y, 0)(x[:4])
    for model, column in zip(Conformal.made, y.T, strict=True):
        assert len(model.held_out) == 10
        assert np.array_equal(np.sort(np.concatenate([model.y, model.held_out])), column)
        assert model.options == {"confidence_level": 0.9, "prefit": False}
    lower, upper = predicted.interval(0.9)
    assert lower.shape == (4, 2)
    assert np.array_equal(upper - lower, np.full((4, 2), 3.0))
    assert np.allclose(predicted.mean - lower, 1)


def test_an_interval_without_a_density_has_no_likelihood_and_one_coverage():
    one = peers.PointAndInterval(np.zeros((3, 2)), -np.ones((3, 2)), np.ones((3, 2)), 0.9)
    assert np.isnan(one.log_density(np.zeros((3, 2)))).tolist() == [True] * 3
    assert np.isnan(one.crps(np.zeros((3, 2)))).shape == (3, 2)
    with pytest.raises(ValueError, match=r"0\.9, not 0\.5"):
        one.interval(0.5)


def test_a_peer_is_fitted_to_the_training_rows_and_judged_on_the_others(monkeypatch):
    seen = []

    def average(x, y, seed):
        seen.append((x, y, seed))
        return lambda rows: Independent(Gaussian(np.tile(y.mean(axis=0), (len(rows), 1)), np.ones((len(rows), y.shape[1]))))

    monkeypatch.setitem(peers.PEERS, "average", average)
    splits = [Split(s, np.delete(np.arange(10), [s, 9]), np.arange(0), np.array([s, 9])) for s in (0, 4)]
    y = np.arange(10.0)[:, None]
    data = Set("made", "made", ("hl",), ["a"], ["b"], -y, y, splits)
    first, second = peers.run(data, "average")
    assert [(score.dataset, score.method, score.split) for score in (first, second)] == [
        ("made", "average", 0),
        ("made", "average", 4),
    ]
    assert np.array_equal(seen[1][0], -y[splits[1].train])
    assert seen[1][2] == 4
    centre = y[splits[0].train].mean()
    assert first.rmse == pytest.approx(np.sqrt(np.mean((np.array([0, 9]) - centre) ** 2)))
    alone = next(peers.run(replace(data, splits=splits[1:]), "average"))
    assert replace(alone, seconds=0) == replace(second, seconds=0)
