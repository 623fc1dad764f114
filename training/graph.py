"""The calibrated part of the model graph, written in ONNX's text form: members in, moments and intervals out.

The network part (training/export.py) ends in two values, `member_location` and `member_scale` [members, n, targets] float64:
mean and std of each member's distribution of the transformed target. Everything from there on - the mixture over members, the
scale factor, the inverse transform, the conformal interval - is this module's, so that a file can be calibrated anew
without torch.
"""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.compose
import onnx.parser
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.artifact import OUTPUTS
from models.conformal import outward_slack, residual_nodes, rounded_outwards
from models.manifest import Calibration, Column, Target

OPSET = 18
IR_VERSION = 8
"""As old as the operators allow, so that older runtimes load the file."""
MEMBER_OUTPUTS = ("member_location", "member_scale")
NETWORK_PREFIX = "network."
RANK_GUARD = 1e-9
"""Absorbs how a decimal coverage is represented: (n + 1) c is 28.000000000000004 for c = 0.28 and n = 99. Float noise of the
product stays under 1e-11 for 100 000 rows, and a four-decimal coverage leaves at least 1e-4 to the next rank."""
_ABOUT = {
    "x": (
        "A row a prediction, its features in the order of the manifest's columns (metadata errorbar.manifest): numbers as in "
        "the training table, booleans 0 and 1, a category's place in its column's list (from 0), seconds since 1970-01-01 UTC "
        "for a date or time. NaN is missing."
    ),
    "coverage": "Coverages of the intervals, above 0 and below 1, such as 0.9.",
    "mean": "Mean of the predictive distribution, in the target's unit.",
    "std": "Standard deviation of the predictive distribution, in the target's unit.",
    "epistemic_std": "Spread between the members of the ensemble.",
    "aleatoric_std": "Mean noise that the members see: std^2 = epistemic_std^2 + aleatoric_std^2.",
    "location": "Mean of the transformed target.",
    "scale": "Standard deviation of the transformed target: an end is location + scale * a calibration residual, mapped back.",
    "lower": "Lower ends of the intervals; minus infinity, mapped back, where a coverage needs more calibration rows.",
    "upper": "Upper ends of the intervals; infinity, mapped back, where a coverage needs more calibration rows.",
}
"""What a file says of its inputs and outputs to who opens it without errorbar."""
_NODES = ("node_weights", "moment_nodes")
LEAST_COVERAGE = RANK_GUARD
"""What a smaller coverage counts as: even one row gives it the first rank, and a billion rows no other."""


def calibrated_graph(
    network: onnx.ModelProto,
    *,
    columns: list[Column],
    targets: list[Target],
    calibration: Calibration,
    float64: bool,
    target_scale: Sequence[float] | None = None,
) -> onnx.ModelProto:
    """The whole model: the network part with mixture, scale factor, transforms and intervals attached.

    network: as `network_part` returns it. float64: whether the outputs need float64 (a target whose offset is large
    against its spread); the arithmetic is float64 in either case. target_scale: the unit of the network's arithmetic by target,
    None for an exact one (`models.conformal.outward_slack`).
    """
    plain = all(target.transform == "identity" for target in targets)
    column = calibration.group_column
    group_feature = None if column is None else [c.name for c in columns].index(column)
    text = "\n".join(
        [
            *([] if group_feature is None else _row_group(plain=plain)),
            *_mixture(),
            *(_plain_moments() if plain else _transformed_moments()),
            *_ranks(calibration.interval),
            *_row_factors(calibration.interval, by_group=group_feature is not None),
            *_interval(calibration.interval, plain=plain),
            *(f"{name} = Cast<to={TensorProto.DOUBLE if float64 else TensorProto.FLOAT}>({name}_64)" for name in OUTPUTS),
        ]
    )
    constants = _constants(targets, calibration, group_feature)
    unit_slack = outward_slack(np.array([[0.0] * len(targets), [1.0] * len(targets)]), target_scale, float64=float64)
    constants |= {"network_rounding": unit_slack[0][:, None], "location_rounding": (unit_slack[1] - unit_slack[0])[:, None]}
    kind = "double" if float64 else "float"
    shapes = {name: "n,targets,k" if name in ("lower", "upper") else "n,targets" for name in OUTPUTS}
    shapes = {name: shape.replace("targets", str(len(targets))) for name, shape in shapes.items()}
    signature = ", ".join(f"{kind}[{shapes[name]}] {name}" for name in OUTPUTS)
    inputs = f"double[n,{len(columns)}] x, double[k] coverage"
    members = ", ".join(f"double[m,n,{len(targets)}] {name}" for name in MEMBER_OUTPUTS)
    tail = onnx.parser.parse_graph(f"errorbar ({inputs}, {members}) => ({signature}) {{\n{text}\n}}")

    graph = onnx.GraphProto()
    graph.CopyFrom(network.graph)
    graph.name = "errorbar"
    graph.node.extend(tail.node)
    graph.initializer.extend(numpy_helper.from_array(value, name=name) for name, value in constants.items())
    del graph.output[:]
    graph.output.extend(tail.output)
    inputs_by_name = {value.name: value for value in tail.input}
    del graph.input[:]
    graph.input.extend([inputs_by_name["x"], inputs_by_name["coverage"]])
    for value in (*graph.input, *graph.output):
        value.doc_string = _ABOUT[value.name]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="errorbar")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


def network_part(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network alone, with outputs `member_location` and `member_scale`, out of a calibrated model."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    nodes = [node for node in graph.node if all(_of_network(name) for name in node.output if name)]  # "": an output not used
    tensors = [tensor for tensor in graph.initializer if _of_network(tensor.name)]
    members = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [None, None, None]) for name in MEMBER_OUTPUTS]
    inputs = [value for value in graph.input if value.name == "x"]
    for field, kept in (("node", nodes), ("initializer", tensors), ("output", members), ("input", inputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(kept)
    part = helper.make_model(graph, opset_imports=list(model.opset_import))
    part.ir_version = model.ir_version
    return part


def named_network(exported: onnx.ModelProto) -> onnx.ModelProto:
    """`exported` with every inner name under `network.`, so that none can clash with a name of the calibrated part."""
    named = onnx.compose.add_prefix(exported, NETWORK_PREFIX, rename_inputs=False, rename_outputs=False)
    return network_part(named)


def outputs_float64(model: onnx.ModelProto) -> bool:
    """Whether the outputs of a calibrated model are float64."""
    return bool(model.graph.output[0].type.tensor_type.elem_type == TensorProto.DOUBLE)


def _of_network(name: str) -> bool:
    return name.startswith(NETWORK_PREFIX) or name in MEMBER_OUTPUTS


def _mixture() -> list[str]:
    """Mean and std of the equally weighted mixture of the members: mean of (s_i^2 + m_i^2) - m^2, computed stably."""
    return [
        "location_64 = ReduceMean<keepdims=0>(member_location, first_axis)",
        "deviation = Sub(member_location, location_64)",
        "squared_deviation = Mul(deviation, deviation)",
        "network_epistemic = ReduceMean<keepdims=0>(squared_deviation, first_axis)",
        "squared_epistemic = Mul(network_epistemic, squared_factor)",
        "epistemic_scale = Sqrt(squared_epistemic)",
        "squared_scale = Mul(member_scale, member_scale)",
        "network_aleatoric = ReduceMean<keepdims=0>(squared_scale, first_axis)",
        "squared_aleatoric = Mul(network_aleatoric, squared_factor)",
        "aleatoric_scale = Sqrt(squared_aleatoric)",
        "squared_total = Add(squared_epistemic, squared_aleatoric)",
        "scale_64 = Sqrt(squared_total)",
        "location_column = Unsqueeze(location_64, last_axis)",
        "scale_column = Unsqueeze(scale_64, last_axis)",
    ]


def _plain_moments() -> list[str]:
    return [
        "mean_64 = Identity(location_64)",
        "std_64 = Identity(scale_64)",
        "epistemic_std_64 = Identity(epistemic_scale)",
        "aleatoric_std_64 = Identity(aleatoric_scale)",
    ]


def _transformed_moments() -> list[str]:
    """Mean and std of the inverse-transformed distribution: averages over the calibration residuals (`residual_nodes`).

    Duan's smearing estimate (1983): it needs no closed form, and stays finite where the family's own moments do not (a log
    transform under Student-t). The two parts of std keep the proportion that they have in transformed space.
    """
    return [
        "scaled_nodes = Mul(scale_column, moment_nodes)",
        "transformed_nodes = Add(location_column, scaled_nodes)",
        *_inverse("transformed_nodes", "raw_nodes"),
        "node_mean = MatMul(raw_nodes, node_weights)",  # not ReduceMean: ONNX Runtime's gives zero rows a wrong shape
        "node_deviation = Sub(raw_nodes, node_mean)",
        "squared_node_deviation = Mul(node_deviation, node_deviation)",
        "node_variance = MatMul(squared_node_deviation, node_weights)",
        "flat_node_variance = Squeeze(node_variance, last_axis)",
        "node_std = Sqrt(flat_node_variance)",
        "flat_node_mean = Squeeze(node_mean, last_axis)",
        "mean_64 = Where(is_plain_row, location_64, flat_node_mean)",
        "std_64 = Where(is_plain_row, scale_64, node_std)",
        "epistemic_share = Div(epistemic_scale, scale_64)",
        "aleatoric_share = Div(aleatoric_scale, scale_64)",
        "epistemic_std_64 = Mul(std_64, epistemic_share)",
        "aleatoric_std_64 = Mul(std_64, aleatoric_share)",
    ]


def _inverse(value: str, result: str) -> list[str]:
    """The inverse target transforms of a [n, targets, anything] value."""
    return [
        f"{result}_exp = Exp({value})",
        f"{result}_sigmoid = Sigmoid({value})",
        f"{result}_log_done = Where(is_log, {result}_exp, {value})",
        f"{result} = Where(is_logit, {result}_sigmoid, {result}_log_done)",
    ]


def _ranks(interval: str) -> list[str]:
    """Factors [groups, targets, k]: the score at the exact conformal rank, infinite where the rank passes the rows."""
    bounded = "bounded_coverage = Clip(coverage, least_coverage, one)"  # so that every rank is one of the scores' rows
    if interval == "symmetric":
        return [
            bounded,
            "product = Mul(rows_plus_one, bounded_coverage)",
            "product_less = Sub(product, rank_guard)",
            "rank = Ceil(product_less)",
            *_gathered("rank", "upper"),
        ]
    return [
        bounded,
        "lower_share = Sub(one, bounded_coverage)",
        "lower_product = Mul(rows_plus_one, lower_share)",
        "lower_half = Mul(lower_product, half)",
        "lower_more = Add(lower_half, rank_guard)",
        "lower_rank = Floor(lower_more)",
        *_gathered("lower_rank", "lower"),
        "upper_share = Add(one, bounded_coverage)",
        "upper_product = Mul(rows_plus_one, upper_share)",
        "upper_half = Mul(upper_product, half)",
        "upper_less = Sub(upper_half, rank_guard)",
        "upper_rank = Ceil(upper_less)",
        *_gathered("upper_rank", "upper"),
    ]


def _gathered(rank: str, side: str) -> list[str]:
    """Scores at [groups, k] ranks: [groups, targets, k]. No Shape operator: it would pin part of the graph to the CPU."""
    return [
        f"{rank}_integer = Cast<to={TensorProto.INT64}>({rank})",
        f"{rank}_index = Add({rank}_integer, group_offset)",
        f"{rank}_scores = Gather<axis=0>({side}_scores, {rank}_index)",
        f"group_{side} = Transpose<perm=[0, 2, 1]>({rank}_scores)",
    ]


def _row_group(*, plain: bool) -> list[str]:
    """The calibration group of each row, and what the moments of its rows are made with."""
    return [
        "group_value = Gather<axis=1>(x, group_feature)",
        "group_matches = Equal(group_value, group_codes)",
        f"group_match_shares = Cast<to={TensorProto.DOUBLE}>(group_matches)",
        "group_number = MatMul(group_match_shares, group_numbers)",  # 0 where no value matches
        f"group_column = Cast<to={TensorProto.INT64}>(group_number)",
        "group = Squeeze(group_column, last_axis)",
        *(f"{name} = Gather<axis=0>(group_{name}, group)" for name in ("squared_factor", *(() if plain else _NODES))),
    ]


def _row_factors(interval: str, *, by_group: bool) -> list[str]:
    """Factors of each row; a symmetric interval has those of its upper side alone."""
    sides = ["upper"] if interval == "symmetric" else ["lower", "upper"]
    how = "Gather<axis=0>(group_{}, group)" if by_group else "Identity(group_{})"
    return [f"{side}_factor = {how.format(side)}" for side in sides]


def _interval(interval: str, *, plain: bool) -> list[str]:
    ends = [f"{side}_64" if plain else f"{side}_transformed" for side in ("lower", "upper")]
    lines = [
        "location_size = Abs(location_column)",
        "location_slack = Mul(location_size, location_rounding)",
        "slack = Add(location_slack, network_rounding)",
        "exact_upper_reach = Mul(scale_column, upper_factor)",
        "upper_reach = Add(exact_upper_reach, slack)",
        f"{ends[1]} = Add(location_column, upper_reach)",
    ]
    if interval == "symmetric":
        lines += [f"{ends[0]} = Sub(location_column, upper_reach)"]
    else:
        lines += [
            "exact_lower_reach = Mul(scale_column, lower_factor)",
            "lower_reach = Sub(exact_lower_reach, slack)",
            f"{ends[0]} = Add(location_column, lower_reach)",
        ]
    return lines if plain else [*lines, *_inverse(ends[0], "lower_64"), *_inverse(ends[1], "upper_64")]


def _constants(targets: list[Target], calibration: Calibration, group_feature: int | None) -> dict[str, NDArray[np.generic]]:
    float64, int64 = np.float64, np.int64
    groups = [np.array(group.residuals, dtype=float64) for group in calibration.groups]
    table = score_table(groups, interval=calibration.interval)
    flat = table.transpose(0, 2, 1).reshape(-1, len(targets))
    of_group = "" if group_feature is None else "group_"
    constants: dict[str, NDArray[np.generic]] = {
        "first_axis": np.array([0], dtype=int64),
        "last_axis": np.array([-1], dtype=int64),
        "least_coverage": np.array(LEAST_COVERAGE),
        "one": np.array(1.0),
        "rank_guard": np.array(RANK_GUARD),
        f"{of_group}squared_factor": np.square(np.array(calibration.scale_factors)),  # two axes: training/export.py
        "rows_plus_one": np.array([[group.shape[1] + 1] for group in groups], dtype=float64),
        "upper_scores": rounded_outwards(flat, 1),
        "group_offset": np.arange(len(groups), dtype=int64)[:, None] * table.shape[2],
    }
    if calibration.interval == "equal_tailed":
        constants |= {"half": np.array(0.5), "lower_scores": rounded_outwards(flat, -1)}
    if group_feature is not None:
        codes = [group.code for group in calibration.groups[1:]]
        constants |= {
            "group_feature": np.array([group_feature], dtype=int64),
            "group_codes": np.array([codes], dtype=float64),
            "group_numbers": np.arange(1, len(groups), dtype=float64)[:, None],
        }
    transforms = np.array([target.transform for target in targets])
    if np.any(transforms != "identity"):
        tables = _node_tables([groups[number] for number in calibration.moment_groups])
        if group_feature is None:
            tables = [table[0] for table in tables]
        constants |= {
            "is_plain_row": transforms == "identity",
            "is_log": (transforms == "log")[:, None],
            "is_logit": (transforms == "logit")[:, None],
        }
        constants |= {f"{of_group}{name}": table for name, table in zip(_NODES, tables, strict=True)}
    return constants


def _node_tables(groups: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """`residual_nodes` of each group: weights [groups, most nodes, 1] and nodes [groups, targets, most nodes].

    A group with fewer nodes repeats its last, with weight 0: another value, such as 0, may overflow where its own do not.
    """
    made = [residual_nodes(group) for group in groups]
    most = max(len(weights) for _, weights in made)
    weights = [np.pad(own, (0, most - len(own)))[:, None] for _, own in made]
    nodes = [np.pad(own, ((0, 0), (0, most - own.shape[1])), mode="edge") for own, _ in made]
    return [np.stack(weights), np.stack(nodes)]


def score_table(groups: list[NDArray[np.float64]], *, interval: str) -> NDArray[np.float64]:
    """[groups, targets, most rows + 2]: column k holds the k-th smallest score of the group, infinity beyond its rows.

    Scores are the absolute residuals for symmetric intervals; the signed ones, with minus infinity in column 0, for
    equal-tailed.
    """
    longest = max(group.shape[1] for group in groups)
    table = np.full((len(groups), groups[0].shape[0], longest + 2), np.inf)
    for row, residuals in zip(table, groups, strict=True):
        symmetric = interval == "symmetric"
        row[:, 0] = 0.0 if symmetric else -np.inf
        row[:, 1 : residuals.shape[1] + 1] = np.sort(np.abs(residuals) if symmetric else residuals, axis=1)
    return table
