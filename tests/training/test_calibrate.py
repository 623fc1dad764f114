import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from models.artifact import OUTPUTS, ArtifactError, cpu_session, open_model, read_manifest, read_model, session_run, write_model
from models.distributions import MOST_DEGREES_OF_FREEDOM
from models.manifest import Column, Evaluation, Manifest, Target
from models.transforms import TRANSFORMS
from tests.model_files import formula_network, write_formula_model
from training.calibrate import (
    LEAST_OWN_ROWS,
    Residuals,
    calibrated,
    golden,
    group_feature,
    likeliest_family,
    member_moments,
    mixture,
    recalibrate,
    remarks,
    require_new_table,
    small_groups,
    transformed,
)
from training.errors import FitError, OptionError
from training.graph import calibrated_graph

ROOT = Path(__file__).parents[2]
COLUMNS = [
    Column(name="a", kind="numeric", minimum=-2.0, maximum=2.0),
    Column(name="colour", kind="categorical", categories=["blue", "green", "red"]),
    Column(name="open", kind="boolean"),
    Column(name="when", kind="datetime", minimum=1.0, maximum=3.0),
]


def residuals(rows=200, *, targets=1, seed=0, scale=1.0):
    """Skewed residuals with x of all kinds: blue has half of the rows, green three, red none."""
    rng = np.random.default_rng(seed)
    colour = np.where(np.arange(rows) < 3, 1.0, np.where(np.arange(rows) % 2, 0.0, np.nan))
    x = np.column_stack([rng.normal(size=rows), colour, rng.integers(2, size=rows), rng.normal(size=rows)])
    return Residuals(values=scale * (rng.gumbel(size=(rows, targets)) - 0.5), x=x)


def calibration_of(some, *, family="gaussian", freedom=(None,), **options):
    settings = {"method": "split", "interval": "symmetric", "columns": COLUMNS} | options
    return calibrated(some, family=family, freedom=list(freedom), **settings)


# Moments


def test_a_mixture_has_the_mean_and_the_total_variance_of_its_members():
    rng = np.random.default_rng(0)
    location, scale = rng.normal(size=(3, 4, 2)), rng.uniform(0.5, 2, (3, 4, 2))
    mean, std = mixture(location, scale)
    member, draws = rng.integers(3, size=200_000), rng.normal(size=(200_000, 4, 2))
    sample = location[member] + scale[member] * draws
    np.testing.assert_allclose(mean, sample.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(std, sample.std(axis=0), rtol=0.01)
    np.testing.assert_allclose(std**2, (scale**2 + location**2).mean(axis=0) - mean**2)


def test_a_mixture_far_from_zero_keeps_the_spread_of_its_members():
    _, std = mixture(np.array([[[2e9]], [[2e9 + 1]]]), np.full((2, 1, 1), 1e-3))
    assert std.item() == pytest.approx(math.hypot(0.5, 1e-3), rel=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 20_000])
def test_member_moments_are_those_of_the_members_asked_for(rows):
    network = formula_network(features=2, targets=2)
    x = np.random.default_rng(0).normal(size=(rows, 2))
    total = (x @ [1.0, 2.0])[:, None] * [1.0, 2.0]
    own = np.repeat(0.5 + np.abs(x[:, :1]) / 10, 2, axis=1)
    location, scale = member_moments(network, x)
    assert location.shape == scale.shape == (rows, 2)
    np.testing.assert_allclose(location, total, atol=1e-12)
    np.testing.assert_allclose(scale, np.hypot(own, 0.5))


def test_targets_are_transformed_each_its_own_way():
    targets = [
        Target(name=name, transform=name, minimum=0.1, maximum=0.9)  # type: ignore[arg-type]
        for name in ("identity", "log", "logit")
    ]
    y = np.array([[-3.0, math.e, 0.5], [4.0, 1.0, 0.75]])
    np.testing.assert_allclose(transformed(y, targets), [[-3.0, 1.0, 0.0], [4.0, 0.0, math.log(3)]], atol=1e-15)


# Calibration


@pytest.mark.parametrize(("family", "df"), [("gaussian", None), ("laplace", None), ("student_t", 4.0)])
def test_the_scale_factor_is_the_likeliest_one(family, df):
    some = residuals(targets=2)
    factors = calibration_of(some, family=family, freedom=[df, df]).scale_factor
    unit = {
        "gaussian": stats.norm(),
        "laplace": stats.laplace(scale=math.sqrt(0.5)),
        "student_t": stats.t(4, scale=math.sqrt(0.5)),
    }[family]
    assert unit.std() == pytest.approx(1)
    for values, factor in zip(some.values.T, factors, strict=True):
        near = factor * np.array([0.98, 0.999, 1, 1.001, 1.02])
        likelihood = [np.sum(unit.logpdf(values / one) - np.log(one)) for one in near]
        assert np.argmax(likelihood) == 2


@pytest.mark.parametrize("interval", ["symmetric", "equal_tailed"])
def test_a_network_whose_scales_are_all_three_times_too_small_gets_the_same_intervals(interval):
    once = calibration_of(residuals(targets=2), freedom=[None, None], interval=interval)
    tripled = calibration_of(residuals(targets=2, scale=3.0), freedom=[None, None], interval=interval)
    np.testing.assert_allclose(tripled.scale_factor, 3 * np.array(once.scale_factor))
    np.testing.assert_allclose(tripled.groups[0].residuals, once.groups[0].residuals)


def test_residuals_are_kept_sorted_by_target_in_units_of_the_corrected_scale():
    some = residuals(targets=2)
    calibration = calibration_of(some, freedom=[None, None])
    expected = np.sort(some.values / calibration.scale_factor, axis=0).T
    assert np.array_equal(calibration.groups[0].residuals, expected)
    assert calibration.rows == 200


def test_groups_hold_the_residuals_of_each_value_with_rows():
    some = residuals()
    calibration = calibration_of(some, group_column="colour")
    assert [(group.value, group.code, group.rows) for group in calibration.groups] == [
        (None, None, 200),
        ("blue", 0.0, int(np.sum(some.x[:, 1] == 0))),
        ("green", 1.0, 3),
    ]
    for group, (factor,) in zip(calibration.groups[1:], calibration.scale_factors[1:], strict=True):
        assert group.residuals == [sorted(some.values[some.x[:, 1] == group.code, 0] / factor)]
    assert "n calibration rows with its value of colour" in calibration.guarantee


@pytest.mark.parametrize(("family", "df"), [("gaussian", None), ("student_t", 4.0)])
def test_a_group_with_enough_rows_has_the_scale_factor_that_its_rows_alone_would_have(family, df):
    some = residuals(300, targets=2)
    some.x[:, 1] = np.where(np.arange(300) < LEAST_OWN_ROWS, 0, np.where(np.arange(300) < 2 * LEAST_OWN_ROWS - 1, 1, np.nan))
    some.values[some.x[:, 1] == 0] *= [5, 0.1]
    calibration = calibration_of(some, family=family, freedom=[df, df], group_column="colour")
    together, blue, green = calibration.groups
    alone = calibration_of(Residuals(values=some.values[:LEAST_OWN_ROWS], x=some.x), family=family, freedom=[df, df])
    assert (blue.scale_factor, blue.residuals) == (alone.scale_factor, alone.groups[0].residuals)
    assert (together.scale_factor, green.scale_factor) == (None, None)
    assert calibration.scale_factors == [calibration.scale_factor, alone.scale_factor, calibration.scale_factor]


def test_a_group_predicted_without_error_keeps_the_scale_factor_of_all_rows():
    some = residuals(400)
    some.values[some.x[:, 1] == 0] = 0
    assert calibration_of(some, group_column="colour").groups[1].scale_factor is None


def test_a_boolean_feature_has_the_groups_false_and_true():
    calibration = calibration_of(residuals(), group_column="open")
    assert [(group.value, group.code) for group in calibration.groups[1:]] == [("false", 0.0), ("true", 1.0)]
    assert sum(group.rows for group in calibration.groups[1:]) == 200


@pytest.mark.parametrize("name", ["a", "when"])
def test_a_feature_without_values_to_group_by_is_refused(name):
    with pytest.raises(OptionError, match=rf"--calibrate-by {name}: is (numeric|datetime).*add --categorical {name}"):
        group_feature(COLUMNS, name)


def test_grouping_by_what_is_no_feature_names_the_features():
    with pytest.raises(OptionError, match="--calibrate-by shop: is not a feature; the features are a, colour, open, when"):
        calibration_of(residuals(), group_column="shop")


def test_a_predictor_without_error_is_refused_with_a_suspicion():
    with pytest.raises(FitError, match="does a feature hold the target"):
        calibration_of(Residuals(values=np.zeros((50, 1)), x=residuals(50).x))


def test_a_value_too_far_from_its_prediction_for_float64_is_refused():
    with pytest.raises(FitError, match="so far from its prediction that float64"), np.errstate(invalid="ignore"):
        calibration_of(Residuals(values=np.array([[1.0], [np.inf]]), x=residuals(2).x))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("normal", None),
        ("heavy", None),
        ("shifted", "y lies below its predictions, by 0.72 std on average"),
        ("few shifted", None),
        ("mixed", "some errors of y are much larger than the rest: its std, fitted by likelihood, is some 0.6"),
        ("few mixed", None),
    ],
)
@pytest.mark.parametrize("transform", ["identity", "log"])
def test_what_residuals_say_about_mean_and_std_is_told(kind, said, transform):
    rng = np.random.default_rng(0)
    rows = {"few shifted": 20, "few mixed": 90}.get(kind, 2000)
    values = rng.standard_t(3, rows) if kind == "heavy" else rng.normal(size=rows)
    values = values * np.where((rng.random(rows) < 0.1) & kind.endswith("mixed"), 10, 1) - kind.endswith("shifted")
    residuals = Residuals(values=values[:, None], x=np.empty((rows, 0)))
    family, freedom = likeliest_family(residuals, "gaussian", None)
    calibration = calibrated(
        residuals, method="split", interval="symmetric", family=family, freedom=freedom or [None], columns=[]
    )
    told = remarks(calibration, [Target(name="y", minimum=1, maximum=2, transform=transform)])
    if said is None or (kind == "mixed" and transform == "log"):
        assert told == []
    else:
        assert [sentence[: len(said)] for sentence in told] == [said]


def test_groups_of_different_noise_are_no_large_errors():
    x = np.column_stack([np.zeros(800), np.arange(800) % 8 == 0])
    values = np.random.default_rng(0).normal(size=(800, 1)) * np.where(x[:, 1:] == 1, 30, 1)
    columns = [Column(name="a", kind="numeric"), Column(name="open", kind="boolean")]

    def told(group_column):
        by = calibrated(
            Residuals(values=values, x=x),
            method="split",
            interval="symmetric",
            family="student_t",
            freedom=[3.0],
            columns=columns,
            group_column=group_column,
        )
        return remarks(by, [Target(name="y", minimum=1, maximum=2)])

    assert (len(told(None)), told("open")) == (1, [])


def test_groups_too_small_for_a_coverage_are_named():
    calibration = calibration_of(residuals(200), group_column="colour")  # green has three rows
    assert small_groups(0.75, calibration) == []
    assert small_groups(0.9, calibration) == ["colour green has 3 calibration rows: its largest coverage is 0.75, not 0.9"]


@pytest.mark.parametrize("interval", ["symmetric", "equal_tailed"])
@pytest.mark.parametrize(
    ("family", "df", "expected"),
    [
        ("gaussian", None, stats.norm.ppf(0.95)),  # 1.645
        ("laplace", None, math.log(10) / math.sqrt(2)),
        ("student_t", 5.0, stats.t.ppf(0.95, 5) * math.sqrt(3 / 5)),
    ],
)
def test_without_calibration_rows_the_intervals_are_those_of_the_family(family, df, expected, interval):
    calibration = calibration_of(None, method="none", family=family, freedom=[df], interval=interval)
    target = Target(name="y", minimum=0, maximum=1)
    graph = calibrated_graph(
        formula_network(features=4, targets=1), columns=COLUMNS, targets=[target], calibration=calibration, float64=True
    )
    answer = session_run(cpu_session(graph.SerializeToString(), threads=1))(np.zeros((1, 4)), np.array([0.9]))
    assert calibration.scale_factor == [1.0]
    assert "No guarantee" in calibration.guarantee
    assert ((answer["upper"][..., 0] - answer["mean"]) / answer["std"]).item() == pytest.approx(expected, abs=2e-3)
    assert ((answer["mean"] - answer["lower"][..., 0]) / answer["std"]).item() == pytest.approx(expected, abs=2e-3)


# Golden rows


def formula_run(calibration):
    graph = calibrated_graph(
        formula_network(features=4, targets=1),
        columns=COLUMNS,
        targets=[Target(name="y", minimum=0, maximum=1)],
        calibration=calibration,
        float64=True,
    )
    return session_run(cpu_session(graph.SerializeToString(), threads=1))


def test_golden_rows_are_spread_over_ranges_and_categories_and_one_is_all_missing():
    calibration = calibration_of(residuals())
    answers = golden(formula_run(calibration), COLUMNS, calibration)
    assert [row[1:3] for row in answers.x[:5]] == [[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    np.testing.assert_allclose([row[0] for row in answers.x[:5]], [-1.8, -1.0, 0.0, 1.0, 1.8], atol=1e-12)
    np.testing.assert_allclose([row[3] for row in answers.x[:5]], [1.1, 1.5, 2.0, 2.5, 2.9])
    assert answers.x[5] == [None] * 4
    assert answers.coverage == [0.5, 0.8, 0.9]


@pytest.mark.parametrize(
    ("rows", "group_column", "coverage"), [(9, None, [0.5, 0.8, 0.9]), (8, None, [0.5, 0.8]), (200, "colour", [0.5])]
)
def test_golden_rows_ask_only_for_coverages_that_every_group_supports(rows, group_column, coverage):
    calibration = calibration_of(residuals(rows), group_column=group_column)  # green has three rows
    answers = golden(formula_run(calibration), COLUMNS, calibration)
    assert answers.coverage == coverage
    assert all(np.isfinite(answers.outputs[name]).all() for name in OUTPUTS)


def test_golden_rows_are_no_rows_of_the_table_and_repeat_in_the_file(tmp_path):
    values = np.random.default_rng(0).normal(size=(101, 2))
    columns = [
        Column(name=name, kind="numeric", minimum=column.min(), maximum=column.max())
        for name, column in zip("ab", values.T, strict=True)
    ]
    path = tmp_path / "model.onnx"
    write_formula_model(path, columns=tuple(columns))
    manifest = recalibrate(path, values, values[:, :1], output=path, interval=None, group_column=None)
    assert not {tuple(row) for row in manifest.golden.x} & {tuple(row) for row in values.tolist()}
    run, _ = open_model(path)  # which checks them
    answer = run(np.array(manifest.golden.x, dtype=np.float64), np.array(manifest.golden.coverage))
    assert {name: answer[name].tolist() for name in OUTPUTS} == manifest.golden.outputs


# Calibrating a file anew


def biased_rows(rows, *, seed):
    """Rows on which the formula model is off by 2 and its std by half: x [rows, 4], y [rows, 1]."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=rows), rng.integers(3, size=rows), rng.integers(2, size=rows), rng.normal(size=rows)])
    total = x @ [1.0, 2.0, 3.0, 4.0]
    std = np.hypot(0.5, 0.5 + np.abs(x[:, 0]) / 10)
    return x, (total + 2 + 2 * std * rng.normal(size=rows))[:, None]


def write_model_file(path, *, float64=False, **options) -> Manifest:
    return write_formula_model(path, columns=tuple(COLUMNS), float64=float64, **options)


def coverage_of(path, x, y, coverage=0.9):
    run, _ = open_model(path)
    answer = run(x, np.array([coverage]))
    return np.mean((answer["lower"][..., 0] <= y) & (y <= answer["upper"][..., 0]))


@pytest.mark.parametrize("float64", [False, True])
@pytest.mark.parametrize("interval", [None, "equal_tailed"])
def test_calibrating_a_biased_model_anew_restores_its_coverage(tmp_path, interval, float64):
    old = write_model_file(tmp_path / "old.onnx", float64=float64)
    new_rows, fresh_rows = biased_rows(4000, seed=1), biased_rows(20_000, seed=2)
    assert coverage_of(tmp_path / "old.onnx", *fresh_rows) < 0.6
    new = recalibrate(tmp_path / "old.onnx", *new_rows, output=tmp_path / "new.onnx", interval=interval, group_column=None)
    # std of the coverage: sqrt(0.09 (1 / 4001 + 1 / 20 000)) = 0.005
    assert coverage_of(tmp_path / "new.onnx", *fresh_rows) == pytest.approx(0.9, abs=0.02)
    assert new == read_manifest(tmp_path / "new.onnx")
    assert (new.calibration.method, new.calibration.rows) == ("split", 4000)
    assert new.calibration.interval == (interval or old.calibration.interval)
    assert (new.columns, new.targets, new.network) == (old.columns, old.targets, old.network)
    assert new.origin.rows_by_use["calibration"] == 4000
    assert new.origin.model_copy(update={"rows_by_use": old.origin.rows_by_use}) == old.origin
    for path in (tmp_path / "old.onnx", tmp_path / "new.onnx"):
        assert open_model(path)[0](fresh_rows[0][:3], np.array([0.9]))["mean"].dtype == (np.float64 if float64 else np.float32)


def test_an_older_model_with_a_transform_gets_float64_outputs_when_it_is_calibrated_anew(tmp_path):
    target = Target(name="share", minimum=0.1, maximum=0.9, transform="logit")
    write_model_file(tmp_path / "old.onnx", targets=(target,))
    x, y = biased_rows(300, seed=1)
    recalibrate(tmp_path / "old.onnx", x, 1 / (1 + np.exp(-y)), output=tmp_path / "new.onnx", interval=None, group_column=None)
    types = [open_model(tmp_path / f"{name}.onnx")[0](x, np.array([0.9]))["upper"].dtype for name in ("old", "new")]
    assert types == [np.float32, np.float64]


def test_calibrating_anew_takes_in_new_values_of_a_count(tmp_path):
    target = Target(name="y", minimum=0, maximum=2, values=[0.0, 1.0, 2.0])
    write_model_file(tmp_path / "old.onnx", targets=(target,))
    x, _ = biased_rows(300, seed=1)
    for y, values in ((np.arange(300) % 6.0, [0, 1, 2, 3, 4, 5]), (np.arange(300) / 7, None)):
        manifest = recalibrate(
            tmp_path / "old.onnx", x, y[:, None], output=tmp_path / "new.onnx", interval=None, group_column=None
        )
        assert manifest.targets[0].values == values


def test_calibrating_anew_leaves_the_mean_and_drops_the_old_evaluation(tmp_path):
    path = tmp_path / "model.onnx"
    evaluated = write_model_file(path).model_copy(update={"evaluation": Evaluation(rows=9, source="test", targets={})})
    write_model(read_model(path)[0], evaluated, path)
    x, y = biased_rows(300, seed=1)
    before = open_model(path)[0](x, np.array([0.9]))
    manifest = recalibrate(path, x, y, output=path, interval=None, group_column=None)
    after = open_model(path)[0](x, np.array([0.9]))
    assert np.array_equal(before["mean"], after["mean"])
    np.testing.assert_allclose(after["std"] / before["std"], manifest.calibration.scale_factor[0], rtol=1e-6)
    assert manifest.evaluation is None


def test_calibrating_anew_with_a_feature_gives_each_value_its_own_intervals(tmp_path):
    path = tmp_path / "model.onnx"
    write_model_file(path)
    x, y = biased_rows(3000, seed=1)
    y[x[:, 2] == 1] += 10
    first = recalibrate(path, x, y, output=path, interval="equal_tailed", group_column="open")
    again = recalibrate(path, x, y, output=path, interval=None, group_column=None)  # keeps both choices
    assert first.calibration == again.calibration
    for value in (0, 1):
        fresh_x, fresh_y = biased_rows(20_000, seed=3)
        rows = fresh_x[:, 2] == value
        assert coverage_of(path, fresh_x[rows], fresh_y[rows] + 10 * value) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_the_moments_of_each_group_are_those_of_what_its_samples_are_drawn_from(tmp_path, transform):
    path = tmp_path / "model.onnx"
    write_model_file(path, targets=(Target(name="y", minimum=0.1, maximum=9.0, transform=transform),), float64=True)
    x, y = biased_rows(2000, seed=1)
    y = x @ [[1.0], [2.0], [3.0], [4.0]] + 0.2 * np.where(x[:, 2:3] == 1, 5, 1) * np.random.default_rng(2).normal(size=y.shape)
    inverse = TRANSFORMS[transform].inverse
    manifest = recalibrate(path, x, inverse(y), output=path, interval=None, group_column="open")
    answer = open_model(path)[0](x, np.array([0.9]))
    for number in (1, 2):
        rows = manifest.calibration_groups(x) == number
        drawn = inverse(answer["location"][rows] + answer["scale"][rows] * manifest.residuals(number))
        np.testing.assert_allclose(answer["mean"][rows, 0], drawn.mean(axis=1), rtol=1e-3, atol=0.1)
        np.testing.assert_allclose(answer["std"][rows, 0], drawn.std(axis=1), rtol=0.01)


def test_calibrating_anew_does_not_forget_that_rows_depend_on_each_other(tmp_path):
    path = tmp_path / "model.onnx"
    manifest = write_model_file(path)
    calibration = manifest.calibration.model_copy(update={"dependence": "group"})
    write_model(read_model(path)[0], manifest.model_copy(update={"calibration": calibration}), path)
    again = recalibrate(path, *biased_rows(100, seed=1), output=path, interval=None, group_column=None)
    assert again.calibration.dependence == "group"
    assert "Rows of one group depend on each other" in again.calibration.guarantee


def test_a_log_transformed_target_is_calibrated_in_logs(tmp_path):
    path = tmp_path / "model.onnx"
    write_model_file(path, targets=(Target(name="y", transform="log", minimum=0.1, maximum=9.0),))
    x, y = biased_rows(2000, seed=1)
    x, y = x / 10, y / 10
    manifest = recalibrate(path, x, np.exp(y), output=path, interval=None, group_column=None)
    location, scale = member_moments(formula_network(features=4, targets=1), x)
    expected = np.sort(((y - location) / scale)[:, 0]) / manifest.calibration.scale_factor[0]
    np.testing.assert_allclose(manifest.residuals()[0], expected, atol=1e-9)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it now is an ImportError
from pathlib import Path
import numpy as np
from training.calibrate import recalibrate
x = np.random.default_rng(0).normal(size=(50, 4))
recalibrate(Path(sys.argv[1]), x, x[:, :1], output=Path(sys.argv[2]), interval=None, group_column=None)
"""


def test_calibrating_anew_needs_no_torch(tmp_path):
    write_model_file(tmp_path / "old.onnx")
    command = [sys.executable, "-c", WITHOUT_TORCH, tmp_path / "old.onnx", tmp_path / "new.onnx"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert read_manifest(tmp_path / "new.onnx").calibration.rows == 50


def test_a_file_that_was_tampered_with_is_refused_and_kept(tmp_path):
    path = tmp_path / "model.onnx"
    write_model_file(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"formula") + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        recalibrate(path, *biased_rows(100, seed=1), output=path, interval=None, group_column=None)
    assert path.read_bytes() == bytes(data)


def test_a_file_that_does_not_repeat_its_golden_rows_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    manifest = write_model_file(path)
    other = calibrated_graph(
        formula_network(features=4, targets=1),
        columns=COLUMNS,
        targets=manifest.targets,
        calibration=calibration_of(residuals(scale=5.0)),
        float64=False,
    )
    write_model(other.SerializeToString(), manifest, path)
    with pytest.raises(ArtifactError, match="of the golden rows is off"):
        recalibrate(path, *biased_rows(100, seed=1), output=path, interval=None, group_column=None)


@pytest.mark.parametrize(
    ("rows", "group_column", "message"),
    [
        (100, "shop", "--calibrate-by shop: is not a feature"),
        (
            8,
            None,
            r"coverage 0\.9: 8 calibration rows support at most 0\.8888",
        ),
    ],
)
def test_a_calibration_that_fails_leaves_the_old_file(tmp_path, rows, group_column, message):
    path = tmp_path / "model.onnx"
    write_model_file(path)
    before = path.read_bytes()
    with pytest.raises(OptionError, match=message):
        recalibrate(path, *biased_rows(rows, seed=1), output=path, interval=None, group_column=group_column)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_a_default_coverage_that_the_rows_just_support_is_accepted(tmp_path):
    path = tmp_path / "model.onnx"
    write_model_file(path)
    manifest = recalibrate(path, *biased_rows(9, seed=1), output=path, interval=None, group_column=None)
    assert (manifest.default_coverage, manifest.calibration.common_coverage) == (0.9, 0.9)


def test_rows_without_a_known_value_of_the_group_column_do_not_calibrate_by_it(tmp_path):
    write_model_file(tmp_path / "model.onnx")
    x, y = biased_rows(100, seed=1)
    x[:, 1] = np.nan
    given = {"output": tmp_path / "new.onnx", "interval": None}
    with pytest.raises(OptionError, match="the model is calibrated by colour, and no row has a value of colour that it knows"):
        recalibrate(tmp_path / "model.onnx", x, y, group_column="colour", **given)
    recalibrate(tmp_path / "model.onnx", x, y, group_column="open", **given)


def test_a_column_without_a_category_among_the_seen_rows_has_golden_rows_too():
    columns = [*COLUMNS[:1], Column(name="colour", kind="categorical", categories=[]), *COLUMNS[2:]]
    calibration = calibration_of(residuals())
    answers = golden(formula_run(calibration), columns, calibration)
    assert [row[1] for row in answers.x] == [None] * 6


def test_the_table_that_a_model_was_fitted_to_is_refused(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("a,y\n1,2\n")
    write_model_file(tmp_path / "model.onnx")
    manifest = read_manifest(tmp_path / "model.onnx")
    require_new_table(table, manifest, to_score=True)
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    fitted = manifest.model_copy(update={"origin": manifest.origin.model_copy(update={"data_sha256": digest})})
    with pytest.raises(OptionError, match=r"table\.csv is the table that the model was fitted to"):
        require_new_table(table, fitted, to_score=False)


def test_different_scales_of_groups_are_no_heavy_tails_where_each_is_calibrated_by_itself(tmp_path):
    rng = np.random.default_rng(0)
    x = residuals(2000).x
    x[:, 1] = rng.integers(3, size=2000)
    some = Residuals(values=rng.normal(size=(2000, 1)) * np.where(x[:, 1:2] == 2, 5, 1), x=x)
    assert likeliest_family(some, "gaussian", None)[0] == "student_t"
    assert likeliest_family(some, "gaussian", None, columns=COLUMNS, group_column="colour") == ("gaussian", None)
    heavy = Residuals(values=rng.standard_t(4, size=(2000, 1)) * np.where(x[:, 1:2] == 2, 5, 1), x=x)
    _, (df,) = likeliest_family(heavy, "gaussian", None, columns=COLUMNS, group_column="colour")
    assert df == pytest.approx(4, rel=0.3)
    write_model_file(tmp_path / "model.onnx")
    location, scale = member_moments(formula_network(features=4, targets=1), x)
    given = {"output": tmp_path / "new.onnx", "interval": None, "group_column": "colour"}
    assert recalibrate(tmp_path / "model.onnx", x, location + scale * some.values, **given).network.family == "gaussian"


def test_the_family_is_chosen_by_the_calibration_residuals():
    rng = np.random.default_rng(0)
    normal, heavy = rng.normal(size=1000), rng.standard_t(4, size=1000)

    def chosen(*columns, family="gaussian", freedom=None):
        values = np.stack(columns, axis=1)
        return likeliest_family(Residuals(values=values, x=np.zeros((1000, 1))), family, freedom)

    assert chosen(normal) == ("gaussian", None)
    assert chosen(normal, family="student_t", freedom=[5.0]) == ("gaussian", None)
    assert chosen(heavy, family="laplace") == ("laplace", None)
    family, freedom = chosen(heavy, normal)
    assert family == "student_t"
    assert freedom[0] == pytest.approx(4, rel=0.3)
    assert freedom[1] == MOST_DEGREES_OF_FREEDOM
    assert likeliest_family(None, "student_t", [5.0]) == ("student_t", [5.0])
    assert chosen(np.zeros(1000)) == ("gaussian", None)  # nothing to tell them apart by: `calibrated` refuses these
