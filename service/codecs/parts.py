"""Many rows in parts, and long JSON arrays of them.

orjson reads a text in one go, and no other thread runs meanwhile: for 100 000 rows of 13 numbers all other requests wait 0.2 s.
Between parts they get their turn, and only one part at a time stands in memory as objects.
"""

import re
import secrets
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import orjson

PART_BYTES = 128 * 1024
"""Of a part, or a little more: orjson takes less than a millisecond for it."""
ROWS_AT_ONCE = 1000
"""Read or written without letting another thread run, which takes about a millisecond."""

Row = TypeVar("Row")
_MARK = secrets.token_hex()  # a text that no client knows
_SPACE = rb"[ \t\n\r]*"  # JSON's own: between rows nothing else is left out
_ARRAY_OF_ROWS = rb'"%b"' + _SPACE + b":" + _SPACE + rb"\[" + _SPACE + rb"(?=[\[{])"
_BETWEEN_ROWS = re.compile(rb"[\]}]" + _SPACE + b"," + _SPACE + rb"(?=[\[{])")


def by_rows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in lists of ROWS_AT_ONCE; they are taken from `rows` as the lists are."""
    waiting = iter(rows)
    return iter(lambda: list(islice(waiting, ROWS_AT_ONCE)), [])


def in_parts(text: bytes, key: str) -> tuple[dict[str, Any], Iterator[list[Any]]] | None:
    """A JSON object with rows (objects or arrays) under `key`: the object with an empty array there, and the rows in parts.

    None where the text has not that form. A part may raise orjson.JSONDecodeError, be it only because a text within a row looks
    like a place between two: then the text is to be read whole.
    """
    array = re.search(_ARRAY_OF_ROWS % re.escape(key.encode()), text)
    if array is None:
        return None
    cuts = []
    start = array.end()
    while len(text) - start > PART_BYTES and (between := _BETWEEN_ROWS.search(text, start + PART_BYTES)):
        cuts.append((start, between.start() + 1))
        start = between.end()
    try:
        document = orjson.loads(b'%b"%b",%b' % (text[: array.end()], _MARK.encode(), text[start:]))
    except orjson.JSONDecodeError:
        return None
    rest = document.get(key) if isinstance(document, dict) else None
    if not isinstance(rest, list) or rest[:1] != [_MARK]:  # the key stands elsewhere, or twice
        return None
    return document | {key: []}, _parts(text, cuts, rest[1:])


def _parts(text: bytes, cuts: list[tuple[int, int]], rest: list[Any]) -> Iterator[list[Any]]:
    """The rows of each part, the last ones being `rest`.

    Raises orjson.JSONDecodeError where a cut was not between two rows: the part then lacks a quote or a bracket.
    """
    for start, end in cuts:
        yield orjson.loads(b"[%b]" % text[start:end])
    yield rest
