from types import SimpleNamespace

import numpy as np
import pytest

from models.manifest import Column
from training.config import NetworkOptions
from training.fit import FREQUENCY_SCALE
from training.preprocess import feature_statistics
from training.trial import DROPOUT, FINER, chosen_options

SMALL = NetworkOptions(width=32, depth=2, frequencies=8, embedding_outputs=4, epochs=80, seed=0)


def chosen(y_of, *, rows=400, kind="numeric", **options):
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (rows, 2))
    y = y_of(x, random)[:, None]
    parts = np.array_split(random.permutation(rows), 5)
    result = chosen_options(
        x,
        y,
        statistics=feature_statistics(x, [Column(name=name, kind=kind) for name in "ab"]),
        fit_rows=[np.concatenate([*parts[:m], *parts[m + 1 :]]) for m in range(3)],
        stop_rows=parts[:3],
        options=SMALL.model_copy(update=options),
    )
    return result["dropout"], result["frequency_scale"]


def noise(x, random):
    return x[:, 0] + random.normal(size=len(x))


def no_function(x, random):
    return np.full(len(x), np.nan)  # would fail in a fit


def test_a_function_without_noise_is_fitted_without_dropout():
    dropout, _ = chosen(lambda x, random: np.sin(3 * x[:, 0]) + x[:, 1] ** 2)
    assert dropout == 0.0


def test_noise_keeps_the_dropout_and_the_smooth_embedding():
    assert chosen(noise, rows=1500) == (DROPOUT, FREQUENCY_SCALE)


def test_a_target_that_differs_from_value_to_value_takes_finer_frequencies():
    _, scale = chosen(lambda x, random: random.normal(size=20)[((x[:, 0] + 1) * 10).astype(int)], rows=1500)
    assert scale in FINER


def test_few_rows_say_nothing_of_frequencies():
    _, scale = chosen(lambda x, random: np.sign(np.sin(12 * x[:, 0])), rows=1200)
    assert scale == FREQUENCY_SCALE


@pytest.mark.parametrize(
    ("crps", "scale"),
    [
        ({0.3: 1.0, 1.0: 0.9, 3.0: 0.8}, 3.0),
        ({0.3: 1.0, 1.0: 0.9, 3.0: 0.92}, 1.0),
        ({0.3: 1.0, 1.0: 1.01, 3.0: 0.5}, 0.3),  # 3 is tried only where 1 gained
        ({0.3: 1.0, 1.0: 0.97, 3.0: 0.96}, 0.3),  # not clearly better
    ],
)
def test_frequencies_become_finer_as_long_as_trials_gain(crps, scale, monkeypatch):
    def fitted(*_, options, **__):
        return SimpleNamespace(history=[SimpleNamespace(best_crps=crps[options.frequency_scale])])

    monkeypatch.setattr("training.trial.fit", fitted)
    assert chosen(noise, rows=1500, dropout=0.1) == (0.1, scale)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_what_is_given_is_taken_without_a_trial(dropout):
    assert chosen(no_function, dropout=dropout, frequency_scale=2.0) == (dropout, 2.0)


@pytest.mark.parametrize("more", [{"frequencies": 0}, {"kind": "boolean"}], ids=str)
def test_frequencies_are_not_tried_where_there_are_none(more):
    assert chosen(no_function, dropout=0.1, **more) == (0.1, FREQUENCY_SCALE)


def test_a_dropout_that_is_given_is_the_one_with_which_frequencies_are_tried():
    jumps = [chosen(lambda x, random: np.sign(np.sin(12 * x[:, 0])), rows=1500, dropout=dropout) for dropout in (0.0, 0.1)]
    assert [dropout for dropout, _ in jumps] == [0.0, 0.1]
    assert all(scale in FINER for _, scale in jumps)
