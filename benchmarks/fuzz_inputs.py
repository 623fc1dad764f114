"""Bodies that are nearly right: valid ones of every form that the prediction routes take, and what spoils them."""

import random
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson

_MOST_BYTES = 20_000
"""Of a mutated body: what is wrong with a large one is wrong with a small one."""
_LENGTH = b"inference-header-content-length"
_TYPE = b"content-type"
_ARROW = b"application/vnd.apache.arrow.stream"


@dataclass(frozen=True)
class Input:
    """What a request holds. json_bytes: what the length header of the binary tensor data extension says; None without it."""

    form: str
    model: str
    body: bytes
    media_type: bytes = b"application/json"
    query: bytes = b""
    json_bytes: bytes | None = None

    def scope(self) -> dict[str, Any]:
        """The part of an ASGI scope that protocols read."""
        headers = [(_TYPE, self.media_type)] + ([] if self.json_bytes is None else [(_LENGTH, self.json_bytes)])
        return {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": self.query}


def valid_inputs() -> list[Input]:
    """Requests that are answered, of every form: about the models `plain` (a, b) and `mixed` (a, b, colour, open, when)."""
    plain: dict[str, Any] = {"a": 1.5, "b": 2}
    mixed: dict[str, Any] = {"a": -1, "b": 7.25, "colour": "red", "open": True, "when": "2022-04-15T05:20:00Z"}
    odd: dict[str, Any] = {"a": 100, "b": None, "colour": "pink", "open": "no", "when": 1.65e9}
    everything: dict[str, Any] = {
        "coverage": [0.5, 0.9],
        "quantiles": 0.1,
        "thresholds": [4, -1.5],
        "samples": 3,
        "seed": 7,
        "strict": False,
    }
    queries = (b"", b"coverage=0.5,0.9&quantiles=0.1&thresholds=4,-1e0&samples=3&seed=7&strict=false", b"coverage=")
    found = []
    choices: list[dict[str, Any]] = [{}, everything, {"coverage": []}]
    tables: dict[str, list[dict[str, Any]]] = {"plain": [plain, {"b": 3, "a": 0}], "mixed": [mixed, odd]}
    for model, rows in tables.items():
        lists = [list(row.values()) for row in rows]
        found += [
            Input("v1", model, orjson.dumps({"instances": given} | options))
            for given in (rows, lists, rows[:1], [])
            for options in choices
        ]
        names = list(rows[0])
        cloud: list[dict[str, Any]] = [
            {"instances": rows, "parameters": everything},
            {"dataframe_split": {"columns": names, "data": lists, "index": [0, 1]}},
            {"dataframe_records": rows, "coverage": 0.5},
            {"inputs": lists},
            {"inputs": {name: [row[name] for row in rows] for name in names}},
        ]
        found += [Input("invocations", model, orjson.dumps(request)) for request in cloud]
        lines = [",".join("" if row[name] is None else str(row[name]) for name in names).encode() for row in rows]
        csv = [b",".join(name.encode() for name in names), *lines]
        ndjson = [orjson.dumps(row) for row in (*rows, *lists)]
        found += [Input("csv", model, b"\n".join(csv), b"text/csv", query) for query in queries]
        found += [Input("csv", model, b"\r\n".join(lines), b"text/csv; charset=utf-8")]
        found += [Input("ndjson", model, b"\n".join(ndjson), b"application/x-ndjson", query) for query in queries]
        found += _infer_inputs(model, rows[0])
    return found + _arrow_inputs(plain, mixed)


def _infer_inputs(model: str, row: dict[str, Any]) -> list[Input]:
    width = len(row)
    x = np.array([[0.5, 4, 2, 1, 1.65e9], [1, 2, 0, 0, 1.61e9]])[:, :width]
    whole = {"name": "x", "shape": [2, width], "datatype": "FP64"}
    features = [
        {
            "name": name,
            "shape": [1],
            "datatype": "BYTES" if isinstance(value, str) else "BOOL" if isinstance(value, bool) else "FP64",
            "data": [value],
        }
        for name, value in row.items()
    ]
    coverage = {"name": "coverage", "shape": [2], "datatype": "FP64", "data": [0.5, 0.9]}
    options = {"coverage": "0.5,0.9", "timeout": 5_000_000, "strict": False, "binary_data_output": True}
    asked = [{"name": "mean"}, {"name": "upper", "parameters": {"binary_data": True}}]
    documents: list[dict[str, Any]] = [
        {"id": "7", "inputs": [whole | {"data": x.tolist()}], "outputs": asked, "parameters": {"coverage": 0.9}},
        {"inputs": [whole | {"data": x.ravel().tolist()}, coverage]},
        {"inputs": features, "parameters": options},
        {"inputs": [*features, coverage], "outputs": [{"name": "lower"}]},
    ]
    found = [Input("v2", model, orjson.dumps(document)) for document in documents]
    for datatype, raw in (("FP64", x), ("FP32", x.astype(np.float32))):
        tensor = whole | {"datatype": datatype, "parameters": {"binary_data_size": raw.nbytes}}
        head = orjson.dumps({"inputs": [tensor], "parameters": options})
        found.append(Input("v2 binary", model, head + raw.tobytes(), json_bytes=b"%d" % len(head)))
    tensors, pieces = [], []
    for name, value in row.items():
        text = isinstance(value, str)
        piece = len(value).to_bytes(4, "little") + value.encode() if text else np.array([float(value)]).tobytes()
        pieces.append(piece)
        kind = {"datatype": "BYTES" if text else "FP64", "parameters": {"binary_data_size": len(piece)}}
        tensors.append({"name": name, "shape": [1, 1]} | kind)
    head = orjson.dumps({"inputs": tensors})
    found.append(Input("v2 binary", model, head + b"".join(pieces), json_bytes=b"%d" % len(head)))
    return [*found, Input("v2 raw", model, x.tobytes(), json_bytes=b"0")]


def _arrow_inputs(plain: dict[str, Any], mixed: dict[str, Any]) -> list[Input]:
    """None where pyarrow is not installed."""
    try:
        import pyarrow as pa
    except ImportError:
        return []
    found = []
    for model, row in (("plain", plain), ("mixed", mixed)):
        for columns in (
            {name: [value, value] for name, value in row.items()},
            {name: pa.array([value, None]) for name, value in row.items()},
            {name: pa.array([value]).dictionary_encode() for name, value in row.items() if isinstance(value, str)}
            | {name: pa.array([value]) for name, value in row.items() if not isinstance(value, str)},
        ):
            batch = pa.record_batch(columns)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            found.append(Input("arrow", model, sink.getvalue().to_pybytes(), _ARROW))
    return found


_TOKENS: tuple[bytes, ...] = (
    b"null", b"true", b"false", b"NaN", b"-Infinity", b"Infinity", b"inf", b"nan", b"-nan", b"0", b"-0.0", b"-1", b"1e999",
    b"-1e999", b"1e-400", b"5e-324", b"1.7976931348623157e308", b"1e16", b"0.1", b"0.9999999999999999", b"0.99", b"1.0",
    b"9007199254740993", b"18446744073709551615", b"18446744073709551616", b"-9223372036854775809", b"2147483648",
    b"1" * 400, b"0." + b"3" * 400, b"1_0", b"0x10", b"+1", b"01", b"1,2", b"1;2", b"\xd9\xa3", b"--1", b'""', b'"1"',
    b'" "', b'"red"', b'"gren"', b'"\\ud800"', b'"\\u0000"', b'"' + b"x" * 300 + b'"', b'"2022-13-45"', b'"0001-01-01"',
    b'"9999-12-31T23:59:59.999999+14:00"', b'"20220415"', b'"99999999999999999999"', b'"a,b"', b'"\n"', b"[]", b"{}",
    b"[[]]", b"[null]", b"[0.5,0.5]", b'{"a":1}', b"[" * 600, b"[" * 1100, b'{"a":' * 1100, b"[" * 100 + b"]" * 100,
    b"4294967295", b"a", b"b", b"colour", b"open", b"when", b"x", b"coverage", b"quantiles", b"thresholds", b"samples",
    b"seed", b"strict", b"instances", b"inputs", b"outputs", b"name", b"shape", b"datatype", b"data", b"parameters",
    b"binary_data_size", b"timeout", b"FP16", b"FP32", b"FP64", b"INT8", b"UINT64", b"BOOL", b"BYTES", b"mean", b"upper",
    b"location", b",", b":", b'"', b"\n", b"\r", b"\r\n", b"\t", b"\x00", b"\xef\xbb\xbf", b"\xff", b"\xc0\x80",
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x00\x00\x00\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00\x00\x00\xf8\x7f",
    b"\x01\x00\x00\x00\x00\x00\xf0\x7f", *(b"[" * depth + b"]" * depth for depth in (300, 1000, 1020, 1100)),
    *(b'{"a":' * depth + b"0" + b"}" * depth for depth in (300, 1000, 1020, 1100)),
)  # fmt: skip
_PIECE = re.compile(rb'"[^"]*"|-?\d[\d.eE+-]*|\w+|[\[\]{},:]')


def mutated(rng: random.Random, inputs: Sequence[Input]) -> Input:
    """One of `inputs` with a few things wrong, at times with none."""
    given = rng.choice(inputs)
    others = [one.body for one in inputs if one.form == given.form]
    body, query, json_bytes = given.body, given.query, given.json_bytes
    if json_bytes not in (None, b"0") and rng.random() < 0.7:
        size = int(json_bytes)
        head, raw = _spoiled(rng, body[:size], others), body[size:]
        if rng.random() < 0.5:
            raw = _spoiled(rng, raw, others)
        body, json_bytes = head + raw, b"%d" % len(head)
    else:
        body = _spoiled(rng, body, others)
    if given.media_type != b"application/json" and rng.random() < 0.3:
        query = _spoiled(rng, query, [one.query for one in inputs if one.query])
        query = query if rng.random() < 0.5 else quote(query, safe="=&,%").encode()
    if json_bytes is not None and rng.random() < 0.1:
        json_bytes = rng.choice(
            [b"", b"0", b"-1", b"1e2", b"9" * 18, b"9" * 30, b"%d" % rng.randrange(len(body) + 2), b" 5 ", b"\xb2"]
        )
    if rng.random() < 0.02:
        given = replace(given, media_type=rng.choice([one.media_type for one in inputs]))
    model = given.model if rng.random() < 0.95 else rng.choice(["plain", "mixed"])
    return replace(given, model=model, body=body[:_MOST_BYTES], query=query[:1000], json_bytes=json_bytes)


def _spoiled(rng: random.Random, text: bytes, others: Sequence[bytes]) -> bytes:
    times = rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 5))
    if rng.random() < 0.5:
        try:
            return b"\n".join([orjson.dumps(_changed(rng, orjson.loads(line), times)) for line in text.split(b"\n")])
        except (orjson.JSONDecodeError, TypeError):
            pass
    for _ in range(times):
        text = rng.choice(_MUTATIONS)(rng, text, others)[:_MOST_BYTES]
    return text


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 10**18, 2**63, 2**64 - 1, -(2**63), 0.5, 0.9, 0.95, 0.99, 0.999, -0.0, 1.5, 5e-324,
    1e16, 1e308, -1e308, "", " ", "1", "red", "gren", "true", "NaN", "0.5,0.9", "0.5,,1", "x", "a", "coverage", "mean",
    "upper", "FP16", "FP32", "UINT8", "INT64", "BOOL", "BYTES", "2022-04-15", "2022-13-45", "0001-01-01",
    "9999-12-31T23:59:59.999999+14:00", "1e5", "\x00", "\u2028", "x" * 300, [], {}, [[]], [None], [0.5, 0.9], [1, 2],
    [[1, 2], [3, 4]], [{}], {"a": 1}, {"name": "mean"}, {"data": []}, [1] * 600,
    {"name": "coverage", "shape": [1], "datatype": "FP32", "data": [0.9]}, {"binary_data": True}, {"binary_data_size": 8},
    {"classification": 2}, {"coverage": 0.5},
)  # fmt: skip


def _changed(rng: random.Random, document: Any, times: int) -> Any:
    """JSON with some of its values changed, left out or there twice."""
    for _ in range(times):
        holders = _holders(document)
        if not holders:
            return deepcopy(rng.choice(_VALUES))
        holder = rng.choice(holders)
        place = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        match rng.randrange(6):
            case 0:
                del holder[place]
            case 1 if isinstance(holder, list):
                holder.insert(place, holder[place])
            case 1:
                holder[rng.choice(_KEYS)] = holder.pop(place)
            case 2:
                other = rng.choice(holders)
                holder[place] = deepcopy(rng.choice(list(other.values()) if isinstance(other, dict) else other))
            case _:
                holder[place] = deepcopy(rng.choice(_VALUES))
    return document


_KEYS = (
    "a", "b", "colour", "open", "when", "instances", "inputs", "outputs", "coverage", "quantiles", "thresholds", "samples",
    "seed", "strict", "name", "shape", "datatype", "data", "parameters", "binary_data_size", "binary_data_output",
    "timeout", "id", "columns",
)  # fmt: skip


def _holders(document: Any) -> list[Any]:
    """The objects and arrays of a document that hold something."""
    found, waiting = [], [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list) and value:
            found.append(value)
            waiting += value.values() if isinstance(value, dict) else value
    return found


def _places(rng: random.Random, text: bytes) -> tuple[int, int]:
    """The ends of a slice, most often a short one."""
    start = rng.randrange(len(text) + 1)
    length = rng.randrange(9) if rng.random() < 0.7 else rng.randrange(len(text) + 1)
    return start, min(len(text), start + length)


def _flip(rng: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(text)
    for _bit in range(rng.choice((1, 1, 2, 8)) if text else 0):
        changed[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _places(rng, text)
    return text[:start] + rng.randbytes(end - start) + text[end:]


def _cut(rng: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    return text[: rng.randrange(len(text) + 1)]


def _leave_out(rng: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _places(rng, text)
    return text[:start] + text[end:]


def _repeat(rng: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _places(rng, text)
    return text[:end] + text[start:end] * rng.choice((1, 2, 50)) + text[end:]


def _insert(rng: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(text) + 1)
    return text[:start] + rng.choice(_TOKENS) + text[start:]


def _replace_piece(rng: random.Random, text: bytes, others: Sequence[bytes]) -> bytes:
    """A number, a text or a name by another: what is spoiled so is often still JSON."""
    pieces = list(_PIECE.finditer(text))
    if not pieces:
        return text
    piece = rng.choice(pieces)
    found = _PIECE.findall(rng.choice(others)) if rng.random() < 0.3 else []
    token: bytes = rng.choice(found or _TOKENS)
    return text[: piece.start()] + token + text[piece.end() :]


def _leave_out_piece(rng: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    pieces = list(_PIECE.finditer(text))
    if not pieces:
        return text
    first = rng.randrange(len(pieces))
    last = min(len(pieces) - 1, first + rng.randrange(5))
    return text[: pieces[first].start()] + text[pieces[last].end() :]


def _splice(rng: random.Random, text: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return text[: rng.randrange(len(text) + 1)] + other[rng.randrange(len(other) + 1) :]


_MUTATIONS: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip, _overwrite, _cut, _leave_out, _repeat, _insert, _replace_piece, _replace_piece, _replace_piece, _leave_out_piece,
    _splice,
)  # fmt: skip
