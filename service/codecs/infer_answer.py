"""The Open Inference Protocol (V2): a model's outputs to the answer of a request."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models.artifact import Arrays
from service.codecs.infer import InferRequest
from service.codecs.parts import NUMBERS_AT_ONCE
from service.errors import ENOUGH_PROBLEMS, Problem, refuse

_MOST_PARAMETERS_TEXT = 2000


@dataclass(slots=True)
class InferAnswer:
    """The body of an answer. json_bytes: the length of its JSON part, or None where it is nothing else."""

    body: bytes
    json_bytes: int | None


def answer(request: InferRequest, arrays: Arrays, *, name: str, version: str) -> InferAnswer:
    """The answer to `request` from the outputs that it asked for, which `check_finite` has passed."""
    raw = [_little(arrays[output]).tobytes() for output in request.outputs if output in request.binary]
    if len(raw) == len(request.outputs) and request.id is None and not request.warnings:
        described = tuple((output, _datatype(arrays[output]), arrays[output].shape) for output in request.outputs)
        text = _binary_head(described, tuple(map(len, raw)), name, version)
    else:
        text = _head(request, arrays, [len(piece) for piece in raw], name, version)
    return InferAnswer(b"".join([text, *raw]), len(text)) if raw else InferAnswer(text, None)


def check_finite(arrays: Arrays, outputs: Sequence[str]) -> None:
    """Raise InvalidRequestError where a number is not finite, which JSON cannot hold."""
    for name in outputs:
        rows = np.unique(np.argwhere(~np.isfinite(arrays[name]))[:, 0])[:ENOUGH_PROBLEMS].tolist()
        if rows:
            far = f"{name} is not a finite number: the row is too far from the training rows"
            raise refuse([Problem(far, row=row) for row in rows])


def finite(arrays: Arrays, outputs: Sequence[str]) -> bool:
    """Whether all numbers of these outputs are."""
    return bool(np.isfinite(np.concatenate([arrays[name].ravel() for name in outputs])).all())


def _head(request: InferRequest, arrays: Arrays, binary_bytes: Sequence[int], name: str, version: str) -> bytes:
    """The JSON of an answer. binary_bytes: of the outputs that stand behind it."""
    outputs, sizes = [], iter(binary_bytes)
    for output in request.outputs:
        array = arrays[output]
        described: dict[str, Any] = {"name": output, "datatype": _datatype(array), "shape": array.shape}
        if output in request.binary:
            described["parameters"] = {"binary_data_size": next(sizes)}
        else:
            described["data"] = _data(array)
        outputs.append(described)
    document: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    if request.warnings:
        document["parameters"] = {"warnings": _warnings(request)}
    return orjson.dumps(document | {"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)


def _data(array: NDArray[Any]) -> NDArray[Any] | orjson.Fragment:
    """The numbers of an output, flat. Many are written in parts, between which other threads run."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if len(flat) <= NUMBERS_AT_ONCE:
        return flat
    parts = [flat[start : start + NUMBERS_AT_ONCE] for start in range(0, len(flat), NUMBERS_AT_ONCE)]
    texts = [orjson.dumps(part, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for part in parts]
    return orjson.Fragment(b"[%b]" % b",".join(texts))


@lru_cache(maxsize=256)
def _binary_head(
    described: tuple[tuple[str, str, tuple[int, ...]], ...], sizes: tuple[int, ...], name: str, version: str
) -> bytes:
    """As `_head` where every output stands behind it: the same for all requests of one form."""
    outputs = [
        {"name": output, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
        for (output, datatype, shape), size in zip(described, sizes, strict=True)
    ]
    return orjson.dumps({"model_name": name, "model_version": version, "outputs": outputs})


def _little(array: NDArray[Any]) -> NDArray[Any]:
    return array if sys.byteorder == "little" else array.byteswap()


def _datatype(array: NDArray[Any]) -> str:
    return f"FP{8 * array.dtype.itemsize}"


def _warnings(request: InferRequest) -> str:
    """All warnings as one text, parameters being scalars: of the first row at least, and of others whole or not at all."""
    told: list[str] = []
    length = 0
    for row, sentences in request.warnings.items():
        text = f"row {row}: {', '.join(sentences)}"
        length += len(text)
        if told and length > _MOST_PARAMETERS_TEXT:
            break
        told.append(text[:_MOST_PARAMETERS_TEXT])
    more = request.unusual_rows - len(told)
    return "; ".join(told) + (f"; and {more} more rows" if more > 0 else "")
