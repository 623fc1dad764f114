"""From a fitted network to the network part of the model graph, written in ONNX's text form.

Values are row-major, [members, n, features], but for the embedding's: there frequencies and biases are broadcast along rows,
which ONNX Runtime does fast. Constants have two axes: values [members, n, 1] take one of no or one axis slowly, row by row
(docs/decisions/008).
"""

import math
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.parser
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from models.heads import INITIAL_VARIANCE_OFFSET, Head
from models.manifest import Target
from models.networks import ACTIVATIONS, SMOOTH_CLIP, FeatureStatistics, PeriodicEmbedding, StackedNetwork
from training.fit import Fitted
from training.graph import IR_VERSION, MEMBER_OUTPUTS, OPSET, named_network

FLOAT64_RATIO = 1e3
"""Outputs become float64 where a target's centre is larger than so many of its standard deviations: float32 keeps 7 digits,
and a target of 1e9 +- 1 would lose all of its own."""
BLOCK_OUTPUTS = 16
"""Embeddings share a matmul up to so many outputs, block-diagonally. Against a matmul a feature (8 members, 10 features, 8
frequencies, 8 outputs): one row 73 us instead of 80, many rows 2 % slower; with 32 outputs many rows would be 20 % slower."""

Array = NDArray[np.generic]

_ACTIVATIONS = {
    "silu": ["{result}_gate = Sigmoid({value})", "{result} = Mul({value}, {result}_gate)"],
    "relu": ["{result} = Relu({value})"],
    "tanh": ["{result} = Tanh({value})"],
}


@dataclass
class _Text:
    """Nodes in ONNX's text form, and the constants that they name."""

    lines: list[str] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def write(self, *lines: str, **constants: Array | Tensor) -> None:
        """Add nodes and constants."""
        self.lines += lines
        for name, value in constants.items():
            self.constants[name] = value.detach().numpy() if isinstance(value, Tensor) else value


def exported_network(fitted: Fitted, *, columns: int) -> onnx.ModelProto:
    """The network part: raw x [n, columns] float64 -> member_location, member_scale [members, n, targets] float64."""
    network, text = fitted.network, _Text()
    features = _write_features(text, network.features.statistics, columns=columns)
    inputs = _write_embedding(text, network, features)
    hidden = _write_layers(text, network, inputs)
    _write_head(text, network.head, hidden, centre=fitted.centre, scale=fitted.scale)
    members = ", ".join(f"double[m,n,{len(fitted.centre)}] {name}" for name in MEMBER_OUTPUTS)
    body = "\n".join(text.lines)
    graph = onnx.parser.parse_graph(f"network (double[n,{columns}] x) => ({members}) {{\n{body}\n}}")
    graph.initializer.extend(numpy_helper.from_array(value, name=name) for name, value in text.constants.items())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return named_network(model)


def needs_float64(fitted: Fitted, targets: list[Target]) -> bool:
    """Whether the outputs need float64: for a large offset, a transform (exponentials overflow, and shares near 1 are rounded
    to it), or a unit that float32 has no room for.
    """
    centre, scale = np.abs(fitted.centre), np.array(fitted.scale)
    outside = (centre > FLOAT64_RATIO * scale) | (centre + FLOAT64_RATIO * scale > 1e30) | (scale < 1e-30)
    return bool(outside.any()) or any(target.transform != "identity" for target in targets)


def _write_features(text: _Text, statistics: FeatureStatistics, *, columns: int) -> str:
    """The features [n, statistics.width] float32, as models.networks.Features makes them, but for the scaled columns and
    their components.

    These are in units of SMOOTH_CLIP, which the first weights compensate: one node less.
    """
    parts = []
    if statistics.scaled:
        scaled = _gathered(text, "x", statistics.scaled, "scaled_columns", of=columns)
        text.write(
            f"centred = Sub({scaled}, centre)",
            "wide_ratio = Div(centred, clip_scale)",
            "is_missing = IsNaN(wide_ratio)",
            "known_ratio = Where(is_missing, wide_nought, wide_ratio)",
            "ratio = Clip(known_ratio, lowest_ratio, highest_ratio)",  # infinity has no ratio
            *_clipped("ratio", "wide_clipped"),
            "clipped = Cast<to=1>(wide_clipped)",  # to float32, only after standardising
            centre=np.array([statistics.centre]),
            clip_scale=SMOOTH_CLIP * np.array([statistics.scale]),
            lowest_ratio=np.array(-1e6),
            highest_ratio=np.array(1e6),
            wide_nought=np.array(0.0),
            one=np.array([[1.0]]),
        )
        parts.append("clipped")
    if statistics.component_centre:
        text.write(
            "component_sum = MatMul(wide_clipped, component_weight)",
            "component = Sub(component_sum, component_centre)",
            *_clipped("component", "wide_component"),
            "clipped_components = Cast<to=1>(wide_component)",
            component_weight=np.array(statistics.component_weight).T,  # both of them in units of SMOOTH_CLIP
            component_centre=np.array([statistics.component_centre]) / SMOOTH_CLIP,
        )
        parts.append("clipped_components")
    if statistics.indicated:
        indicated = _gathered(text, "x", statistics.indicated, "indicated_columns", of=columns)
        text.write(f"is_indicated = IsNaN({indicated})", "indicators = Cast<to=1>(is_indicated)")
        parts.append("indicators")
    if statistics.one_hot:
        coded = _gathered(text, "x", statistics.one_hot, "coded_columns", of=columns)
        text.write(
            f"is_category = Equal({coded}, category_codes)",
            "categories = Cast<to=1>(is_category)",
            category_codes=np.array([statistics.one_hot_code]),
        )
        parts.append("categories")
    if statistics.cyclic:
        cyclic = _gathered(text, "x", statistics.cyclic, "cyclic_columns", of=columns)
        text.write(
            f"turns = Div({cyclic}, cycle_seconds)",
            "whole_turns = Floor(turns)",
            "part_turns = Sub(turns, whole_turns)",
            "wide_angle = Mul(part_turns, whole_angle)",
            "any_angle = Cast<to=1>(wide_angle)",
            "has_no_angle = IsNaN(any_angle)",
            "any_sine = Sin(any_angle)",
            "any_cosine = Cos(any_angle)",
            "sine = Where(has_no_angle, nought, any_sine)",
            "cosine = Where(has_no_angle, nought, any_cosine)",
            cycle_seconds=np.array([statistics.cycle_seconds]),
            whole_angle=np.array([[2 * math.pi]]),
            nought=_float32(0.0),
        )
        parts += ["sine", "cosine"]
    if len(parts) == 1:
        return parts[0]
    text.write(f"features = Concat<axis=1>({', '.join(parts)})")
    return "features"


def _clipped(ratio: str, result: str) -> list[str]:
    """The nodes of the smooth clip of a value in units of SMOOTH_CLIP."""
    return [
        f"{result}_square = Mul({ratio}, {ratio})",
        f"{result}_squared_length = Add({result}_square, one)",
        f"{result}_length = Sqrt({result}_squared_length)",
        f"{result} = Div({ratio}, {result}_length)",
    ]


def _write_embedding(text: _Text, network: StackedNetwork, features: str) -> str:
    """What the first layer takes: features and their embeddings [members, n, inputs]; features alone [n, width] without any.

    The embedding is feature-major, [members, features, frequencies, n], and blocks of features share one matmul.
    """
    embedding = network.embedding
    if embedding is None:
        return features
    frequency, weight, bias = _embedding_blocks(embedding)
    members, blocks, outputs, waves = weight.shape
    indices = network.embedded.tolist() + [0] * (frequency.shape[1] - len(network.embedded))
    embedded = _gathered(text, features, indices, "embedded_features", of=network.features.statistics.width)
    text.write(
        f"embedded_columns = Transpose<perm=[1, 0]>({embedded})",
        "wide_columns = Unsqueeze(embedded_columns, second_axis)",
        "angles = Mul(frequency, wide_columns)",
        "sines = Sin(angles)",
        "cosines = Cos(angles)",
        "waves = Concat<axis=2>(sines, cosines)",
        "wave_blocks = Reshape(waves, wave_shape)",
        "weighted = MatMul(embedding_weight, wave_blocks)",
        "biased = Add(weighted, embedding_bias)",
        *_activation("silu", "biased", "embedded_blocks"),
        "embedding_columns = Reshape(embedded_blocks, embedding_shape)",
        "embeddings = Transpose<perm=[0, 2, 1]>(embedding_columns)",
        f"feature_stack = Expand({features}, stack_shape)",
        "inputs = Concat<axis=2>(feature_stack, embeddings)",
        second_axis=np.array([1]),
        frequency=frequency,
        wave_shape=np.array([members, blocks, waves, -1]),
        embedding_weight=weight,
        embedding_bias=bias,
        embedding_shape=np.array([members, blocks * outputs, -1]),
        stack_shape=np.array([members, 1, 1]),
    )
    return "inputs"


def _embedding_blocks(embedding: PeriodicEmbedding) -> tuple[Tensor, Tensor, Tensor]:
    """The embedding's parameters, with zeros for the features that fill the last block.

    Angles of 1 [members, features, waves, 1]; weights [members, blocks, outputs, waves], block-diagonal; biases
    [members, blocks, outputs, 1]. `waves` are sines, then cosines.
    """
    missing = _whole_blocks(embedding) - embedding.bias.shape[1]
    angle = SMOOTH_CLIP * 2 * math.pi * embedding.frequency.transpose(2, 3)
    weight = torch.cat([embedding.sine_weight, embedding.cosine_weight], dim=2).transpose(2, 3)
    angle, weight, bias = (functional.pad(part, (0, 0, 0, 0, 0, missing)) for part in (angle, weight, embedding.bias))
    size, (members, _, outputs, waves) = _block_features(embedding), weight.shape
    grouped = weight.reshape(members, -1, size, outputs, waves)
    diagonal = torch.einsum("mbiow,ij->mbiojw", grouped, torch.eye(size))
    width = size * outputs
    return angle, diagonal.reshape(members, -1, width, size * waves), bias.reshape(members, -1, width, 1)


def _block_features(embedding: PeriodicEmbedding) -> int:
    _, features, _, outputs = embedding.bias.shape
    return max(1, min(features, BLOCK_OUTPUTS // outputs))


def _whole_blocks(embedding: PeriodicEmbedding) -> int:
    """The number of features, rounded up to whole blocks."""
    size = _block_features(embedding)
    return math.ceil(embedding.bias.shape[1] / size) * size


def _write_layers(text: _Text, network: StackedNetwork, hidden: str) -> str:
    """The hidden layers; returns the name of the last one's output [members, n, width]."""
    activation = next(name for name, function in ACTIVATIONS.items() if function is network.activation)
    for number, layer in enumerate(network.layers):
        weight: Tensor = layer.get_parameter("weight")
        weight = _first_weight(weight, network) if number == 0 else weight
        text.write(
            f"product_{number} = MatMul({hidden}, weight_{number})",
            f"sum_{number} = Add(product_{number}, bias_{number})",
            *_activation(activation, f"sum_{number}", f"hidden_{number}"),
            **{f"weight_{number}": weight, f"bias_{number}": layer.get_parameter("bias")},
        )
        hidden = f"hidden_{number}"
    return hidden


def _first_weight(weight: Tensor, network: StackedNetwork) -> Tensor:
    """The weight [members, inputs, width] that suits `_write_features` and `_write_embedding`."""
    statistics = network.features.statistics
    scaled = len(statistics.scaled) + len(statistics.component_centre)
    weight = torch.cat([SMOOTH_CLIP * weight[:, :scaled], weight[:, scaled:]], dim=1)
    if network.embedding is None:
        return weight
    missing = _whole_blocks(network.embedding) - len(network.embedded)
    return functional.pad(weight, (0, 0, 0, missing * network.embedding.bias.shape[-1]))


def _write_head(text: _Text, head: Head, hidden: str, *, centre: list[float], scale: list[float]) -> None:
    """`member_location` and `member_scale` from one matmul; a constant std is a scale without weights.

    ONNX Runtime fuses the input's transposition with the matmul. Without it, two outputs would cost as much as sixteen.
    """
    scale_weight = torch.zeros_like(head.mean_weight) if head.scale_weight is None else head.scale_weight
    text.write(
        f"head_input = Transpose<perm=[0, 2, 1]>({hidden})",
        "head_product = MatMul(head_weight, head_input)",
        "head_sum = Add(head_product, head_bias)",
        "head = Transpose<perm=[0, 2, 1]>(head_sum)",
        "unit_mean, raw_scale = Split<axis=2, num_outputs=2>(head)",
        f"wide_mean = Cast<to={TensorProto.DOUBLE}>(unit_mean)",
        "mean_from_centre = Mul(wide_mean, target_scale)",
        "member_location = Add(mean_from_centre, target_centre)",
        "positive = Softplus(raw_scale)",
        "floored = Add(positive, minimum_variance)",
        "unit_variance = Min(floored, maximum_variance)",
        "unit_scale = Sqrt(unit_variance)",
        f"wide_scale = Cast<to={TensorProto.DOUBLE}>(unit_scale)",
        "member_scale = Mul(wide_scale, target_scale)",
        head_weight=torch.cat([head.mean_weight, scale_weight], dim=2).transpose(1, 2),
        head_bias=torch.cat([head.mean_bias, head.scale_bias + INITIAL_VARIANCE_OFFSET], dim=2).transpose(1, 2),
        target_scale=np.array([scale]),
        target_centre=np.array([centre]),
        minimum_variance=_float32(head.minimum_variance),
        maximum_variance=_float32(head.maximum_variance),
    )


def _activation(name: str, value: str, result: str) -> list[str]:
    """The nodes of an activation function."""
    return [line.format(value=value, result=result) for line in _ACTIVATIONS[name]]


def _gathered(text: _Text, value: str, indices: list[int], result: str, *, of: int) -> str:
    """The name of columns `indices` of a value with `of` columns: its own where that is all of them, in order."""
    if indices == list(range(of)):
        return value
    text.write(f"{result} = Gather<axis=1>({value}, {result}_indices)", **{f"{result}_indices": np.array(indices)})
    return result


def _float32(value: float) -> NDArray[np.float32]:
    """A constant [1, 1]."""
    return np.array([[value]], dtype=np.float32)
