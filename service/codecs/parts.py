"""Long JSON arrays of rows, in parts.

orjson reads a text in one go, and no other thread runs meanwhile: for 100 000 rows of 13 numbers all other requests wait 0.2 s.
Between parts they get their turn, and only one part at a time stands in memory as objects.
"""

import re
import secrets
from collections.abc import Iterator
from typing import Any

import orjson

PART_BYTES = 128 * 1024
"""Of a part, or a little more: orjson takes less than a millisecond for it."""
_MARK = secrets.token_hex()  # a text that no client knows
_ARRAY_OF_ROWS = rb'"%b"[ \t\n\r]*:[ \t\n\r]*\[[ \t\n\r]*(?=[\[{])'
_BETWEEN_ROWS = re.compile(
    rb"[\]}][ \t\n\r]*,[ \t\n\r]*(?=[\[{])"
)  # the only bytes that are not parsed: JSON's own white space


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
