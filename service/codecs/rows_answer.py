"""The V1 protocol: predictions to a JSON answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.codecs.parts import NUMBERS_AT_ONCE, ROWS_AT_ONCE
from service.predictions import Prediction

_MORE = ("quantiles", "cdf", "samples")
_REMEMBERED_NUMBERS = 100


@dataclass(slots=True)
class RowNumbers:
    """The numbers of rows' answers as JSON has them, and the text of a row with a %b for each of its numbers."""

    texts: list[bytes]
    template: bytes
    per_row: int

    def of(self, start: int, end: int) -> "RowNumbers":
        """Of the rows from `start` to before `end`."""
        return RowNumbers(self.texts[start * self.per_row : end * self.per_row], self.template, self.per_row)


def row_numbers(prediction: Prediction, *, coverage: tuple[float, ...], targets: tuple[str, ...]) -> RowNumbers:
    """The numbers of a prediction. What is not finite, which JSON cannot hold, is `null` among the texts."""
    more = {name: array for name in _MORE if (array := getattr(prediction, name)) is not None}
    counts = tuple((name, array.shape[2]) for name, array in more.items())
    long = len(coverage) + sum(count for _, count in counts) > _REMEMBERED_NUMBERS
    template = (_template.__wrapped__ if long else _template)(coverage, targets, counts)  # a long one would stay in the cache
    rows, texts = len(prediction.mean), []
    step = 1 if rows == 1 else _rows_at_once(len(targets) * (3 + 2 * len(coverage) + sum(count for _, count in counts)))
    for start in range(0, rows, step):
        texts += _number_texts(prediction, [*more.values()], slice(start, start + step), coverages=len(coverage))
    return RowNumbers(texts, template, len(texts) // rows if rows else 0)


def row_texts(numbers: RowNumbers, warnings: dict[int, list[str]], *, between: bytes) -> bytes:
    """The answers of rows as JSON, with `between` between them; a single target stands flat in each, several stand by name."""
    template, texts, per_row = numbers.template, numbers.texts, numbers.per_row
    if len(texts) == per_row and not warnings:
        return template % tuple(texts) if texts else b""
    count, pieces = len(texts) // per_row if per_row else 0, []
    step, warned = _rows_at_once(per_row), iter(warnings.items())
    row, sentences = next(warned, (count, []))
    for start in range(0, count, step):
        rows = [template] * min(step, count - start)
        while row < start + len(rows):
            rows[row - start] = template[:-1] + b',"warnings":%b}' % _escaped(sentences)
            row, sentences = next(warned, (count, []))
        pieces.append(between.join(rows) % tuple(texts[start * per_row : (start + len(rows)) * per_row]))
    return between.join(pieces)


def _rows_at_once(numbers_of_a_row: int) -> int:
    return max(1, min(ROWS_AT_ONCE, NUMBERS_AT_ONCE // max(1, numbers_of_a_row)))


def answer(numbers: RowNumbers, warnings: dict[int, list[str]], *, model: dict[str, str]) -> bytes:
    """The JSON answer."""
    return b'{"model":%b,"predictions":[%b]}' % (orjson.dumps(model), row_texts(numbers, warnings, between=b","))


def _number_texts(prediction: Prediction, more: Sequence[NDArray[Any]], rows: slice, *, coverages: int) -> list[bytes]:
    """The numbers of some rows in the order of `_template`. A float32 is written with the digits it has."""
    single = all(array.dtype == prediction.mean.dtype for array in more)
    if single and prediction.mean.size == coverages == 1:  # a single NumPy operation would take as long as all of this
        arrays = (prediction.mean, prediction.std, prediction.epistemic_std, prediction.lower, prediction.upper, *more)
        return _texts(np.frombuffer(b"".join([array.tobytes() for array in arrays]), dtype=prediction.mean.dtype))
    form: Callable[[NDArray[Any]], NDArray[Any]] = _as_it_is if single else _as_texts
    moments = [form(array[rows])[:, :, None] for array in (prediction.mean, prediction.std, prediction.epistemic_std)]
    intervals = [form(array[rows]) for array in (prediction.lower, prediction.upper)]
    if coverages > 1:
        intervals = [np.stack(intervals, axis=3).reshape(*intervals[0].shape[:2], 2 * coverages)]
    numbers = np.concatenate([*moments, *intervals, *(form(array[rows]) for array in more)], axis=2)
    return _texts(numbers) if single else numbers.ravel().tolist()


def _as_it_is(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _as_texts(array: NDArray[Any]) -> NDArray[Any]:
    return np.array(_texts(array), dtype=object).reshape(array.shape)


def _texts(numbers: NDArray[Any]) -> list[bytes]:
    return orjson.dumps(numbers.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",") if numbers.size else []


@lru_cache(maxsize=256)
def _template(coverage: tuple[float, ...], targets: tuple[str, ...], more: tuple[tuple[str, int], ...]) -> bytes:
    """The answer of a row, with %b for every number. more: what else was asked for, and how many numbers it has."""
    intervals = b",".join(b'{"coverage":%b,"lower":%%b,"upper":%%b}' % orjson.dumps(c) for c in coverage)
    lists = b"".join(b',"%b":[%b]' % (name.encode(), b",".join([b"%b"] * count)) for name, count in more)
    one = b'{"mean":%%b,"std":%%b,"epistemic_std":%%b,"intervals":[%b]%b}' % (intervals, lists)
    if len(targets) == 1:
        return one
    return b"{%b}" % b",".join(b"%b:%b" % (_escaped(target), one) for target in targets)


def _escaped(value: object) -> bytes:
    """JSON as it stands in a template."""
    return orjson.dumps(value).replace(b"%", b"%%")
