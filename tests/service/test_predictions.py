import math

import numpy as np
import pytest

from models.artifact import cpu_session, read_model, session_run
from models.manifest import ResidualGroup, Target
from models.transforms import TRANSFORMS
from service.errors import InvalidRequestError
from service.predictions import Question, calibrated_targets, check_finite, check_support, predict
from tests.model_files import MIXED, write_formula_model

PLAIN = Target(name="y", minimum=-50.0, maximum=50.0)
LOG = Target(name="z", minimum=0.1, maximum=9.0, transform="log")
SHARE = Target(name="s", minimum=0.1, maximum=0.9, transform="logit")
NEAR = np.array([[0.1, 0.2], [-0.3, 0.1]])


def answered(path, x, *, coverage=(0.9,), **asked):
    data, manifest = read_model(path)
    question = Question(np.asarray(x, dtype=np.float64), coverage=coverage, **asked)
    targets = calibrated_targets(manifest)
    check_support(question, targets)
    outputs = session_run(cpu_session(data))(question.x, np.array(coverage, dtype=np.float64))
    return predict(question, outputs, targets), outputs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


@pytest.fixture
def grouped(path):
    """99 rows in all; groups blue, green and red have 19, 29 and 39."""
    write_formula_model(path, columns=MIXED, group_column="colour")
    return path


def test_moments_and_intervals_are_those_of_the_graph(path):
    write_formula_model(path, targets=(PLAIN, LOG))
    prediction, outputs = answered(path, NEAR, coverage=(0.5, 0.9), quantiles=(0.5,))
    for name in ("mean", "std", "epistemic_std", "lower", "upper"):
        assert getattr(prediction, name) is outputs[name]


def test_quantiles_of_an_equal_tailed_model_are_its_interval_ends(path):
    write_formula_model(path, targets=(PLAIN, LOG, SHARE), interval="equal_tailed")
    prediction, outputs = answered(path, NEAR, coverage=(0.9,), quantiles=(0.05, 0.95))
    np.testing.assert_allclose(prediction.quantiles[..., 0], outputs["lower"][..., 0], rtol=1e-5)
    np.testing.assert_allclose(prediction.quantiles[..., 1], outputs["upper"][..., 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("asked", "alike"),
    [([-9, 1.9], [-9, 1]), ([2, 3, 3.9], [3, 3, 3]), ([4, 5, 8.9], [6.5, 6.5, 6.5]), ([9, 11, 12, 40], [11.5, 11.5, 12, 40])],
)
def test_the_probability_of_a_count_is_asked_between_its_values(tmp_path, asked, alike):
    count = PLAIN.model_copy(update={"values": [2.0, 4.0, 9.0]})
    write_formula_model(tmp_path / "count.onnx", targets=(count,))
    write_formula_model(tmp_path / "plain.onnx", targets=(PLAIN,))
    x = [[2.0, 1.0], [4.0, 2.0]]
    expected = answered(tmp_path / "plain.onnx", x, thresholds=tuple(alike))[0].cdf
    np.testing.assert_array_equal(answered(tmp_path / "count.onnx", x, thresholds=tuple(asked))[0].cdf, expected)


def test_a_probability_of_few_values_does_not_hang_on_the_last_digit(path):
    write_formula_model(
        path, targets=(PLAIN.model_copy(update={"values": np.float32([0.1, 0.2, 0.3]).astype(float).tolist()}),)
    )
    cdf = answered(path, NEAR[:1], thresholds=(0.2, 0.2 + 1e-9, 0.2 - 1e-9, 0.19))[0].cdf[0, 0]
    assert cdf[0] == cdf[1] == cdf[2] > cdf[3]


@pytest.mark.parametrize(("target", "values"), [(LOG, [1.0, 10.0, 100.0]), (SHARE, [0.01, 0.1, 0.5])])
def test_the_middle_between_values_is_that_of_the_transformed(path, target, values):
    transform = TRANSFORMS[target.transform]
    middle = float(transform.inverse(transform.forward(np.array(values[:2])).mean()))
    row = [[float(transform.forward(np.array(values[0]))), 0.0]]
    write_formula_model(path, targets=(target,), float64=True)
    expected = answered(path, row, thresholds=(middle,))[0].cdf[0, 0, 0]
    write_formula_model(path, targets=(target.model_copy(update={"values": values}),), float64=True)
    prediction, _ = answered(path, row, thresholds=(values[0],), samples=4000, seed=1)
    assert prediction.cdf[0, 0, 0] == pytest.approx(expected, abs=0.011)
    assert np.mean(prediction.samples[0, 0] == values[0]) == pytest.approx(expected, abs=0.04)


def test_samples_of_a_count_are_its_values_in_the_proportions_of_its_probabilities(path):
    count, whole = (PLAIN.model_copy(update={"name": name, "values": [3.0, 4.0, 5.0]}) for name in "ab")
    write_formula_model(path, targets=(count, whole.model_copy(update={"values": None})))
    prediction, _ = answered(path, [[2.0, 1.0]], thresholds=(3.0, 4.0), samples=5000, seed=3)
    values, counts = np.unique(prediction.samples[0, 0], return_counts=True)
    assert values.tolist() == [3, 4, 5]
    np.testing.assert_allclose(np.cumsum(counts)[:2] / 5000, prediction.cdf[0, 0], atol=0.03)
    assert len(np.unique(prediction.samples[0, 1])) > 20


def test_a_share_of_few_values_is_certain_beyond_its_domain(path):
    write_formula_model(path, targets=(SHARE.model_copy(update={"values": [0.2, 0.8]}),), float64=True)
    assert answered(path, NEAR[:1], thresholds=(-0.1, 0.0, 0.5, 1.0))[0].cdf[0, 0, [0, 1, 3]].tolist() == [0, 0, 1]


def test_a_probability_inverts_the_quantile(path):
    write_formula_model(path, targets=(LOG,), float64=True)
    quantile = answered(path, NEAR[:1], quantiles=(0.31,))[0].quantiles[0, 0, 0]
    probability = answered(path, NEAR[:1], thresholds=(float(quantile) * (1 + 1e-9),))[0].cdf
    assert 0.31 <= probability[0, 0, 0] < 0.32


@pytest.mark.parametrize(("location", "least"), [(0.0, 0), (1000.1, 999)])
def test_the_probability_up_to_a_count_counts_it_where_float32_is_a_digit_off(path, location, least):
    counts, scale = np.repeat([least, least + 1, least + 5], [40, 37, 22]), 0.9
    manifest = write_formula_model(path)
    residuals = ResidualGroup(residuals=[((counts - location) / scale).tolist()])
    calibration = manifest.calibration.model_copy(update={"groups": [residuals]})
    targets = calibrated_targets(manifest.model_copy(update={"calibration": calibration}))
    question = Question(np.zeros((1, 2)), coverage=(), thresholds=(least - 0.5, least, least + 1, least + 2, least + 5))
    for side in np.float32([-np.inf, np.inf]):
        zeros = dict.fromkeys(question.outputs, np.zeros((1, 1), dtype=np.float32))
        off = {"location": np.nextafter(np.float32([[location]]), side), "scale": np.nextafter(np.float32([[scale]]), side)}
        cdf = predict(question, zeros | off, targets).cdf[0, 0]
        np.testing.assert_allclose(cdf, [0.005, 0.4, 0.77, 0.775, 0.99])  # of 99 rows, and half a row where there is none


@pytest.mark.parametrize("target", [PLAIN, LOG])
def test_a_quantile_that_is_a_value_of_many_rows_holds_it(path, target):
    """Also where the network's arithmetic, in units of a wide target, is a digit off."""
    values, scale, unit = np.repeat([0.3, 10.1, 30.7], [40, 37, 22]), 0.9, 1000.0
    manifest = write_formula_model(path, targets=(target,))
    location = float(TRANSFORMS[target.transform].forward(np.array([7.0]))[0])
    residuals = ResidualGroup(residuals=[((TRANSFORMS[target.transform].forward(values) - location) / scale).tolist()])
    update = {"calibration": manifest.calibration.model_copy(update={"groups": [residuals]})}
    update["network"] = manifest.network.model_copy(update={"target_scale": [unit]})
    targets = calibrated_targets(manifest.model_copy(update=update))
    question = Question(np.zeros((1, 2)), coverage=(), quantiles=(0.4, 0.41, 0.77, 0.9), thresholds=(0.3, 10.1, 30.7))
    kind = np.float32 if target is PLAIN else np.float64
    for off in (-(2.0**-23) * unit, 0.0):
        outputs = dict.fromkeys(question.outputs, np.zeros((1, 1), dtype=kind))
        outputs |= {"location": np.array([[location + off]], dtype=kind), "scale": np.array([[scale]], dtype=kind)}
        answer = predict(question, outputs, targets)
        quantiles = [float(str(value)) for value in answer.quantiles[0, 0]]  # as JSON tells them
        assert (np.array(quantiles) >= [0.3, 10.1, 10.1, 30.7]).all()
        np.testing.assert_allclose(quantiles, [0.3, 10.1, 10.1, 30.7], rtol=0.02)
        np.testing.assert_allclose(answer.cdf[0, 0], [0.4, 0.77, 0.99])


def test_a_threshold_beyond_the_targets_domain_is_certain(path):
    write_formula_model(path, targets=(PLAIN, LOG, SHARE))
    cdf = answered(path, NEAR[:1], thresholds=(-1.0, 0.0, 1.0, 2.0))[0].cdf[0]
    assert cdf[1, :2].tolist() == [0.0, 0.0]
    assert 0 < cdf[1, 3] < 1
    assert cdf[2].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert ((cdf[0] > 0) & (cdf[0] < 1)).all()


def test_samples_repeat_with_their_seed_and_have_the_predicted_spread(path):
    write_formula_model(path, targets=(PLAIN, LOG), rows=999)
    first, outputs = answered(path, NEAR, samples=4000, seed=7)
    again, _ = answered(path, NEAR, samples=4000, seed=7)
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.samples.shape == (2, 2, 4000)
    # residuals are standard normal draws: the spread of 4000 of them is within 5 standard errors of 1.1 %
    np.testing.assert_allclose(first.samples[:, 0].std(axis=1), outputs["std"][:, 0], rtol=0.1)
    assert (first.samples[:, 1] > 0).all()


def test_samples_without_a_seed_differ(path):
    write_formula_model(path)
    assert (answered(path, NEAR, samples=50)[0].samples != answered(path, NEAR, samples=50)[0].samples).any()


def test_a_row_is_answered_from_the_residuals_of_its_group(grouped):
    manifest = read_model(grouped)[1]
    x = [[0, 0, code, 0, 0] for code in (0.0, 2.0, math.nan)]
    prediction, outputs = answered(grouped, x, quantiles=(0.5,), thresholds=(0.0,), samples=200, seed=1)
    standardised = (prediction.quantiles[:, 0, 0] - outputs["location"][:, 0]) / outputs["scale"][:, 0]
    for row, group in enumerate((1, 3, 0)):
        residuals = manifest.residuals(group)[0]
        rows = len(residuals)
        assert standardised[row] == pytest.approx(residuals[math.ceil((rows + 1) * 0.5) - 1], abs=1e-5)
        drawn = (prediction.samples[row, 0] - outputs["location"][row, 0]) / outputs["scale"][row, 0]
        assert np.abs(drawn[:, None] - residuals[None]).min(axis=1).max() < 1e-4
        z = -float(outputs["location"][row, 0]) / float(outputs["scale"][row, 0])
        assert prediction.cdf[row, 0, 0] == pytest.approx(((residuals < z).sum() + 0.5) / (rows + 1))


def test_a_coverage_beyond_the_calibration_rows_is_refused_with_the_largest(path):
    write_formula_model(path, rows=19)
    answered(path, NEAR, coverage=(0.95,))
    with pytest.raises(
        InvalidRequestError, match=r"coverage 0.951 needs more .* than the 19 .* largest supported coverage is 0.95"
    ):
        answered(path, NEAR, coverage=(0.95, 0.951))


@pytest.mark.parametrize("probability", [0.049, 0.951])
def test_a_quantile_beyond_the_calibration_rows_is_refused_with_those_supported(path, probability):
    write_formula_model(path, rows=19)
    answered(path, NEAR, quantiles=(0.05, 0.95))
    with pytest.raises(InvalidRequestError, match=f"quantile {probability} needs .* supported are 0.05 to 0.95"):
        answered(path, NEAR, quantiles=(probability,))


def test_only_rows_whose_group_is_too_small_are_refused(grouped):
    red, blue, unknown = ([0, 0, code, 0, 0] for code in (2.0, 0.0, math.nan))
    answered(grouped, [red, unknown], coverage=(0.97,))
    with pytest.raises(InvalidRequestError) as caught:
        answered(grouped, [red, blue, unknown], coverage=(0.97,))
    (problem,) = caught.value.problems
    assert (problem.row, problem.feature) == (1, "colour")
    assert problem.problem == (
        "group 'blue': coverage 0.97 needs more calibration rows than the 19 there are: the largest supported coverage is 0.95"
    )


def test_a_row_so_far_out_that_the_answer_overflows_is_refused(path):
    write_formula_model(path, targets=(PLAIN, LOG))
    prediction, _ = answered(path, [[0.1, 0.2], [200.0, 0.0]])
    with pytest.raises(InvalidRequestError) as caught:
        check_finite(prediction, ["y", "z"])
    assert str(caught.value) == "row 1: the prediction of z is not a finite number: the row is too far from the training rows"


def test_no_rows_have_an_answer(path):
    write_formula_model(path, targets=(PLAIN, LOG))
    prediction, _ = answered(path, np.empty((0, 2)), quantiles=(0.5,), thresholds=(1.0,), samples=3)
    assert prediction.samples.shape == (0, 2, 3)
    assert prediction.cdf.shape == prediction.quantiles.shape == (0, 2, 1)
