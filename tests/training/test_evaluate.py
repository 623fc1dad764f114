import math

import numpy as np
import pytest
from scipy import special, stats

from models.artifact import cpu_session, session_run
from models.conformal import cumulative_probability
from models.manifest import Column, Target
from models.transforms import TRANSFORMS
from tests.model_files import NUMERIC, formula_network, write_formula_model
from training import evaluate
from training.calibrate import Residuals, calibrated, member_moments, transformed
from training.evaluate import COVERAGES, baseline_predictions, evaluation, predicted, scores, supported_coverages
from training.graph import calibrated_graph

COLUMNS = [*NUMERIC, Column(name="colour", kind="categorical", categories=["blue", "green", "red"])]
ONE = [Target(name="y", minimum=-50, maximum=50)]
intervals = pytest.mark.parametrize("interval", ["symmetric", "equal_tailed"])


def targets_of(*transforms):
    return [Target(name=f"y{t}", transform=transform, minimum=0, maximum=1) for t, transform in enumerate(transforms)]


@pytest.fixture
def model(tmp_path):
    """`model(residuals, ...)` -> (run, manifest) of a formula network with that calibration, answering in float64."""

    def made(residuals=None, *, targets=ONE, family="gaussian", freedom=None, interval="symmetric", group_column=None):
        calibration = calibrated(
            residuals,
            method="none" if residuals is None else "split",
            interval=interval,
            family=family,
            freedom=freedom or [None] * len(targets),
            columns=COLUMNS,
            group_column=group_column,
        )
        graph = calibrated_graph(network(targets), columns=COLUMNS, targets=targets, calibration=calibration, float64=True)
        draft = write_formula_model(tmp_path / "draft.onnx", columns=tuple(COLUMNS), targets=tuple(targets))
        about = draft.network.model_copy(update={"family": family, "degrees_of_freedom": freedom})
        manifest = draft.model_copy(update={"calibration": calibration, "network": about})
        return session_run(cpu_session(graph.SerializeToString(), threads=1)), manifest

    return made


def network(targets):
    return formula_network(features=len(COLUMNS), targets=len(targets))


def rows(number, *, seed=0, size=1.0):
    """Feature rows: [number, 3]; 3 is no code of a colour."""
    rng = np.random.default_rng(seed)
    return np.column_stack([size * rng.normal(size=(number, 2)), rng.integers(4, size=number)])


def some_residuals(number, *, targets=1, seed=0):
    return Residuals(values=np.random.default_rng(seed).gumbel(size=(number, targets)), x=rows(number, seed=seed))


def observed(x, targets, distribution, *, seed=1):
    """y drawn from the mixture's mean and std with standardised noise of `distribution`: [n, targets], raw units."""
    location, scale = member_moments(network(targets), x)
    z = location + scale * distribution.rvs(size=location.shape, random_state=seed)
    return np.column_stack([TRANSFORMS[target.transform].inverse(z[:, t]) for t, target in enumerate(targets)])


@intervals
def test_what_the_model_predicts_has_the_coverage_that_it_says_and_a_flat_pit(model, interval):
    run, manifest = model(interval=interval)
    x = rows(20_000)
    y = observed(x, ONE, stats.norm())
    predictions = predicted(run, x, y, manifest)
    score = scores(predictions, targets=ONE, network=manifest.network)["y"]
    assert [one.coverage for one in score.intervals] == list(COVERAGES)
    for one in score.intervals:
        error = math.sqrt(one.coverage * (1 - one.coverage) / 20_000)
        assert one.observed_coverage == pytest.approx(one.coverage, abs=4 * error)
        half = stats.norm.ppf((1 + one.coverage) / 2) * predictions.std
        assert one.mean_width == pytest.approx(2 * half.mean(), rel=1e-3)
        outside = np.maximum(np.abs(y - predictions.mean) - half, 0)
        assert one.interval_score == pytest.approx(np.mean(2 * half + 2 / (1 - one.coverage) * outside), rel=1e-3)
    assert stats.chisquare(20_000 * np.array(score.pit_histogram)).pvalue > 1e-3
    assert score.calibration_error < 1 / math.sqrt(20_000)
    # Expected scores of a normal distribution for its own draws.
    assert score.nll == pytest.approx(np.mean(stats.norm(0, predictions.std).entropy()), abs=0.03)
    assert score.crps == pytest.approx(np.mean(predictions.std) / math.sqrt(math.pi), rel=0.03)
    assert score.rmse == pytest.approx(np.sqrt(np.mean(predictions.std**2)), rel=0.03)
    assert score.mae == pytest.approx(np.sqrt(2 / math.pi) * np.mean(predictions.std), rel=0.03)
    assert score.r2 == pytest.approx(1 - np.mean(predictions.std**2) / np.var(y), abs=0.01)


def test_a_wrong_mean_shows_in_every_score(model):
    run, manifest = model()
    x = rows(2000)
    y = observed(x, ONE, stats.norm())
    good, bad = (scores(predicted(run, x, y + shift, manifest), targets=ONE, network=manifest.network)["y"] for shift in (0, 2))
    for name in ("nll", "rmse", "mae", "crps", "calibration_error"):
        assert getattr(bad, name) > 1.5 * getattr(good, name), name
    assert bad.intervals[2].observed_coverage < 0.5


@pytest.mark.parametrize(
    ("family", "df", "unit"),
    [
        ("gaussian", None, stats.norm()),
        ("laplace", None, stats.laplace(scale=math.sqrt(0.5))),
        ("student_t", 5.0, stats.t(5, scale=math.sqrt(3 / 5))),
    ],
)
def test_nll_is_that_of_the_family_with_the_corrected_std(model, family, df, unit):
    calibration_rows = some_residuals(300)
    run, manifest = model(calibration_rows, family=family, freedom=[df] if df else None)
    factor = manifest.calibration.scale_factor[0]
    assert abs(factor - 1) > 0.1
    x = rows(50)
    y = observed(x, ONE, stats.norm())
    location, scale = member_moments(network(ONE), x)
    expected = -np.mean(unit.logpdf((y - location) / (factor * scale)) - np.log(factor * scale))
    assert scores(predicted(run, x, y, manifest), targets=ONE, network=manifest.network)["y"].nll == pytest.approx(expected)


def test_transformed_targets_are_scored_as_scipy_does_in_their_own_unit(model):
    targets = targets_of("log", "logit", "identity")
    run, manifest = model(targets=targets)
    x = rows(500, size=0.3)
    x[:, 2] = 0
    y = observed(x, targets, stats.norm())
    predictions = predicted(run, x, y, manifest)
    score = scores(predictions, targets=targets, network=manifest.network)
    m, s = member_moments(network(targets), x)
    lognormal = stats.lognorm(s=s[:, 0], scale=np.exp(m[:, 0]))
    assert score["y0"].nll == pytest.approx(-np.mean(lognormal.logpdf(y[:, 0])))
    # Baran and Lerch 2015: the closed form of the lognormal CRPS.
    z, mean = (np.log(y[:, 0]) - m[:, 0]) / s[:, 0], 2 * lognormal.mean()
    crps = y[:, 0] * (2 * special.ndtr(z) - 1) - mean * (special.ndtr(z - s[:, 0]) + special.ndtr(s[:, 0] / math.sqrt(2)) - 1)
    assert score["y0"].crps == pytest.approx(np.mean(crps), rel=1e-3)
    jacobian = -np.log(y[:, 1] * (1 - y[:, 1]))
    assert score["y1"].nll == pytest.approx(-np.mean(stats.norm.logpdf(special.logit(y[:, 1]), m[:, 1], s[:, 1]) + jacobian))
    assert score["y2"].nll == pytest.approx(-np.mean(stats.norm.logpdf(y[:, 2], m[:, 2], s[:, 2])))
    np.testing.assert_allclose(predictions.pit[:, 0], lognormal.cdf(y[:, 0]), atol=1e-4)


def test_the_pit_of_a_row_is_taken_in_its_own_group(model):
    calibration_rows = some_residuals(200)
    calibration_rows.values[calibration_rows.x[:, 2] == 1] += 3
    calibration_rows.x[calibration_rows.x[:, 2] == 2, 2] = np.nan  # red has no calibration rows
    run, manifest = model(calibration_rows, group_column="colour")
    x = rows(100, seed=4)
    x[0, 2] = np.nan
    y = observed(x, ONE, stats.norm())
    predictions = predicted(run, x, y, manifest)
    standardised = (y - predictions.location) / predictions.scale
    for code, group in ((0, 1), (1, 2), (2, 0), (3, 0), (math.nan, 0)):
        mine = np.isnan(x[:, 2]) if math.isnan(code) else x[:, 2] == code
        expected = cumulative_probability(manifest.residuals(group), standardised[mine][..., None])[..., 0]
        assert mine.any()
        assert np.array_equal(predictions.pit[mine], expected)


@pytest.mark.parametrize(
    ("calibration_rows", "interval", "supported"),
    [
        (9, "symmetric", [0.5, 0.8, 0.9]),
        (19, "symmetric", [0.5, 0.8, 0.9, 0.95]),
        (9, "equal_tailed", [0.5, 0.8]),
        (1, "equal_tailed", []),
    ],
)
def test_only_coverages_that_the_calibration_supports_are_scored(model, calibration_rows, interval, supported):
    run, manifest = model(some_residuals(calibration_rows), interval=interval)
    x = rows(10)
    predictions = predicted(run, x, observed(x, ONE, stats.norm()), manifest)
    assert predictions.coverages == supported_coverages(manifest.calibration) == supported
    assert np.isfinite(predictions.lower).all()
    score = scores(predictions, targets=ONE, network=manifest.network)["y"]
    assert [one.coverage for one in score.intervals] == supported


def test_rows_of_a_group_too_small_for_a_coverage_are_left_out_of_its_score(model):
    calibration_rows = some_residuals(200)
    calibration_rows.x[:, 2] = np.where(np.arange(200) < 5, 1, 0)
    run, manifest = model(calibration_rows, group_column="colour")
    assert supported_coverages(manifest.calibration) == [0.5, 0.8, 0.9, 0.95]
    x = rows(60)
    x[:, 2] = np.arange(60) % 2
    y = observed(x, ONE, stats.norm())
    intervals = scores(predicted(run, x, y, manifest), targets=manifest.targets, network=manifest.network)["y"].intervals
    alone = predicted(run, x[::2], y[::2], manifest)
    of_the_large_group = scores(alone, targets=manifest.targets, network=manifest.network)["y"].intervals
    assert [one.coverage for one in intervals] == [0.5, 0.8, 0.9, 0.95]
    assert intervals[0] != of_the_large_group[0]
    assert intervals[2:] == of_the_large_group[2:], "five rows support no more than 0.8"


def test_a_table_in_chunks_is_predicted_as_in_one(model, monkeypatch):
    run, manifest = model(some_residuals(100), group_column="colour")
    x = rows(50)
    y = observed(x, ONE, stats.norm())
    whole = predicted(run, x, y, manifest)
    monkeypatch.setattr(evaluate, "_CHUNK_ROWS", 7)
    assert_same(predicted(run, x, y, manifest), whole)


def assert_same(one, other):
    assert one.coverages == other.coverages
    for name in ("y", "mean", "std", "location", "scale", "lower", "upper", "pit"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12, err_msg=name)


@intervals
@pytest.mark.parametrize("transforms", [("identity",), ("log", "identity", "logit")])
@pytest.mark.parametrize("calibration_rows", [300, 128, 20, None])
def test_a_baseline_is_answered_as_a_model_with_its_moments_would(model, interval, transforms, calibration_rows):
    targets = targets_of(*transforms)
    residuals = None if calibration_rows is None else some_residuals(calibration_rows, targets=len(targets))
    run, manifest = model(residuals, targets=targets, interval=interval)
    x = rows(40, size=0.3)
    y = observed(x, targets, stats.norm())
    baseline = baseline_predictions(member_moments(network(targets), x), y, residuals, targets=targets, interval=interval)
    assert_same(baseline, predicted(run, x, y, manifest))


def test_an_evaluation_scores_baselines_as_gaussian_on_the_same_rows(model):
    run, manifest = model(some_residuals(300), family="student_t", freedom=[3.0])
    x = rows(200)
    y = observed(x, ONE, stats.norm())
    seen = observed(rows(500, seed=9), ONE, stats.norm(), seed=9)
    moments = np.full_like(y, seen.mean()), np.full_like(y, seen.std())
    residuals = Residuals(values=(seen - seen.mean()) / seen.std(), x=np.empty((500, 0)))
    predictions = predicted(run, x, y, manifest)
    constant = baseline_predictions(moments, y, residuals, targets=ONE, interval="symmetric")
    result = evaluation(predictions, targets=ONE, network=manifest.network, baselines={"constant": constant})
    assert result.rows == 200
    assert result.targets == scores(predictions, targets=ONE, network=manifest.network)
    score = result.baselines["constant"]["y"]
    assert score.nll == pytest.approx(-np.mean(stats.norm.logpdf(y, seen.mean(), seen.std())))
    assert score.rmse == pytest.approx(np.sqrt(np.mean((y - seen.mean()) ** 2)))
    assert score.r2 <= 0
    assert result.targets["y"].nll < score.nll
    assert [one.coverage for one in score.intervals] == list(COVERAGES)


def test_moments_are_standardised_in_the_space_of_the_network():
    y = np.array([[1.0], [math.e]])
    predictions = baseline_predictions(
        (np.zeros((2, 1)), np.ones((2, 1))), y, None, targets=targets_of("log"), interval="symmetric"
    )
    np.testing.assert_allclose(predictions.pit[:, 0], special.ndtr(transformed(y, targets_of("log")))[:, 0], atol=1e-4)
