import numpy as np
import pytest

from benchmarks.quality import product
from benchmarks.quality.sets import Set, Split
from training.config import fit_options
from training.errors import OptionError

SMALL = {"members": 4, "width": 8, "depth": 1, "epochs": 3, "frequencies": 0}


@pytest.fixture
def small_networks(monkeypatch):
    monkeypatch.setattr(product, "fit_options", lambda given: fit_options(given | SMALL))


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    x = np.column_stack([random.standard_normal(150), random.integers(0, 5, 150)])
    y = np.column_stack([x[:, 0] + 0.1 * random.standard_normal(150), 1e-3 * x[:, 1] + 1e-4 * random.standard_normal(150)])
    splits = [
        Split(s, np.setdiff1d(np.arange(150), test), np.arange(0), test)
        for s, test in enumerate((np.arange(30), np.arange(90, 120)))
    ]
    return Set("made:hl", "made", ("hl",), ["a b", "c (m3)"], ["y", "z"], x, y, splits)


def test_every_split_gets_a_model_of_its_own_training_rows(data, small_networks, monkeypatch):
    tables = []
    train = product.train

    def watched(path, options, **rest):
        tables.append(path.read_text())
        assert not options.baselines
        assert options.target == ["y", "z"]
        return train(path, options, **rest)

    monkeypatch.setattr(product, "train", watched)
    found = list(product.run(data))
    assert [(score.dataset, score.method, score.split) for score in found] == [
        ("made:hl", "errorbar", 0),
        ("made:hl", "errorbar", 1),
    ]
    for text, split in zip(tables, data.splits, strict=True):
        header, *rows = text.splitlines()
        assert header == "a b,c (m3),y,z"
        values = np.array([[float(cell) for cell in row.split(",")] for row in rows])
        assert np.array_equal(values, np.hstack([data.x, data.y])[split.train])
    for score in found:
        assert score.width90 > 0
        assert 0.5 < score.coverage90 <= 1
        assert score.rmse < 1.5 * data.y[:, 0].std() / np.sqrt(2)
        assert np.isfinite([score.ll, score.crps, score.seconds]).all()


def test_likelihoods_of_targets_add_up_and_errors_are_averaged(data, small_networks, monkeypatch):
    both = next(product.run(data))
    by_target = {}
    scores = product.evaluate.scores

    def watched(predictions, **rest):
        by_target.update(scores(predictions, **rest))
        return by_target

    monkeypatch.setattr(product.evaluate, "scores", watched)
    again = next(product.run(data))
    y, z = by_target["y"], by_target["z"]
    assert again.ll == both.ll == pytest.approx(-(y.nll + z.nll))
    assert again.rmse == pytest.approx(np.sqrt((y.rmse**2 + z.rmse**2) / 2))
    ninety = [next(one for one in target.intervals if one.coverage == 0.9) for target in (y, z)]
    assert again.width90 == pytest.approx(np.mean([one.mean_width for one in ninety]))
    assert again.coverage90 == pytest.approx(np.mean([one.observed_coverage for one in ninety]))


def test_no_option_is_given_but_the_targets(data, monkeypatch):
    given = []

    def stop(path, options, **rest):
        given.append(options)
        raise OptionError("seen enough")

    monkeypatch.setattr(product, "train", stop)
    with pytest.raises(OptionError, match="seen enough"):
        next(product.run(data))
    assert given[0].model_fields_set == {"target", "baselines"}


def test_a_size_is_the_one_option_more(data, monkeypatch):
    given = []
    monkeypatch.setattr(product, "fit_options", lambda options: given.append(options) or fit_options({"target": ["y"]}))
    monkeypatch.setattr(product, "train", lambda *_, **__: (_ for _ in ()).throw(OptionError("seen enough")))
    for method in product.SIZES:
        with pytest.raises(OptionError, match="seen enough"):
            next(product.run(data, method))
    assert [options["size"] for options in given] == [None, "small", "large"]
