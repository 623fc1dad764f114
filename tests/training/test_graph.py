import math

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper
from scipy import stats

from models.artifact import OUTPUTS, cpu_session, session_run
from models.conformal import conformal_rank, equal_tailed_ranks, interval_factors, rounded_outwards
from models.manifest import Calibration, ResidualGroup, Target
from models.transforms import TRANSFORMS
from tests.model_files import MIXED, NUMERIC, formula_network
from training.graph import calibrated_graph, named_network, network_part, outputs_float64

intervals = pytest.mark.parametrize("interval", ["symmetric", "equal_tailed"])
X = np.array([[0.0, 0.0], [1.0, 2.0], [-4.0, 1.5], [np.nan, 3.0], [np.nan, np.nan]])
COVERAGE = [0.5, 0.8, 0.9, 0.95]
STDS = ("std", "epistemic_std", "aleatoric_std", "scale")


def target(name="y", transform="identity"):
    return Target(name=name, minimum=0.1, maximum=0.9, transform=transform)


ONE = (target(),)


def draws(rows, *, targets=1, seed=0):
    """Sorted residuals of a skewed distribution: [targets, rows]."""
    return np.sort(np.random.default_rng(seed).gumbel(size=(targets, rows)), axis=1)


def model(
    *residuals,
    interval="symmetric",
    columns=NUMERIC,
    targets=ONE,
    scale_factor=1.0,
    group_column=None,
    codes=(None,),
    group_factors=None,
    float64=True,
    network=None,
    target_scale=None,
):
    """A calibrated formula network; `residuals` [targets, rows] of each group, `codes` the groups' codes."""
    calibration = Calibration(
        method="split",
        interval=interval,
        group_column=group_column,
        groups=[
            ResidualGroup(code=code, residuals=group.tolist(), scale_factor=factor)
            for code, group, factor in zip(codes, residuals or (draws(99),), group_factors or [None] * len(codes), strict=True)
        ],
        scale_factor=scale_factor if isinstance(scale_factor, list) else [scale_factor] * len(targets),
        guarantee="for tests",
    )
    return calibrated_graph(
        network or formula_network(features=len(columns), targets=len(targets)),
        columns=list(columns),
        targets=list(targets),
        calibration=calibration,
        float64=float64,
        target_scale=target_scale,
    )


def answers(graph, x=X, coverage=COVERAGE):
    run = session_run(cpu_session(graph.SerializeToString(), threads=1))
    return run(np.asarray(x, dtype=np.float64), np.asarray(coverage, dtype=np.float64))


def moments(x, *, targets=1):
    """What the formula says: location, epistemic and aleatoric std, [n, targets] each."""
    known = np.nan_to_num(np.asarray(x), nan=0.0)
    total = known @ np.arange(1, known.shape[1] + 1)
    location = total[:, None] * np.arange(1, targets + 1)
    return location, np.full_like(location, 0.5), np.repeat(0.5 + np.abs(known[:, :1]) / 10, targets, axis=1)


def test_mean_and_stds_are_those_of_the_mixture_of_members():
    answer, (location, epistemic, aleatoric) = (
        answers(model(draws(99, targets=3), targets=tuple(map(target, "abc")))),
        moments(X, targets=3),
    )
    for name, expected in (
        ("mean", location),
        ("location", location),
        ("std", np.hypot(epistemic, aleatoric)),
        ("scale", np.hypot(epistemic, aleatoric)),
        ("epistemic_std", epistemic),
        ("aleatoric_std", aleatoric),
    ):
        np.testing.assert_allclose(answer[name], expected, rtol=1e-14, err_msg=name)


def test_the_spread_of_members_survives_an_offset_that_its_square_would_drown():
    answer = answers(model(), x=[[1e9, 0.0]])  # 1e18 has no room for 0.25
    assert answer["epistemic_std"].item() == 0.5


@intervals
def test_intervals_are_those_of_the_array_level_code_for_several_targets(interval):
    residuals = draws(99, targets=2)
    answer = answers(model(residuals, interval=interval, targets=(target("a"), target("b"))))
    for side, factors in zip(("lower", "upper"), interval_factors(residuals, COVERAGE, interval=interval), strict=True):
        expected = answer["location"][..., None] + answer["scale"][..., None] * factors
        np.testing.assert_allclose(answer[side], expected, rtol=0, atol=1e-5)


# The ranks in the graph, for every number of rows and coverage that model-file promises them for.
ROWS = np.arange(1, 5001)
TEN_THOUSANDTHS = np.arange(1, 10_000)


def graph_ranks(interval, *names):
    """The graph's own rank nodes run with other numbers of rows than its own: (rows, ranks [rows, coverages] of each name)."""
    graph, needed, nodes = model(interval=interval).graph, set(names), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.insert(0, node)
            needed |= set(node.input)
    part = helper.make_graph(
        nodes,
        "ranks",
        [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in ("rows_plus_one", "coverage")],
        [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in names],
        [tensor for tensor in graph.initializer if tensor.name in needed - {"rows_plus_one"}],
    )
    whole = helper.make_model(part, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = cpu_session(whole.SerializeToString(), threads=1)
    for rows in np.array_split(ROWS, 20):
        inputs = {"rows_plus_one": rows[:, None] + 1.0, "coverage": TEN_THOUSANDTHS / 10_000}
        yield rows[:, None], session.run(list(names), inputs)


def test_symmetric_ranks_are_exact_for_all_rows_up_to_5000_and_all_coverages_of_four_decimals():
    for rows, (rank,) in graph_ranks("symmetric", "rank_integer"):
        assert np.array_equal(rank, -(-(rows + 1) * TEN_THOUSANDTHS // 10_000))


def test_equal_tailed_ranks_are_exact_for_all_rows_up_to_5000_and_all_coverages_of_four_decimals():
    for rows, (lower, upper) in graph_ranks("equal_tailed", "lower_rank_integer", "upper_rank_integer"):
        assert np.array_equal(lower, (rows + 1) * (10_000 - TEN_THOUSANDTHS) // 20_000)
        assert np.array_equal(upper, -(-(rows + 1) * (10_000 + TEN_THOUSANDTHS) // 20_000))


def test_the_integer_ranks_of_these_tests_are_those_of_the_array_level_code():
    rng = np.random.default_rng(0)
    for rows, share in zip(rng.choice(ROWS, 3000).tolist(), rng.choice(TEN_THOUSANDTHS, 3000).tolist(), strict=True):
        assert conformal_rank(share / 10_000, rows=rows) == -(-(rows + 1) * share // 10_000)
        ranks = ((rows + 1) * (10_000 - share) // 20_000, -(-(rows + 1) * (10_000 + share) // 20_000))
        assert equal_tailed_ranks(share / 10_000, rows=rows) == ranks


@intervals
@pytest.mark.parametrize("rows", [1, 2, 9, 19, 99, 412, 999, 2999, 4999])
def test_interval_ends_are_those_of_the_exact_ranks_for_all_coverages_of_four_decimals(rows, interval):
    coverage = TEN_THOUSANDTHS / 10_000
    residuals = draws(rows, seed=rows)
    answer = answers(model(residuals, interval=interval), x=X[:1], coverage=coverage)
    scale = answer["scale"][0, 0]
    for side, factors in zip(("lower", "upper"), interval_factors(residuals, coverage, interval=interval), strict=True):
        ends = rounded_outwards(factors[0], -1 if side == "lower" else 1)
        np.testing.assert_allclose(answer[side][0, 0], scale * ends, rtol=1e-12)  # this row's location is 0


def test_the_corner_coverage_of_nine_rows_is_finite_and_the_next_is_not():
    answer = answers(model(draws(9)), coverage=[0.9, 0.9001])
    assert np.isfinite(answer["upper"][..., 0]).all()
    assert np.isinf(answer["upper"][..., 1]).all()


@intervals
def test_an_unsupported_coverage_gives_infinities_on_both_sides(interval):
    answer = answers(model(draws(9), interval=interval), coverage=[0.5, 0.99, 1.0])
    assert (answer["lower"][..., 1:] == -np.inf).all()
    assert (answer["upper"][..., 1:] == np.inf).all()
    assert np.isfinite(answer["lower"][..., 0]).all()


@pytest.mark.parametrize(("transform", "low", "high"), [("log", 0.0, np.inf), ("logit", 0.0, 1.0)])
def test_an_unsupported_coverage_of_a_transformed_target_spans_its_domain(transform, low, high):
    answer = answers(model(draws(9), targets=(target(transform=transform),)), coverage=[0.99])
    assert (answer["lower"] == low).all()
    assert (answer["upper"] == high).all()


@intervals
@pytest.mark.parametrize(("column", "codes"), [("colour", (0.0, 1.0, 2.0)), ("open", (0.0, 1.0))])
def test_each_row_gets_the_interval_of_its_group_and_an_unknown_one_that_of_all_rows(interval, column, codes):
    groups = [draws(20 + 7 * number, targets=2, seed=number) for number in range(len(codes) + 1)]
    graph = model(
        *groups,
        interval=interval,
        columns=MIXED,
        targets=(target("a"), target("b")),
        group_column=column,
        codes=(None, *codes),
    )
    index = [c.name for c in MIXED].index(column)
    x = np.zeros((len(codes) + 2, 5))
    x[:, index] = [*codes, np.nan, 7.0]
    answer = answers(graph, x=x)
    for row, group in enumerate([*groups[1:], groups[0], groups[0]]):
        for side, factors in zip(("lower", "upper"), interval_factors(group, COVERAGE, interval=interval), strict=True):
            expected = answer["location"][row][:, None] + answer["scale"][row][:, None] * factors
            np.testing.assert_allclose(answer[side][row], expected, rtol=1e-5)


@intervals
@pytest.mark.parametrize("float64", [False, True])
@pytest.mark.parametrize(
    ("values", "transform"), [((0.3, 0.7), "identity"), ((0.0, 1.0), "identity"), ((3.0, 7.0), "log"), ((0.2, 0.999), "logit")]
)
def test_a_value_that_an_end_is_made_of_lies_within(values, transform, float64, interval):
    targets = (Target(name="y", minimum=values[0], maximum=values[1], transform=transform),)
    y = TRANSFORMS[transform].forward(np.array(values))
    graph = model(draws(40), interval=interval, targets=targets, float64=float64)
    answer = answers(graph, x=X[1:2], coverage=[0.9])
    location, scale = (float(answer[name][0, 0]) for name in ("location", "scale"))
    residuals = np.sort(np.repeat((y - location) / scale, 20))[None]
    answer = answers(model(residuals, interval=interval, targets=targets, float64=float64), x=X[1:2], coverage=[0.9])
    lower, upper = (answer[side][0, 0, 0].astype(np.float64) for side in ("lower", "upper"))
    assert lower <= values[0]
    assert values[1] <= upper
    if interval == "equal_tailed":
        np.testing.assert_allclose([lower, upper], values, rtol=1e-5, atol=1e-5)


def test_each_value_that_an_end_is_made_of_lies_within_its_float32_answer():
    y, coverage = 4 + np.arange(1, 100) / 1000, np.arange(1, 100) / 100  # the k-th end is made of the k-th value
    scale = answers(model(), x=X[:1])["scale"][0, 0]
    answer = answers(model((y / scale)[None], float64=False), x=X[:1], coverage=coverage)  # this row's location is 0
    lower, upper = (answer[side][0, 0].astype(np.float64) for side in ("lower", "upper"))
    assert (lower <= -y).all()
    assert (y <= upper).all()
    np.testing.assert_allclose(upper, y, rtol=1e-6)


@intervals
def test_ends_far_from_zero_are_moved_outwards_by_a_few_digits_of_float64(interval):
    far, residuals = formula_network(features=2, targets=1, offset=2e9), np.linspace(-1, 1, 99)[None]
    answer = answers(model(residuals, interval=interval, network=far))
    digit = np.spacing(2e9)  # 2.4e-7
    for side, factors in zip(("lower", "upper"), interval_factors(residuals, COVERAGE, interval=interval), strict=True):
        exact = answer["location"][..., None] + answer["scale"][..., None] * factors
        outwards = (answer[side] - exact) * (-1 if side == "lower" else 1)
        assert (outwards >= 4 * digit).all(), "a location of other digits, in a run of other rows, would leave its rows out"
        assert (outwards <= 16 * digit).all(), "a target of 2e9 +- 1 would feel it"


def test_a_group_too_small_for_a_coverage_is_infinite_alone():
    graph = model(draws(99), draws(5), draws(50), columns=MIXED, group_column="open", codes=(None, 0.0, 1.0))
    x = np.zeros((3, 5))
    x[:, 3] = [0.0, 1.0, np.nan]
    upper = answers(graph, x=x, coverage=[0.9])["upper"][:, 0, 0]
    assert np.isinf(upper).tolist() == [True, False, False]


def test_with_no_group_large_enough_all_rows_get_the_interval_of_all():
    graph, plain = model(draws(99), columns=MIXED, group_column="colour"), model(draws(99), columns=MIXED)
    x = np.zeros((3, 5))
    x[:, 2] = [0.0, 1.0, np.nan]
    assert np.array_equal(answers(graph, x=x)["upper"], answers(plain, x=x)["upper"])


TRANSFORMED = (target("a", "log"), target("b", "logit"), target("c"))


@intervals
@pytest.mark.parametrize("rows", [1000, 300, 9])
def test_a_transformed_target_has_the_moments_of_its_residuals(rows, interval):
    residuals = draws(rows, targets=3)
    answer = answers(model(residuals, interval=interval, targets=TRANSFORMED, scale_factor=1.5))
    location, scale = answer["location"][..., None], answer["scale"][..., None]
    farthest = 2 * stats.norm.ppf(1 - 1 / (4 * rows))
    for number, one in enumerate(TRANSFORMED):
        raw = TRANSFORMS[one.transform].inverse((location + scale * residuals.clip(-farthest, farthest))[:, number])
        expected = (location[:, number, 0], scale[:, number, 0]) if one.name == "c" else (raw.mean(axis=1), raw.std(axis=1))
        np.testing.assert_allclose(answer["mean"][:, number], expected[0], rtol=1e-12)
        np.testing.assert_allclose(answer["std"][:, number], expected[1], rtol=1e-9)


def test_one_residual_that_is_far_off_does_not_make_the_means_of_all_rows():
    residuals = np.sort(np.random.default_rng(0).normal(size=(1, 300)), axis=1)
    typo = residuals.copy()
    typo[0, -1] = 200.0
    whole = {"targets": (target("a", "log"),)}
    answer, same = (answers(model(one, **whole), x=[[0.0, 0.0], [2.0, -1.0]]) for one in (typo, residuals))
    assert np.all(same["mean"] < answer["mean"])
    np.testing.assert_allclose(answer["mean"], same["mean"], rtol=0.5)  # of about 1e40 times as much


def test_with_many_residuals_the_moments_of_a_transformed_target_stay_close_to_those_of_all():
    residuals = np.sort(np.random.default_rng(0).normal(size=(1, 10_000)), axis=1)
    answer = answers(model(residuals, targets=(target("a", "log"),)), x=[[0.0, 0.0], [1.0, 0.5], [2.0, -1.0]])
    raw = np.exp(answer["location"] + answer["scale"] * residuals)
    np.testing.assert_allclose(answer["mean"][:, 0], raw.mean(axis=1), rtol=2e-3)
    np.testing.assert_allclose(answer["std"][:, 0], raw.std(axis=1), rtol=1e-2)


@intervals
def test_a_transformed_interval_is_the_inverse_of_the_plain_one(interval):
    residuals = draws(99, targets=3)
    answer = answers(model(residuals, interval=interval, targets=TRANSFORMED))
    for side, factors in zip(("lower", "upper"), interval_factors(residuals, COVERAGE, interval=interval), strict=True):
        ends = answer["location"][..., None] + answer["scale"][..., None] * factors
        for number, one in enumerate(TRANSFORMED):
            expected = TRANSFORMS[one.transform].inverse(ends[:, number])
            np.testing.assert_allclose(answer[side][:, number], expected, rtol=1e-5)


@pytest.mark.parametrize("targets", [(target("a"), target("b"), target("c")), TRANSFORMED])
def test_the_squares_of_the_two_parts_of_std_add_up(targets):
    answer = answers(model(draws(99, targets=3), targets=targets, scale_factor=1.7))
    np.testing.assert_allclose(answer["epistemic_std"] ** 2 + answer["aleatoric_std"] ** 2, answer["std"] ** 2, rtol=1e-12)


def test_the_two_parts_of_std_keep_their_proportion_under_a_transform():
    plain = answers(model(draws(99, targets=3), targets=tuple(map(target, "abc"))))
    transformed = answers(model(draws(99, targets=3), targets=TRANSFORMED))
    for name in ("epistemic_std", "aleatoric_std"):
        np.testing.assert_allclose(transformed[name] / transformed["std"], plain[name] / plain["std"], rtol=1e-12)


def test_the_moments_of_a_group_without_a_factor_of_its_own_are_those_of_all_rows():
    log, groups = (target("y", "log"),), (draws(99), draws(40, seed=1))
    grouped = answers(model(*groups, targets=log, group_column="a", codes=(None, 1.0)))
    plain = answers(model(groups[0], targets=log))
    for name in ("mean", "std", "epistemic_std", "aleatoric_std"):
        assert np.array_equal(grouped[name], plain[name]), name


@intervals
@pytest.mark.parametrize("targets", [tuple(map(target, "abc")), TRANSFORMED])
@pytest.mark.parametrize("rows", [99, 2500])
def test_each_row_is_answered_as_by_a_model_with_the_factor_and_residuals_of_its_group_alone(interval, targets, rows):
    groups = [draws(rows, targets=3), draws(60, targets=3, seed=1), draws(80, targets=3, seed=2)]
    by_group = {"group_column": "a", "codes": (None, 0.0, 1.0), "group_factors": (None, [2.0, 0.3, 5.0], None)}
    answer = answers(model(*groups, interval=interval, targets=targets, scale_factor=1.5, **by_group))
    together = answers(model(groups[0], interval=interval, targets=targets, scale_factor=1.5))
    own = model(groups[1], interval=interval, targets=targets, scale_factor=[2.0, 0.3, 5.0])
    for name in OUTPUTS:  # X: a of the rows is 0, 1, -4, missing, missing
        np.testing.assert_allclose(answer[name][:1], answers(own, x=X[:1])[name], rtol=1e-12, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(answer[name][2:], together[name][2:], rtol=1e-12, atol=1e-14, err_msg=name)
        if name not in ("lower", "upper"):
            np.testing.assert_allclose(answer[name][1], together[name][1], rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(answer["epistemic_std"] ** 2 + answer["aleatoric_std"] ** 2, answer["std"] ** 2, rtol=1e-12)


def test_a_group_with_few_nodes_has_a_finite_mean_where_exp_of_the_location_overflows():
    residuals = np.linspace(-30.0, -20.0, 60)[None]
    log = {"targets": (target("a", "log"),), "network": formula_network(features=2, targets=1, offset=712.0)}
    by_group = {"group_column": "a", "codes": (None, 0.0), "group_factors": (None, [1.0])}
    mean = answers(model(draws(300), residuals, **log, **by_group), x=X[:1])["mean"]
    assert np.isfinite(mean).all()


def test_the_scale_factor_multiplies_every_std_and_moves_no_mean():
    once, scaled = answers(model()), answers(model(scale_factor=2.5))
    for name in STDS:
        np.testing.assert_allclose(scaled[name], 2.5 * once[name], rtol=1e-14)
    assert np.array_equal(once["mean"], scaled["mean"])
    np.testing.assert_allclose(scaled["upper"] - scaled["lower"], 2.5 * (once["upper"] - once["lower"]), rtol=1e-12)


@intervals
@pytest.mark.parametrize("targets", [tuple(map(target, "abc")), TRANSFORMED])
@pytest.mark.parametrize("group_column", [None, "a"])
def test_no_rows_and_no_coverages_give_empty_answers_of_the_right_shape(interval, targets, group_column):
    codes = (None,) if group_column is None else (None, 0.0)
    groups = [draws(99, targets=3, seed=seed) for seed in range(len(codes))]
    graph = model(*groups, interval=interval, targets=targets, group_column=group_column, codes=codes)
    for rows, coverages in ((0, 2), (2, 0), (0, 0)):
        answer = answers(graph, x=np.zeros((rows, 2)), coverage=np.full(coverages, 0.9))
        for name in OUTPUTS:
            assert answer[name].shape == ((rows, 3, coverages) if name in ("lower", "upper") else (rows, 3)), name


@intervals
def test_rows_together_are_rows_one_by_one(interval):
    graph = model(
        draws(99, targets=3),
        draws(40, targets=3, seed=1),
        interval=interval,
        targets=TRANSFORMED,
        group_column="a",
        codes=(None, 1.0),
    )
    together = answers(graph)
    for row in range(len(X)):
        for name, value in answers(graph, x=X[row : row + 1]).items():
            np.testing.assert_allclose(value[0], together[name][row], rtol=1e-13)


@pytest.mark.parametrize(("float64", "dtype"), [(True, np.float64), (False, np.float32)])
@pytest.mark.parametrize("targets", [ONE, (target(transform="log"),)])
def test_all_outputs_have_the_type_that_was_asked_for(float64, dtype, targets):
    graph = model(targets=targets, float64=float64)
    assert {value.dtype.type for value in answers(graph).values()} == {dtype}
    assert outputs_float64(graph) == float64


def test_float32_answers_are_the_float64_ones_rounded_at_the_end():
    wide, narrow = answers(model(float64=True)), answers(model(float64=False))
    for name in OUTPUTS:
        if name not in ("lower", "upper"):
            assert np.array_equal(wide[name].astype(np.float32), narrow[name]), name
    for name in ("lower", "upper"):  # rounded outwards
        np.testing.assert_allclose(narrow[name], wide[name], rtol=1e-6, atol=1e-6)


def test_the_signature_is_the_one_of_the_model_file():
    graph = model(draws(99, targets=2), targets=(target("a"), target("b"))).graph

    def shapes(values):
        return {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}

    assert shapes(graph.input) == {"x": ["n", 2], "coverage": ["k"]}
    interval = {"lower": ["n", 2, "k"], "upper": ["n", 2, "k"]}
    assert shapes(graph.output) == {name: interval.get(name, ["n", 2]) for name in OUTPUTS}
    assert list(shapes(graph.output)) == list(OUTPUTS)


def test_any_runtime_of_opset_18_can_load_the_file_alone():
    whole = model(draws(99, targets=3), interval="equal_tailed", targets=TRANSFORMED)
    onnx.checker.check_model(whole, full_check=True)
    assert [(opset.domain, opset.version) for opset in whole.opset_import] == [("", 18)]
    assert whole.ir_version == helper.OP_SET_ID_VERSION_MAP[("ai.onnx", 18)]  # what ONNX 1.13 brought, and opset 18 with it
    assert {node.domain for node in whole.graph.node} <= {"", "ai.onnx"}
    assert {tensor.data_location for tensor in whole.graph.initializer} == {onnx.TensorProto.DEFAULT}
    assert len(whole.functions) == 0


@intervals
def test_the_network_part_of_a_model_is_calibrated_anew_to_the_same_bytes(interval):
    options = {"interval": interval, "targets": TRANSFORMED}
    first = model(draws(99, targets=3), **options)
    read = onnx.load_from_string(first.SerializeToString())
    assert model(draws(99, targets=3), **options, network=network_part(read)).SerializeToString() == first.SerializeToString()
    other = model(draws(50, targets=3, seed=5), **options)
    assert (
        model(draws(50, targets=3, seed=5), **options, network=network_part(read)).SerializeToString()
        == other.SerializeToString()
    )


def test_calibrating_leaves_the_network_as_it_was():
    network = formula_network(features=2, targets=1)
    before = network.SerializeToString()
    model(network=network)
    assert network.SerializeToString() == before


def test_inner_names_of_a_network_may_be_those_of_the_calibrated_part():
    exported = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        named (double[n,2] x) => (double[m,n,1] member_location, double[m,n,1] member_scale)
        <double[2,1] scores = {1, 2}, double[2,1,1] scale_factor = {-0.5, 0.5}, double zero = {0},
         double rank_guard = {0.1}, double rows_plus_one = {0.5}, int64[1] first_axis = {0}>
        {
            std = IsNaN(x)
            mean = Where(std, zero, x)
            coverage = MatMul(mean, scores)
            member_location = Add(coverage, scale_factor)
            lower = Gather<axis=1>(mean, first_axis)
            upper = Abs(lower)
            rank = Mul(upper, rank_guard)
            location = Add(rank, rows_plus_one)
            scale = Sub(scale_factor, scale_factor)
            member_scale = Add(location, scale)
        }""")
    answer, formula = answers(model(network=named_network(exported))), answers(model())
    for name in OUTPUTS:
        np.testing.assert_allclose(answer[name], formula[name], rtol=1e-14)


def test_a_node_with_an_output_that_nothing_uses_stays_in_the_network():
    exported = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        dropped (double[n,2] x) => (double[m,n,1] member_location, double[m,n,1] member_scale)
        <double[2,1] slopes = {1, 2}, int64[1] front = {0}, double least = {0.5}>
        {
            kept, mask = Dropout(x)
            total = MatMul(kept, slopes)
            member_location = Unsqueeze(total, front)
            same = Sub(member_location, member_location)
            member_scale = Add(same, least)
        }""")
    next(node for node in exported.graph.node if node.op_type == "Dropout").output[1] = ""
    graph = model(network=named_network(exported))
    assert answers(graph, x=[[1.0, 3.0], [5.0, 2.0]])["mean"].tolist() == [[7.0], [9.0]]


def test_the_residuals_stand_in_the_graph_as_a_constant():
    residuals = draws(99)
    scores = next(tensor for tensor in model(residuals).graph.initializer if tensor.name == "upper_scores")
    ordered = np.array([0.0, *np.sort(np.abs(residuals[0])), math.inf])
    assert numpy_helper.to_array(scores)[:, 0].tolist() == rounded_outwards(ordered, 1).tolist()


def test_a_file_tells_strangers_what_goes_in_and_comes_out():
    graph = model().graph
    told = {value.name: value.doc_string for value in (*graph.input, *graph.output)}
    assert told.keys() == {"x", "coverage", *OUTPUTS}
    assert all(told.values())


@intervals
def test_an_outlier_among_the_residuals_widens_no_interval_but_its_own(interval):
    residuals = draws(99)
    far = np.append(residuals[:, :-1], [[1e9]], axis=1)
    plain, other = answers(model(residuals, interval=interval)), answers(model(far, interval=interval))
    for side in ("lower", "upper"):
        np.testing.assert_array_equal(other[side], plain[side])


@intervals
def test_ends_leave_room_for_the_arithmetic_of_a_network_in_units_of_its_target(interval):
    exact = answers(model(interval=interval))
    rounded = answers(model(interval=interval, target_scale=[2.0**21]))
    np.testing.assert_allclose(exact["lower"] - rounded["lower"], 1.0, rtol=1e-9)
    np.testing.assert_allclose(rounded["upper"] - exact["upper"], 1.0, rtol=1e-9)
    unsupported = answers(model(draws(9), interval=interval, target_scale=[1.0]), coverage=[0.99])
    assert (unsupported["upper"] == np.inf).all()
    assert (unsupported["lower"] == -np.inf).all()


def test_no_operator_of_the_calibrated_part_lives_on_the_cpu_only():
    graph = model(draws(99), draws(19), columns=MIXED, group_column="colour", codes=(None, 0.0), interval="equal_tailed").graph
    assert not {"Shape", "Size", "NonZero", "Range"} & {node.op_type for node in graph.node}


def test_the_tiniest_coverage_has_the_first_rank():
    residuals = draws(99)
    answer = answers(model(residuals), x=X[:1], coverage=[1e-300, 0.0001])
    assert answer["upper"][0, 0, 0] == answer["upper"][0, 0, 1] > 0


@intervals
def test_coverages_out_of_range_count_as_the_nearest_within(interval):
    answer = answers(model(draws(99), interval=interval), x=X[:1], coverage=[-1.0, 0.0, 1e-9, 1.0, 2.0])
    for side in ("lower", "upper"):
        assert (answer[side][0, 0, :2] == answer[side][0, 0, 2]).all(), side
        assert np.isinf(answer[side][0, 0, 3:]).all(), side
