import numpy as np
import pytest

from models.manifest import Column
from training.config import NetworkOptions
from training.preprocess import feature_statistics
from training.trial import DROPOUT, chosen_dropout

SMALL = NetworkOptions(width=32, depth=2, frequencies=8, embedding_outputs=4, epochs=80, seed=0)


def chosen(y_of, *, options=SMALL, rows=400):
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (rows, 2))
    y = y_of(x, random)[:, None]
    parts = np.array_split(random.permutation(rows), 5)
    return chosen_dropout(
        x,
        y,
        statistics=feature_statistics(x, [Column(name=name, kind="numeric") for name in "ab"]),
        fit_rows=[np.concatenate([*parts[:m], *parts[m + 1 :]]) for m in range(3)],
        stop_rows=parts[:3],
        options=options,
    )


def test_a_function_without_noise_is_fitted_without_dropout():
    assert chosen(lambda x, random: np.sin(3 * x[:, 0]) + x[:, 1] ** 2) == 0.0


def test_noise_keeps_the_dropout():
    assert chosen(lambda x, random: x[:, 0] + random.normal(size=len(x))) == DROPOUT


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_dropout_that_is_given_is_taken_without_a_trial(dropout):
    def no_function(x, random):
        return np.full(len(x), np.nan)  # would fail in a fit

    assert chosen(no_function, options=SMALL.model_copy(update={"dropout": dropout})) == dropout
