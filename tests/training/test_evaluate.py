import math

import numpy as np
import pytest
from scipy import special, stats

from models.artifact import cpu_session, session_run
from models.conformal import cumulative_probability
from models.manifest import Column, Evaluation, Target
from models.transforms import TRANSFORMS
from tests.model_files import NUMERIC, formula_network, write_formula_model
from training.calibrate import Residuals, calibrated, member_moments, transformed
from training.errors import FitError
from training.evaluate import (
    COVERAGES,
    Predictions,
    baseline_manifest,
    calibrated_predictions,
    cross_predicted,
    evaluation,
    outliers,
    predicted,
    rows_in_words,
    scores,
    too_low,
)
from training.graph import calibrated_graph

COLUMNS = [*NUMERIC, Column(name="colour", kind="categorical", categories=["blue", "green", "red"])]
ONE = [Target(name="y", minimum=-50, maximum=50)]
intervals = pytest.mark.parametrize("interval", ["symmetric", "equal_tailed"])


def targets_of(*transforms):
    return [Target(name=f"y{t}", transform=transform, minimum=0.1, maximum=0.9) for t, transform in enumerate(transforms)]


@pytest.fixture
def model(tmp_path):
    """`model(residuals, ...)` -> (run, manifest) of a formula network with that calibration, answering in float64."""

    def made(
        residuals=None, *, targets=ONE, family="gaussian", freedom=None, interval="symmetric", group_column=None, offset=0.0
    ):
        calibration = calibrated(
            residuals,
            method="none" if residuals is None else "split",
            interval=interval,
            family=family,
            freedom=freedom or [None] * len(targets),
            columns=COLUMNS,
            group_column=group_column,
        )
        graph = calibrated_graph(
            network(targets, offset), columns=COLUMNS, targets=targets, calibration=calibration, float64=True
        )
        draft = write_formula_model(tmp_path / "draft.onnx", columns=tuple(COLUMNS), targets=tuple(targets))
        about = draft.network.model_copy(update={"family": family, "degrees_of_freedom": freedom})
        manifest = draft.model_copy(update={"calibration": calibration, "network": about})
        return session_run(cpu_session(graph.SerializeToString(), threads=1)), manifest

    return made


def network(targets, offset=0.0):
    return formula_network(features=len(COLUMNS), targets=len(targets), offset=offset)


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
    assert predictions.coverages == supported
    assert np.isfinite(predictions.lower).all()
    score = scores(predictions, targets=ONE, network=manifest.network)["y"]
    assert [one.coverage for one in score.intervals] == supported


def test_a_logit_target_without_an_interval_is_not_scored_on_all_of_its_domain(model):
    calibration_rows = some_residuals(200)
    calibration_rows.x[:, 2] = np.where(np.arange(200) < 5, 1, 0)
    share = [Target(name="s", minimum=0.0, maximum=1.0, transform="logit")]
    run, manifest = model(calibration_rows, group_column="colour", targets=share)
    x = rows(60)
    x[:, 2] = np.arange(60) % 2
    predictions = predicted(run, x, np.full((60, 1), 0.5), manifest)
    assert predictions.upper[1, 0, -1] == 1.0
    assert [one.rows for one in scores(predictions, targets=share, network=manifest.network)["s"].intervals] == [60, 60, 30, 30]


def test_rows_of_a_group_too_small_for_a_coverage_are_left_out_of_its_score(model):
    calibration_rows = some_residuals(200)
    calibration_rows.x[:, 2] = np.where(np.arange(200) < 5, 1, 0)
    run, manifest = model(calibration_rows, group_column="colour")
    x = rows(60)
    x[:, 2] = np.arange(60) % 2
    y = observed(x, ONE, stats.norm())
    intervals = scores(predicted(run, x, y, manifest), targets=manifest.targets, network=manifest.network)["y"].intervals
    alone = predicted(run, x[::2], y[::2], manifest)
    of_the_large_group = scores(alone, targets=manifest.targets, network=manifest.network)["y"].intervals
    assert [one.coverage for one in intervals] == [0.5, 0.8, 0.9, 0.95]
    assert intervals[0] != of_the_large_group[0]
    assert intervals[2:] == of_the_large_group[2:], "five rows support no more than 0.8"
    assert [one.rows for one in intervals] == [60, 60, 30, 30]


def assert_same(one, other):
    assert one.coverages == other.coverages
    for name in ("y", "mean", "std", "location", "scale", "lower", "upper", "pit"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12, err_msg=name)


@intervals
@pytest.mark.parametrize("transforms", [("identity",), ("log", "identity", "logit")])
@pytest.mark.parametrize(("calibration_rows", "group_column"), [(300, "colour"), (128, None), (20, None), (None, None)])
def test_moments_are_answered_as_the_graph_would(model, interval, transforms, calibration_rows, group_column):
    targets = targets_of(*transforms)
    residuals = None if calibration_rows is None else some_residuals(calibration_rows, targets=len(targets))
    run, manifest = model(residuals, targets=targets, interval=interval, group_column=group_column)
    x = rows(40, size=0.3)
    y = observed(x, targets, stats.norm())
    answers = calibrated_predictions(member_moments(network(targets), x), x, y, manifest, residuals=residuals)
    assert_same(answers, predicted(run, x, y, manifest))


@intervals
def test_moments_far_from_zero_are_answered_as_the_graph_would_to_the_last_digits(model, interval):
    residuals = some_residuals(300)
    run, manifest = model(residuals, interval=interval, offset=2e9)
    x, y = rows(40), np.full((40, 1), 2e9)
    answers = calibrated_predictions(member_moments(network(ONE, 2e9), x), x, y, manifest, residuals=residuals)
    expected = predicted(run, x, y, manifest)
    for side in ("lower", "upper"):
        np.testing.assert_allclose(getattr(answers, side), getattr(expected, side), rtol=0, atol=2 * np.spacing(2e9))


def test_an_evaluation_scores_baselines_by_their_own_family_on_the_same_rows(model):
    run, manifest = model(some_residuals(300), family="student_t", freedom=[3.0])
    x = rows(200)
    y = observed(x, ONE, stats.norm())
    seen = observed(rows(500, seed=9), ONE, stats.norm(), seed=9)
    moments = np.full_like(y, seen.mean()), np.full_like(y, seen.std())
    residuals = Residuals(values=(seen - seen.mean()) / seen.std(), x=np.empty((500, 0)))
    predictions = predicted(run, x, y, manifest)
    manifest_of_it = baseline_manifest(manifest, residuals)
    assert (manifest_of_it.network.family, manifest_of_it.network.degrees_of_freedom) == ("gaussian", None)
    constant = calibrated_predictions(moments, x, y, manifest_of_it, residuals=residuals)
    baselines = {"constant": (constant, manifest_of_it.network)}
    result = evaluation(predictions, targets=ONE, network=manifest.network, baselines=baselines, source="test")
    assert (result.rows, result.source) == (200, "test")
    assert result.targets == scores(predictions, targets=ONE, network=manifest.network)
    score = result.baselines["constant"]["y"]
    assert score.nll == pytest.approx(-np.mean(stats.norm.logpdf(y, seen.mean(), seen.std())))
    assert score.rmse == pytest.approx(np.sqrt(np.mean((y - seen.mean()) ** 2)))
    assert score.r2 <= 0
    assert result.targets["y"].nll < score.nll
    assert [one.coverage for one in score.intervals] == list(COVERAGES)


def test_moments_are_standardised_in_the_space_of_the_network(model):
    targets = targets_of("log")
    _, manifest = model(targets=targets)
    y = np.array([[1.0], [math.e]])
    moments = np.zeros((2, 1)), np.ones((2, 1))
    predictions = calibrated_predictions(moments, np.zeros((2, 3)), y, manifest, residuals=None)
    np.testing.assert_allclose(predictions.pit[:, 0], special.ndtr(transformed(y, targets))[:, 0], atol=1e-4)


def test_a_default_coverage_is_scored_where_it_is_supported(model):
    run, manifest = model(some_residuals(300))
    x = rows(20)
    y = observed(x, ONE, stats.norm())
    for default, expected in ((0.99, [0.5, 0.8, 0.9, 0.95, 0.99]), (0.7, [0.5, 0.7, 0.8, 0.9, 0.95]), (0.999, [*COVERAGES])):
        named = manifest.model_copy(update={"default_coverage": default})
        assert predicted(run, x, y, named).coverages == expected


def cases(number, targets=ONE, *, seed=0, wrong=False):
    """Rows with moments that are right, or (wrong) with a shift and a std that grows where it should shrink."""
    x = rows(number, seed=seed, size=0.3)
    location, scale = member_moments(network(targets), x)
    y = observed(x, targets, stats.norm(), seed=seed + 1)
    return ((location + 3, np.exp(x[:, :1]) / scale) if wrong else (location, scale)), x, y


@intervals
@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("group_column", [None, "colour"])
def test_cross_predicted_intervals_hold_what_they_say_for_good_and_for_wrong_predictors(model, interval, wrong, group_column):
    _, manifest = model(some_residuals(9), interval=interval, group_column=group_column)
    moments, x, y = cases(2000, wrong=wrong)
    predictions = cross_predicted(moments, x, y, manifest)
    assert predictions.coverages == list(COVERAGES)
    inside = (predictions.lower[:, 0] <= y) & (y <= predictions.upper[:, 0])
    for share, coverage in zip(inside.mean(axis=0), COVERAGES, strict=True):
        assert share == pytest.approx(coverage, abs=4 * math.sqrt(coverage * (1 - coverage) / 2000))
    np.testing.assert_array_equal(np.sort(np.concatenate([part for part, _ in predictions.sources])), np.arange(2000))
    factor = predictions.scale / moments[1]
    assert np.all(np.abs(factor - 1) < 0.1) != wrong


@intervals
def test_values_that_many_rows_share_lie_within_the_cross_predicted_intervals_that_they_make(model, interval):
    targets = targets_of(*["identity"] * 30)  # each with roundings of its own
    _, manifest = model(some_residuals(9, targets=30), targets=targets, interval=interval)
    y = np.repeat([[0.3], [0.7]], 60, axis=0) * np.ones(30)
    location, scale = np.random.default_rng(0).uniform([[0.4], [0.1]], [[0.6], [0.3]], (2, 30))
    predictions = cross_predicted((location * np.ones_like(y), scale * np.ones_like(y)), rows(120), y, manifest)
    nine = predictions.coverages.index(0.9)
    inside = (predictions.lower[..., nine] <= y) & (y <= predictions.upper[..., nine])
    assert inside.all()


def test_the_coverage_of_all_cross_predicted_rows_says_nothing_of_the_model_and_the_scores_do(model):
    _, manifest = model(some_residuals(9))
    right, wrong = (
        scores(cross_predicted(*cases(2000, wrong=wrong), manifest), targets=ONE, network=manifest.network)["y"]
        for wrong in (False, True)
    )
    for one in (right, wrong):  # far closer than the binomial error of independent test rows, 0.007
        assert one.intervals[2].observed_coverage == pytest.approx(0.9, abs=0.003)
        assert one.calibration_error < 0.003
    assert wrong.intervals[2].interval_score > 2 * right.intervals[2].interval_score
    assert wrong.nll > right.nll + 0.5


def test_no_value_moves_the_interval_of_its_own_part(model):
    _, manifest = model(some_residuals(9), group_column="colour")
    moments, x, y = cases(160)  # so few that no colour has a scale factor of its own
    before = cross_predicted(moments, x, y, manifest)
    changed = y.copy()
    changed[17] += 1000
    after = cross_predicted(moments, x, changed, manifest)
    moved = np.flatnonzero((before.scale != after.scale).any(axis=1))
    assert len(moved) == 128, "the scale factor of the other four parts has seen the value"
    still = np.setdiff1d(np.arange(160), moved)
    assert 17 in still
    for name in ("mean", "std", "location", "scale", "lower", "upper"):
        np.testing.assert_array_equal(getattr(before, name)[still], getattr(after, name)[still])
    assert before.pit[17] != after.pit[17]
    np.testing.assert_array_equal(np.delete(before.pit, moved)[still != 17], np.delete(after.pit, moved)[still != 17])


def test_parts_follow_from_the_seed(model):
    _, manifest = model(some_residuals(9))
    one, same, other = (cross_predicted(*cases(60), manifest, seed=seed) for seed in (0, 0, 1))
    assert_same(one, same)
    assert not np.array_equal(one.scale, other.scale)


def test_predictors_of_the_same_rows_are_compared_on_the_same_parts(model):
    _, manifest = model(some_residuals(9), family="student_t", freedom=[4.0])
    right, x, y = cases(61)
    constant = np.full_like(y, y.mean()), np.full_like(y, y.std())
    heavy = np.random.default_rng(0).standard_t(3, size=(2000, 1))
    baseline = baseline_manifest(manifest, Residuals(values=heavy, x=np.empty((2000, 0))))
    assert baseline.network.family == "student_t", "heavy tails are no merit of the model's"
    assert baseline.network.degrees_of_freedom[0] == pytest.approx(3, rel=0.3)
    parts = [
        [part.tolist() for part, _ in cross_predicted(moments, x, y, by, seed=3).sources]
        for moments, by in ((right, manifest), (constant, baseline))
    ]
    assert parts[0] == parts[1]


def test_a_baseline_is_calibrated_with_all_rows_together(model):
    _, manifest = model(some_residuals(90), group_column="colour")
    assert len(cross_predicted(*cases(90), manifest).sources) > 5
    assert len(cross_predicted(*cases(90), baseline_manifest(manifest, None)).sources) == 5


def test_intervals_of_baselines_are_scored_where_those_of_the_model_are_finite(model):
    run, manifest = model(some_residuals(30), group_column="colour")
    x, y = rows(200), np.zeros((200, 1))
    predictions = predicted(run, x, y, manifest)
    finite = np.isfinite(predictions.upper[:, 0, predictions.coverages.index(0.9)])
    assert 0 < finite.sum() < 200, "one colour has fewer than nine rows"
    shape = predictions.upper.shape
    widths = np.arange(200.0)
    whole = Predictions(**{**vars(predictions), "lower": np.tile(-widths[:, None, None], shape[1:]), "upper": np.zeros(shape)})
    network = manifest.network
    result = evaluation(predictions, targets=ONE, network=network, baselines={"b": (whole, network)}, source="test")
    (nine,) = (one for one in result.baselines["b"]["y"].intervals if one.coverage == 0.9)
    assert nine.mean_width == pytest.approx(widths[finite].mean())


def test_rows_of_one_group_get_their_intervals_without_each_other(model):
    _, manifest = model(some_residuals(9))
    moments, x, y = cases(120)
    groups = np.arange(120) % 12
    predictions = cross_predicted(moments, x, y, manifest, groups=groups)
    in_parts = [set(groups[part]) for part, _ in predictions.sources]
    assert sum(map(len, in_parts)) == 12
    alone = cross_predicted(moments, x, y, manifest, groups=np.zeros(120, dtype=np.int64))
    assert_same(alone, cross_predicted(moments, x, y, manifest))


def test_a_large_group_leaves_the_coverages_that_the_few_other_rows_support(model):
    _, manifest = model(some_residuals(9))
    moments, x, y = cases(60)
    predictions = cross_predicted(moments, x, y, manifest, groups=np.maximum(np.arange(60) - 51, 0))  # 52 rows, and 8 alone
    assert predictions.coverages == [0.5, 0.8]
    assert np.isfinite(predictions.lower).all()


def test_a_row_gets_the_interval_of_its_own_group_of_the_other_parts(model):
    _, manifest = model(some_residuals(9), group_column="colour")
    moments, x, y = cases(400)
    y[x[:, 2] == 1] = moments[0][x[:, 2] == 1] + 10 * (y - moments[0])[x[:, 2] == 1]
    predictions = cross_predicted(moments, x, y, manifest)
    half = ((predictions.upper - predictions.lower) / 2 / moments[1][..., None])[:, 0, 2]
    assert half[x[:, 2] == 1].min() > 10
    assert half[(x[:, 2] == 0) | (x[:, 2] == 2)].max() < 3
    for part, residuals in predictions.sources:
        colours = set(x[part, 2])
        assert len(colours) == 1
        others = np.setdiff1d(np.flatnonzero(x[:, 2] == colours.pop()), part)
        assert residuals.shape[1] in (len(others), 320)  # 3 is no colour: all rows of the other parts


@intervals
def test_transformed_targets_are_cross_predicted_in_their_own_unit(model, interval):
    targets = targets_of("log", "logit", "identity")
    _, manifest = model(some_residuals(9, targets=3), targets=targets, interval=interval)
    moments, x, y = cases(400, targets)
    predictions = cross_predicted(moments, x, y, manifest)
    assert (predictions.lower[:, 0] > 0).all()
    assert ((predictions.lower[:, 1] > 0) & (predictions.upper[:, 1] < 1)).all()
    inside = (predictions.lower[:, :, 2] <= y) & (y <= predictions.upper[:, :, 2])
    np.testing.assert_allclose(inside.mean(axis=0), 0.9, atol=0.06)
    lognormal = stats.lognorm(s=predictions.scale[:, 0], scale=np.exp(predictions.location[:, 0]))
    np.testing.assert_allclose(predictions.mean[:, 0], lognormal.mean(), rtol=0.2)
    for part, residuals in predictions.sources:
        others = np.setdiff1d(np.arange(400), part)
        rescaled = (transformed(y, targets) - predictions.location)[others] / moments[1][others]
        np.testing.assert_allclose(residuals, np.sort(rescaled / (predictions.scale / moments[1])[part[0]], axis=0).T)
        nodes = predictions.location[part, 0, None] + predictions.scale[part, 0, None] * residuals[0]
        np.testing.assert_allclose(predictions.mean[part, 0], np.exp(nodes).mean(axis=1))
    score = scores(predictions, targets=targets, network=manifest.network)
    by_part = [
        scores(only(predictions, number), targets=targets, network=manifest.network)["y0"].crps
        for number in range(len(predictions.sources))
    ]
    sizes = [len(part) for part, _ in predictions.sources]
    assert score["y0"].crps == pytest.approx(np.average(by_part, weights=sizes))


def only(predictions, number):
    """The predictions of one source alone."""
    part, residuals = predictions.sources[number]
    arrays = {name: value[part] for name, value in vars(predictions).items() if isinstance(value, np.ndarray)}
    rest = {"coverages": predictions.coverages, "interval": predictions.interval}
    return Predictions(**arrays, **rest, sources=[(np.arange(len(part)), residuals)])


@pytest.mark.parametrize(
    ("number", "interval", "parts", "supported"),
    [
        (9, "symmetric", 5, [0.5, 0.8]),  # the smallest of the five calibrations has seven rows
        (12, "symmetric", 5, [0.5, 0.8, 0.9]),
        (9, "equal_tailed", 5, [0.5]),
        (3, "symmetric", 3, [0.5]),
        (2, "symmetric", 2, [0.5]),
        (2, "equal_tailed", 2, []),
    ],
)
def test_few_rows_are_cross_predicted_at_what_the_smallest_calibration_supports(model, number, interval, parts, supported):
    _, manifest = model(some_residuals(9), interval=interval)
    predictions = cross_predicted(*cases(number), manifest)
    assert len(predictions.sources) == parts
    assert predictions.coverages == supported
    assert np.isfinite(predictions.lower).all()
    assert [one.coverage for one in scores(predictions, targets=ONE, network=manifest.network)["y"].intervals] == supported


def test_one_row_cannot_be_cross_predicted(model):
    _, manifest = model(some_residuals(9))
    with pytest.raises(ValueError, match="1 calibration rows: at least 2"):
        cross_predicted(*cases(1), manifest)


@pytest.mark.parametrize(
    ("source", "number", "words"),
    [
        ("test", 103, "103 test rows that nothing was fitted to"),
        ("test", 1, "1 test row that nothing was fitted to"),
        ("out_of_fold", 1030, "1,030 out-of-fold rows, each predicted by networks that had not seen it"),
        ("calibration", 2000, "2,000 calibration rows, each with an interval made from the others"),
    ],
)
def test_an_evaluation_says_which_rows_it_is_of(source, number, words):
    assert rows_in_words(Evaluation(rows=number, source=source, targets={})) == words


def test_a_value_far_from_its_prediction_is_told_and_scores_beyond_float64_are_refused(model):
    targets = [*targets_of("log"), Target(name="z", minimum=0, maximum=1)]
    run, manifest = model(some_residuals(200, targets=2), targets=targets)
    x = rows(60, size=0.1)
    y = observed(x, targets, stats.norm())
    assert outliers(predicted(run, x, y, manifest), targets) == []
    y[7] = 1e40
    far = outliers(predicted(run, x, y, manifest), targets)
    assert [sentence[:16] for sentence in far] == ["y0 is 1e+40 wher", "z is 1e+40 where"]
    assert all(sentence.endswith(" stds away; if that is a mistake, correct it and fit again") for sentence in far)
    y[7, 1] = 1e200
    sentence = r"the scores of z are beyond float64: z is 1e\+200 where about .* correct such values, or fit in another unit"
    with pytest.raises(FitError, match=sentence):
        scores(predicted(run, x, y, manifest), targets=targets, network=manifest.network)


def test_a_baseline_whose_scores_are_beyond_float64_is_left_out(model):
    run, manifest = model(some_residuals(200))
    x = rows(60)
    good = predicted(run, x, observed(x, ONE, stats.norm()), manifest)
    bad = Predictions(**{**vars(good), "mean": good.mean * 1e200})
    baselines = {"good": (good, manifest.network), "bad": (bad, manifest.network)}
    scored = evaluation(good, targets=ONE, network=manifest.network, baselines=baselines, source="test")
    assert list(scored.baselines) == ["good"]


def test_rows_without_a_group_are_no_sign_of_other_rows(model):
    """Theirs are the intervals of all rows together, which promise nothing about them."""
    rng = np.random.default_rng(0)
    x = np.column_stack([np.zeros((300, 2)), rng.integers(3, size=300)])
    run, manifest = model(Residuals(values=rng.normal(size=(300, 1)), x=x), group_column="colour")
    new = x.copy()
    answers = run(new, np.array([0.9]))
    without = np.arange(300) < 200
    new[without, 2] = np.nan
    right, wrong = answers["location"], answers["location"] + 1e3
    predictions = predicted(run, new, np.where(without[:, None], wrong, right), manifest)
    assert too_low(predictions, new, manifest) == ([], 100)
    told, values = too_low(predicted(run, new, np.where(without[:, None], right, wrong), manifest), new, manifest)
    assert (len(told), values) == (1, 100), "many good rows without a group hide no bad ones"
    nobody = new[without]
    assert too_low(predicted(run, nobody, wrong[without], manifest), nobody, manifest) == ([], 0)


def test_a_group_that_holds_all_calibration_rows_has_a_promise(model):
    x = np.zeros((300, 3))
    run, manifest = model(Residuals(values=np.random.default_rng(0).normal(size=(300, 1)), x=x), group_column="colour")
    told, values = too_low(predicted(run, x, np.full((300, 1), 1e3), manifest), x, manifest)
    assert (len(told), values) == (1, 300)
