"""Tensors of the Open Inference Protocol (V2), as JSON and as raw bytes (its binary tensor data extension).

Numbers of every datatype become float64, which is what a model reads; BYTES become text. Nothing here knows a model.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import NoneType
from typing import Any

import numpy as np

from service.codecs.cells import PLAIN_NUMBERS, Values, numbers
from service.codecs.words import json_type, shortened
from service.errors import InvalidRequestError

NUMBERS: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{
        f"{kind}{8 * size}": np.dtype(f"<{code}{size}") for kind, code in (("UINT", "u"), ("INT", "i")) for size in (1, 2, 4, 8)
    },
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
"""Datatypes of numbers and how they stand in raw bytes: little-endian."""
TEXT = "BYTES"

_KNOWN = (*NUMBERS, TEXT)
_FLAGS = frozenset({bool, int, NoneType})
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Tensor:
    """A tensor that was read whole."""

    datatype: str
    shape: tuple[int, ...]
    values: Values | list[str | None]
    """Flat, row-major; null is NaN, or None among texts."""


def read_tensors(inputs: object, raw: bytes | memoryview) -> dict[str, Tensor]:
    """The tensors of a request by name; their data may be iterators over its parts. `raw`: the bytes behind the JSON.

    Raises InvalidRequestError with a sentence that names the tensor, and what the iterators raise.
    """
    if not isinstance(inputs, list) or not inputs:
        found = "is empty" if inputs == [] else "is missing" if inputs is None else f"is {json_type(inputs)}"
        raise InvalidRequestError(f"'inputs' {found}; give an array of tensors")
    tensors: dict[str, Tensor] = {}
    start = 0
    for number, given in enumerate(inputs):
        if not isinstance(given, dict):
            raise InvalidRequestError(f"input {number} is {json_type(given)}; give an object with name, datatype, shape, data")
        name = given.get("name")
        if not isinstance(name, str):
            raise InvalidRequestError(f"the name of input {number} is {_given(given, 'name')}; give a text")
        if name in tensors:
            raise InvalidRequestError(f"input {shortened(name)!r} is there twice")
        what = f"input {shortened(name)!r}"
        datatype, shape = _datatype(given, what), _shape(given, what)
        count = math.prod(shape)
        size = _binary_size(given, what)
        values: Values | list[str | None]
        if size is None:
            values = _values(given.get("data"), datatype, shape, what)
        else:
            if start + size > len(raw):
                raise InvalidRequestError(f"{what} announces {size} bytes, but only {len(raw) - start} are left of the body")
            piece = raw[start : start + size]
            start += size
            values = _raw_texts(piece, count, what) if datatype == TEXT else raw_numbers(piece, datatype, shape, what)
        tensors[name] = Tensor(datatype, shape, values)
    if start != len(raw):
        raise InvalidRequestError(f"the body has {len(raw) - start} bytes more than the binary_data_size of its tensors say")
    return tensors


def raw_numbers(piece: bytes | memoryview, datatype: str, shape: Sequence[int], what: str) -> Values:
    """The numbers of a binary tensor, flat. Raises InvalidRequestError where the bytes are too many or too few."""
    dtype, count = NUMBERS[datatype], math.prod(shape)
    if len(piece) != count * dtype.itemsize:
        raise InvalidRequestError(
            f"{what} has {len(piece)} bytes; its shape {_shown(shape)} of {datatype} takes {count * dtype.itemsize}"
        )
    if datatype == "BOOL":
        return np.not_equal(np.frombuffer(piece, dtype=np.uint8), 0).astype(np.float64)
    with np.errstate(invalid="ignore"):  # a NaN that signals is as good as another
        values: Values = np.frombuffer(piece, dtype=dtype).astype(np.float64)
    return values


def parameters(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The parameters of a request or a tensor; empty where it has none."""
    found = given.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidRequestError(f"the parameters of {what} are {json_type(found)}; give an object")
    return found


def flag(given: Mapping[str, Any], key: str, what: str) -> bool | None:
    """A parameter that is true or false; None where absent."""
    value = given.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError(f"parameter {key!r} of {what} is {json_type(value)}; give true or false")
    return value


def _datatype(given: Mapping[str, Any], what: str) -> str:
    datatype = given.get("datatype")
    if not isinstance(datatype, str) or datatype not in _KNOWN:
        raise InvalidRequestError(
            f"the datatype of {what} is {_given(given, 'datatype')}; give one of {', '.join(_KNOWN)}, in capital letters"
        )
    return datatype


def _shape(given: Mapping[str, Any], what: str) -> tuple[int, ...]:
    shape = given.get("shape")
    if not isinstance(shape, list) or not shape or any(type(size) is not int for size in shape):
        raise InvalidRequestError(f"the shape of {what} is {_given(given, 'shape')}; give an array of whole numbers")
    if len(shape) > _MOST_DIMENSIONS:
        raise InvalidRequestError(f"the shape of {what} has {len(shape)} dimensions; at most {_MOST_DIMENSIONS} make sense")
    if min(shape) < 0:
        raise InvalidRequestError(f"the shape of {what} is {_shown(shape)}; a request says how many, it cannot leave it open")
    return tuple(shape)


def _binary_size(given: Mapping[str, Any], what: str) -> int | None:
    """How many bytes of the body the tensor has; None where its data is JSON."""
    options = parameters(given, what)
    if "shared_memory_region" in options:
        raise InvalidRequestError(f"{what} lies in shared memory, which this server does not read; send its data")
    size = options.get("binary_data_size")
    if size is None:
        if "data" not in given:
            raise InvalidRequestError(f"{what} has no data; give 'data', or 'binary_data_size' and its bytes behind the JSON")
        return None
    if type(size) is not int or size < 0:
        raise InvalidRequestError(
            f"the binary_data_size of {what} is {_given(options, 'binary_data_size')}; give a whole number"
        )
    if "data" in given:
        raise InvalidRequestError(f"{what} has both 'data' and 'binary_data_size'; give one of them")
    return size


def _values(data: object, datatype: str, shape: tuple[int, ...], what: str) -> Values | list[str | None]:
    if not isinstance(data, Iterator):
        flat = _flat(data, shape, what)
        return _texts(flat, what) if datatype == TEXT else _numbers(flat, datatype, what)
    pieces: list[Any] = []
    nested = set()
    for part in data:
        nested.add(type(part[0]) is list)
        pieces.append(_values(part, datatype, (len(part), *(shape[1:] if True in nested else ())), what))
    count = sum(map(len, pieces))
    if len(nested) > 1 or count != math.prod(shape):
        raise InvalidRequestError(f"the data of {what} has {count} values, not nested as its shape {_shown(shape)}")
    return list(chain.from_iterable(pieces)) if datatype == TEXT else np.concatenate(pieces)


def _flat(data: object, shape: tuple[int, ...], what: str) -> list[Any]:
    """JSON data, nested as `shape` or already flat, as a flat list of math.prod(shape) values."""
    if not isinstance(data, list):
        raise InvalidRequestError(f"the data of {what} is {json_type(data)}; give an array")
    count = math.prod(shape)
    if len(shape) > 1 and data and type(data[0]) is list:
        level: list[Any] = [data]
        for size in shape:
            if set(map(type, level)) - {list}:
                raise InvalidRequestError(f"the data of {what} is not nested as its shape {_shown(shape)}")
            wrong = set(map(len, level)) - {size}
            if wrong:
                raise InvalidRequestError(
                    f"the data of {what} has an array of {min(wrong)} where its shape {_shown(shape)} says {size}"
                )
            level = list(chain.from_iterable(level))
        return level
    if len(data) != count:
        raise InvalidRequestError(f"the data of {what} has {len(data)} values; its shape {_shown(shape)} holds {count}")
    return data


def _numbers(data: list[Any], datatype: str, what: str) -> Values:
    dtype = NUMBERS[datatype]
    if datatype == "BOOL":
        allowed, kind = _FLAGS, "true or false"
        values = np.array(data, dtype=np.float64) if set(map(type, data)) <= allowed else None
    else:
        allowed, kind, values = PLAIN_NUMBERS, "a number", numbers(data)
    if values is None:
        place = next(place for place, value in enumerate(data) if type(value) not in allowed)
        raise InvalidRequestError(f"value {place} of {what} is {json_type(data[place])}; {datatype} is {kind}")
    if datatype == "FP64":
        return values  # JSON has no number beyond it
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = values.astype(dtype).astype(np.float64)
        bad, why = np.isinf(values), "is beyond the largest number of"
    else:
        low, high = (0, 1) if datatype == "BOOL" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        bad, why = (values < low) | (values > high) | (values % 1 != 0) & ~np.isnan(values), "is no"
    if bad.any():
        place = int(np.argmax(bad))
        raise InvalidRequestError(f"value {place} of {what} is {data[place]}, which {why} {datatype}")
    return values


def _texts(data: list[Any], what: str) -> list[str | None]:
    wrong = set(map(type, data)) - {str, NoneType}
    if wrong:
        place = next(place for place, value in enumerate(data) if type(value) in wrong)
        raise InvalidRequestError(f"value {place} of {what} is {json_type(data[place])}; BYTES is a text")
    return data


def _raw_texts(piece: bytes | memoryview, count: int, what: str) -> list[str | None]:
    """BYTES: each element is its length in four bytes, then itself."""
    texts: list[str | None] = []
    position = 0
    while position < len(piece) and len(texts) <= count:
        end = position + 4 + int.from_bytes(piece[position : position + 4], "little")
        if position + 4 > len(piece) or end > len(piece):
            raise InvalidRequestError(f"value {len(texts)} of {what} reaches beyond the bytes of its tensor")
        try:
            texts.append(str(piece[position + 4 : end], "utf-8"))
        except UnicodeDecodeError:
            raise InvalidRequestError(f"value {len(texts)} of {what} is not UTF-8") from None
        position = end
    if len(texts) != count:
        found = f"{len(texts)}" if len(texts) < count else f"more than {count}"
        raise InvalidRequestError(f"{what} has {found} values; its shape holds {count}")
    return texts


def _given(given: Mapping[str, Any], key: str) -> str:
    """What stands under a key, short enough for a sentence."""
    if key not in given:
        return "missing"
    value = given[key]
    if isinstance(value, str):
        return repr(shortened(value))
    if isinstance(value, list):
        return _shown(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else json_type(value)


def _shown(shape: Sequence[object]) -> str:
    inner = ", ".join(str(size) if type(size) in (int, float) else json_type(size) for size in shape[:_MOST_DIMENSIONS])
    return f"[{inner}, ...]" if len(shape) > _MOST_DIMENSIONS else f"[{inner}]"
