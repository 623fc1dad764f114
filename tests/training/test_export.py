import contextlib
import io
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from models.artifact import cpu_session, session_run
from models.heads import FAMILIES
from models.manifest import Calibration, Column, ResidualGroup, Target
from models.networks import FeatureStatistics, RawUnitsNetwork, StackedNetwork
from training.config import NetworkOptions
from training.export import exported_network, needs_float64
from training.fit import Fitted, fit
from training.graph import MEMBER_OUTPUTS, NETWORK_PREFIX, OPSET, calibrated_graph
from training.preprocess import feature_statistics

DAY = 86400.0
TARGETS = [Target(name=name, minimum=0.0, maximum=1.0) for name in ("a", "b")]
COLUMNS = [
    Column(name="size", kind="numeric"),
    Column(name="colour", kind="categorical", categories=["blue", "green", "red"]),
    Column(name="open", kind="boolean"),
    Column(name="when", kind="datetime"),
    Column(name="id", kind="numeric"),
]


def rows(number, *, seed=0):
    """Rows of all kinds with missing and unknown values: [number, 5]."""
    rng = np.random.default_rng(seed)
    x = np.column_stack(
        [
            rng.normal(50, 4, number),
            rng.integers(4, size=number),  # code 3 is no category
            rng.integers(2, size=number),
            1.7e9 + rng.uniform(0, 30 * DAY, number),
            1e12 + rng.normal(size=number),  # float32 would hold none of its digits
        ]
    )
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


def fitted(*, offset=0.0):
    x = rows(300)
    y = np.column_stack([offset + np.nan_to_num(x[:, 0], nan=50.0), np.nan_to_num(x[:, 2])])
    y += np.random.default_rng(1).normal(size=y.shape)
    return fit(
        x,
        y,
        statistics=feature_statistics(x, COLUMNS),
        fit_rows=[np.arange(200), np.arange(20, 220), np.arange(200)],
        stop_rows=[np.arange(220, 300)] * 3,
        options=NetworkOptions(width=8, depth=2, frequencies=3, embedding_outputs=2, epochs=3),
    )


def exported(result):
    """The export, and what it wrote while it ran."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        return exported_network(result, columns=len(COLUMNS)), written.getvalue()


@pytest.fixture(scope="module")
def near():
    result = fitted()
    return result, *exported(result)


def torch_members(result, x):
    module = RawUnitsNetwork(result.network, centre=result.centre, scale=result.scale).eval()
    with torch.no_grad():
        return [values.numpy() for values in module(torch.from_numpy(x))]


def onnx_members(network, x):
    return cpu_session(network.SerializeToString(), threads=1).run(list(MEMBER_OUTPUTS), {"x": x})


@pytest.mark.parametrize("number", [0, 1, 1000])
def test_onnx_runtime_answers_what_torch_does_for_all_kinds_of_columns(near, number):
    result, network, _ = near
    x = rows(number, seed=5)
    (location, scale), (expected_location, expected_scale) = onnx_members(network, x), torch_members(result, x)
    assert location.shape == scale.shape == (3, number, 2)
    assert location.dtype == scale.dtype == np.float64
    assert np.all(np.abs(location - expected_location) <= 1e-5 * expected_scale)
    assert np.all(np.abs(scale - expected_scale) <= 1e-5 * expected_scale)


def untrained(*, features=3, outputs=2, missing=False, components=0, **options):
    """A network of random weights on scaled columns 0 ... features - 1; `missing` gives the last an indicator."""
    weight = np.random.default_rng(1).normal(size=(components, features))
    statistics = FeatureStatistics(
        scaled=list(range(features)),
        centre=[1.0] * features,
        scale=[2.0] * features,
        embedded=list(range(features)),
        indicated=[features - 1] if missing else [],
        one_hot=[],
        one_hot_code=[],
        cyclic=[],
        cycle_seconds=[],
        component_weight=weight.tolist(),
        component_centre=[0.5] * components,
    )
    torch.manual_seed(0)
    network = StackedNetwork(
        statistics=statistics,
        members=2,
        targets=2,
        family=FAMILIES["gaussian"],
        **{"width": 8, "depth": 2, "frequencies": 3, "embedding_outputs": outputs} | options,
    )
    return Fitted(network=network.eval(), centre=[5.0, -1.0], scale=[2.0, 0.1], degrees_of_freedom=None, history=[])


@pytest.mark.parametrize(
    "options",
    [
        *({"features": features, "outputs": outputs} for features in (1, 2, 3, 5) for outputs in (1, 8, 20)),
        {"features": 3, "outputs": 8, "missing": True},
        {"frequencies": 0},
        *({"components": components, "frequencies": frequencies} for components in (1, 3) for frequencies in (0, 3)),
        {"frequencies": 0, "missing": True},
        {"activation": "relu"},
        {"activation": "tanh"},
        {"depth": 1},
        {"heteroscedastic": False},
        {"maximum_std": 1.05},  # where half of the rows are at the cap
    ],
    ids=str,
)
def test_networks_of_all_shapes_are_exported_as_they_are(options):
    result = untrained(**options)
    columns = len(result.network.features.statistics.scaled)
    network = exported_network(result, columns=columns)
    x = np.random.default_rng(0).normal(1, 4, size=(50, columns))
    x[0], x[1], x[2], x[3, 0] = np.inf, -np.inf, 1e300, np.nan
    (location, scale), (expected_location, expected_scale) = onnx_members(network, x), torch_members(result, x)
    assert np.all(np.abs(location - expected_location) <= 1e-5 * expected_scale)
    assert np.all(np.abs(scale - expected_scale) <= 1e-5 * expected_scale)


def test_a_row_of_missing_values_alone_has_a_finite_answer(near):
    for values in onnx_members(near[1], np.full((1, len(COLUMNS)), np.nan)):
        assert np.isfinite(values).all()


def test_digits_that_float32_cannot_hold_reach_the_network(near):
    x = np.tile([50.0, 0.0, 0.0, 1.71e9, 1e12], (2, 1))
    x[1, 4] += 1.0
    location, _ = onnx_members(near[1], x)
    assert np.abs(location[:, 0] - location[:, 1]).max() > 1e-3


def test_rows_together_are_rows_one_by_one(near):
    x = rows(40, seed=6)
    location, scale = onnx_members(near[1], x)
    for row in range(40):
        one_location, one_scale = onnx_members(near[1], x[row : row + 1])
        assert np.all(np.abs(one_location[:, 0] - location[:, row]) <= 1e-5 * scale[:, row])
        np.testing.assert_allclose(one_scale[:, 0], scale[:, row], rtol=1e-5)


def test_every_inner_name_stands_under_the_prefix(near):
    graph = near[1].graph
    names = {name for node in graph.node for name in node.output if name} | {tensor.name for tensor in graph.initializer}
    assert names >= set(MEMBER_OUTPUTS)
    assert all(name.startswith(NETWORK_PREFIX) for name in names - set(MEMBER_OUTPUTS))
    assert [value.name for value in graph.input] == ["x"]
    assert [value.name for value in graph.output] == list(MEMBER_OUTPUTS)


def test_the_network_is_one_file_of_standard_operators(near):
    network = near[1]
    assert {node.domain for node in network.graph.node} <= {"", "ai.onnx"}
    assert {opset.version for opset in network.opset_import if opset.domain in ("", "ai.onnx")} == {OPSET}
    assert {tensor.data_location for tensor in network.graph.initializer} == {onnx.TensorProto.DEFAULT}
    assert len(network.functions) == 0


def test_exporting_is_quiet_and_leaves_the_network_as_it_was(near):
    result, _, written = near
    assert written == ""
    assert not result.network.training
    assert not any(module.training for module in result.network.modules())


def whole(result, network):
    """The calibrated model with residuals -1 ... 1 of two targets."""
    calibration = Calibration(
        method="split",
        interval="symmetric",
        groups=[ResidualGroup(residuals=np.tile(np.linspace(-1, 1, 99), (2, 1)).tolist())],
        scale_factor=[1.0, 1.0],
        guarantee="for tests",
    )
    model = calibrated_graph(
        network, columns=COLUMNS, targets=TARGETS, calibration=calibration, float64=needs_float64(result, TARGETS)
    ).SerializeToString()
    return session_run(cpu_session(model, threads=1))


def test_a_target_far_from_zero_keeps_its_digits_up_to_the_interval():
    result = fitted(offset=2e9)
    network, _ = exported(result)
    assert needs_float64(result, TARGETS)
    x = rows(50, seed=7)
    answer = whole(result, network)(x, np.array([0.9]))
    location, scale = torch_members(result, x)
    assert {values.dtype.type for values in answer.values()} == {np.float64}
    assert np.all(np.abs(answer["mean"] - location.mean(axis=0)) <= 1e-5 * answer["std"])
    std = np.sqrt((scale**2).mean(axis=0) + location.var(axis=0))
    np.testing.assert_allclose(answer["std"], std, rtol=1e-5)
    half = (answer["upper"] - answer["lower"])[..., 0] / 2
    np.testing.assert_allclose(half, answer["std"] * np.linspace(-1, 1, 99)[-5], rtol=1e-5)


def test_a_target_near_zero_is_answered_in_float32(near):
    result, network, _ = near
    assert not needs_float64(result, TARGETS)
    answer = whole(result, network)(rows(3), np.array([0.9]))
    assert {values.dtype.type for values in answer.values()} == {np.float32}


@pytest.mark.parametrize(("centre", "float64"), [(500.0, False), (5000.0, True), (-5000.0, True)])
def test_a_target_some_thousand_stds_from_zero_is_answered_in_float64(near, centre, float64):
    assert needs_float64(replace(near[0], centre=[centre, 0.0], scale=[1.0, 1.0]), TARGETS) == float64


def test_a_transformed_target_is_answered_in_float64(near):
    logarithmic = [Target(name="a", minimum=1.0, maximum=2.0, transform="log"), TARGETS[1]]
    assert needs_float64(near[0], logarithmic), "exp of a far interval end overflows float32"
    share = [Target(name="a", minimum=0.1, maximum=0.9, transform="logit"), TARGETS[1]]
    assert needs_float64(near[0], share), "near 1 float32 has steps of 6e-8, and 1 itself"
