"""Arrow IPC streams for bulk scoring: a body to arrays, predictions to a body. Needs pyarrow, the extra `arrow`.

A body is not trusted. It is validated in full before a value is read, and what may be larger in memory than it is in the body
is refused: compressed buffers, deltas of dictionaries, buffers or texts that share their bytes.
"""

import contextlib
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.manifest import Column
from service.codecs.cells import Values
from service.codecs.features import Features, Rows, UnknownCategory, read_column
from service.codecs.rows import RowsRequest
from service.codecs.tables import answer_columns, check_names
from service.codecs.unusual import infinite
from service.errors import ENOUGH_PROBLEMS, InvalidRequestError, Problem, refuse
from service.predictions import Prediction, check_finite

_FILE_MAGIC = b"ARROW1"
_EARLY_COMPRESSION = b"ARROW:experimental_compression"  # how streams of 2020 said that they are compressed
_HEADER, _DICTIONARY, _IS_DELTA, _COMPRESSION = 2, 1, 2, 3  # places of fields in Arrow's Message.fbs
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_EXPECTED = {
    "numeric": "numbers",
    "categorical": "texts",
    "boolean": "booleans",
    "datetime": "timestamps, dates, texts, or numbers of seconds since 1970",
}


def count(body: bytes, features: Features) -> tuple[int, Callable[[], Rows]]:
    """How many rows a stream has, and what reads them. Raises InvalidRequestError."""
    with _arrow_errors():
        schema, batches = _batches(body, features)
        return sum(batch.num_rows for batch in batches), lambda: _read(schema, batches, features)


def write(prediction: Prediction, request: RowsRequest, targets: Sequence[str]) -> bytes:
    """The answer as a stream of one batch, with the columns of a CSV answer; `warnings` is null where there are none."""
    check_finite(prediction, targets)
    names, columns = map(list, zip(*answer_columns(prediction, request, targets), strict=True))
    arrays = [pa.array(np.ascontiguousarray(column)) for column in columns]
    if request.warnings:
        sentences = (request.warnings.get(row) for row in range(len(prediction.mean)))
        names.append("warnings")
        arrays.append(pa.array(["; ".join(some) if some else None for some in sentences], pa.string()))
    batch = pa.record_batch(arrays, names=names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    written: bytes = sink.getvalue().to_pybytes()
    return written


@contextlib.contextmanager
def _arrow_errors() -> Iterator[None]:
    """What pyarrow refuses, as InvalidRequestError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, struct.error) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InvalidRequestError(f"the body is not a valid Arrow stream: {reason}") from None


def _batches(body: bytes, features: Features) -> tuple[Any, list[Any]]:
    """The schema and the record batches of a stream, validated but for the dictionaries."""
    if body.startswith(_FILE_MAGIC):
        raise InvalidRequestError("the body is an Arrow file; send a stream, as pyarrow.ipc.new_stream writes it")
    _refuse_what_grows(body)
    source = pa.BufferReader(body)
    with pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(use_threads=False)) as stream:
        schema = stream.schema
        check_names(schema.names, features)
        _check_types(schema, features)
        batches = list(stream)
    if source.tell() != len(body):
        raise InvalidRequestError(f"the body holds {len(body) - source.tell()} bytes after its Arrow stream; send one stream")
    held = sum(
        buffer.size for batch in batches for column in batch.columns for buffer in column.buffers() if buffer is not None
    )
    if held > len(body):
        raise InvalidRequestError("the buffers of the Arrow stream overlap")
    for batch in batches:
        if batch.num_rows < 0:
            raise InvalidRequestError(f"a record batch says that it has {batch.num_rows} rows")
        batch.validate()
        for column in batch.columns:
            part = column.indices if pa.types.is_dictionary(column.type) else column
            part.validate(full=not pa.types.is_string_view(part.type))
    return schema, batches


def _refuse_what_grows(body: bytes) -> None:
    """Raise InvalidRequestError for compressed buffers, and for deltas of dictionaries, of which each makes a whole one."""
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(body)):  # which verifies the metadata
        if message.type not in ("record batch", "dictionary"):
            continue
        metadata = message.metadata.to_pybytes()
        batch = _table(metadata, _field(metadata, _table(metadata, 0), _HEADER))
        if message.type == "dictionary":
            delta = _field(metadata, batch, _IS_DELTA)
            if delta is not None and metadata[delta]:
                raise InvalidRequestError("deltas of dictionaries are not read; send whole dictionaries, or plain texts")
            batch = _table(metadata, _field(metadata, batch, _DICTIONARY))
        if _field(metadata, batch, _COMPRESSION) is not None or _EARLY_COMPRESSION in metadata:
            raise InvalidRequestError(
                "compressed Arrow buffers are not read; write the stream without compression, and compress the body as a whole "
                "(Content-Encoding: gzip) where its size matters"
            )


def _table(metadata: bytes, place: int | None) -> int:
    """Where the flatbuffers table is that an offset at `place` leads to."""
    if place is None:
        raise InvalidRequestError("the body is not a valid Arrow stream: a message has no header")
    (offset,) = struct.unpack_from("<I", metadata, place)
    return place + int(offset)


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Where a field of a flatbuffers table is; None where it has its default."""
    (back,) = struct.unpack_from("<i", metadata, table)
    (size,) = struct.unpack_from("<H", metadata, table - back)
    entry = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", metadata, table - back + entry) if entry < size else (0,)
    return table + int(offset) if offset else None


def _check_types(schema: Any, features: Features) -> None:
    """Raise InvalidRequestError where a column is of a type that is never read."""
    problems = []
    for field in schema:
        column = features.columns[features.positions[field.name]]
        if not _is_readable(field.type, column):
            sentence = f"is a column of {str(field.type)[:100]}; give {_EXPECTED[column.kind]}"
            problems.append(Problem(sentence, feature=field.name))
    if problems:
        raise refuse(problems[:ENOUGH_PROBLEMS])


def _is_readable(type_: Any, column: Column) -> bool:
    if pa.types.is_dictionary(type_):
        return _is_plain(type_.value_type)
    moment = pa.types.is_timestamp(type_) or pa.types.is_date(type_)
    return _is_plain(type_) or pa.types.is_null(type_) or (moment and column.kind == "datetime")


def _is_plain(type_: Any) -> bool:
    """Whether a type is of booleans, numbers or texts."""
    return bool(pa.types.is_boolean(type_)) or _is_number(type_) or _is_text(type_)


def _is_number(type_: Any) -> bool:
    return any(check(type_) for check in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))


def _is_text(type_: Any) -> bool:
    return any(check(type_) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _read(schema: Any, batches: list[Any], features: Features) -> Rows:
    unknown: list[UnknownCategory] = []
    problems: list[Problem] = []
    x = np.full((sum(batch.num_rows for batch in batches), len(features.names)), math.nan)
    if len(x):
        with _arrow_errors():
            for number, field in enumerate(schema):
                position = features.positions[field.name]
                chunks = [batch.column(number) for batch in batches]
                x[:, position] = _column(chunks, field.type, position, features, unknown, problems)
    problems += infinite(x, features)
    return x, unknown, sorted(problems, key=lambda problem: problem.row or 0)


def _column(
    chunks: list[Any], type_: Any, position: int, features: Features, unknown: list[UnknownCategory], problems: list[Problem]
) -> Sequence[float] | Values:
    """A column as x holds it; adds to `unknown` and `problems`."""
    if pa.types.is_null(type_):
        return np.full(sum(map(len, chunks)), math.nan)
    column = features.columns[position]
    kind = column.kind
    ids = column.integer and kind == "categorical"
    if pa.types.is_dictionary(type_):
        return _by_value(_by_dictionary(chunks, ids=ids), position, features, unknown, problems)
    if pa.types.is_string_view(type_):
        return _by_value([_by_view(chunk) for chunk in chunks], position, features, unknown, problems)
    array = _simple(pa.concat_arrays(chunks), ids=ids)
    if pa.types.is_timestamp(type_):
        return _numbers(array.cast(pa.int64())) / _UNITS[type_.unit]
    if pa.types.is_date32(type_):
        return _numbers(array.cast(pa.int32())) * 86400
    if pa.types.is_date64(type_):
        return _numbers(array.cast(pa.int64())) / 1e3
    if (_is_number(type_) and kind in ("numeric", "datetime")) or (pa.types.is_boolean(type_) and kind == "boolean"):
        return _numbers(array)
    encoded = array.dictionary_encode()
    return _by_value([(encoded.dictionary, _places(encoded))], position, features, unknown, problems)


def _numbers(array: Any) -> Values:
    """Numbers as float64, null as NaN."""
    numbers: Values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def _simple(array: Any, *, ids: bool) -> Any:
    """Numbers that are not whole as float64, decimals of `ids` as texts; what else is as it is."""
    if pa.types.is_decimal(array.type):
        return array.cast(pa.string() if ids else pa.float64())  # databases give ids so, and float64 has not every one
    return array.cast(pa.float64()) if pa.types.is_floating(array.type) else array


def _by_view(array: Any) -> tuple[Any, NDArray[np.int64]]:
    """The distinct texts of a string_view array with the places in them of its rows, -1 for null.

    Many views of one long text take little of a body and are little here; nothing but numpy looks at the views of nulls, which
    may lead anywhere.
    """
    _, views, *buffers = array.buffers()
    places = np.full(len(array), -1)
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    every = np.frombuffer(views or b"", "V16", count=len(array))
    distinct, places[valid] = np.unique(every[valid], return_inverse=True)
    texts = pa.Array.from_buffers(pa.string_view(), len(distinct), [None, pa.py_buffer(distinct.tobytes()), *buffers])
    return _texts(texts), places


def _texts(views: Any) -> Any:
    """The texts of a string_view array, validated, as large_string. A view begins with the length of its text."""
    buffers = [buffer or b"" for buffer in views.buffers()[1:]]
    lengths = np.frombuffer(buffers[0], np.int32, count=4 * len(views))[::4]
    valid = views.is_valid().to_numpy(zero_copy_only=False)
    if lengths[valid].clip(min=0).sum(dtype=np.int64) > sum(map(len, buffers)):
        raise InvalidRequestError("the texts of a string_view column overlap; send plain texts")
    views.validate(full=True)
    return pa.array(views.to_pylist(), pa.large_string())


def _by_dictionary(chunks: list[Any], *, ids: bool) -> list[tuple[Any, NDArray[np.int64]]]:
    """Each dictionary with the places in it of the rows that use it, in order of the rows."""
    groups: list[tuple[Any, list[NDArray[np.int64]]]] = []
    last: object = None
    for chunk in chunks:
        dictionary = chunk.dictionary
        same = (len(dictionary), [None if buffer is None else buffer.address for buffer in dictionary.buffers()])
        if same != last:  # looked at once: every batch of a stream may use the same large one
            groups.append((_whole(dictionary, ids=ids), []))
            last = same
        groups[-1][1].append(_places(chunk))
    return [(dictionary, np.concatenate(places)) for dictionary, places in groups]


def _whole(dictionary: Any, *, ids: bool) -> Any:
    """A dictionary, validated."""
    if pa.types.is_string_view(dictionary.type):
        return _texts(dictionary)
    dictionary.validate(full=True)
    return _simple(dictionary, ids=ids)


def _places(column: Any) -> NDArray[np.int64]:
    """The places in its dictionary of a dictionary-encoded column's rows; -1 for null."""
    indices = column.indices.cast(pa.int64())
    valid = indices.is_valid().to_numpy(zero_copy_only=False)
    places: NDArray[np.int64] = indices.fill_null(0).to_numpy()
    if ((places < 0) | (places >= len(column.dictionary)))[valid].any():
        raise InvalidRequestError("the body is not a valid Arrow stream: an index is not in its dictionary")
    return np.where(valid, places, -1)


def _by_value(
    groups: Sequence[tuple[Any, NDArray[np.int64]]],
    position: int,
    features: Features,
    unknown: list[UnknownCategory],
    problems: list[Problem],
) -> Values:
    """A column of few values as x holds it: each value is read once, as JSON's are."""
    cells, start = [], 0
    for dictionary, places in groups:
        used, place = np.unique(places, return_inverse=True)
        nulls = int((used < 0).sum())
        values: list[Any] = [None] * nulls + dictionary.take(pa.array(used[nulls:])).to_pylist()
        values = [None if value != value else value for value in values]  # NaN
        strange: list[UnknownCategory] = []
        wrong: list[Problem] = []
        cells.append(np.asarray(read_column(values, position, features, strange, wrong))[place])
        is_strange = np.zeros(len(values), dtype=bool)
        is_strange[[item.row for item in strange]] = True
        rows = np.flatnonzero(is_strange[place]).tolist()
        unknown += [UnknownCategory(start + row, position, values[place[row]]) for row in rows]
        sentences = {int(problem.row or 0): problem.problem for problem in wrong}
        rows = np.flatnonzero(np.isin(place, list(sentences)))[:ENOUGH_PROBLEMS].tolist()
        problems += [Problem(sentences[int(place[row])], row=start + row, feature=features.names[position]) for row in rows]
        start += len(places)
    return np.concatenate(cells)
