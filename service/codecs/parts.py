"""Many rows, and long JSON arrays, in parts.

orjson reads a text in one go, and no other thread runs meanwhile: for 100 000 rows of 13 numbers all other requests wait 0.2 s.
Between parts they get their turn, and only one part at a time stands in memory as objects.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import orjson

PART_BYTES = 128 * 1024
"""A part has this many bytes or a few more: orjson takes less than a millisecond for it."""
ROWS_AT_ONCE = 1000
NUMBERS_AT_ONCE = 10_000
"""This many are read or written without letting another thread run, which takes about a millisecond."""

Row = TypeVar("Row")
_MARK = secrets.token_hex()  # a text that no client knows
_SPACE = rb"[ \t\n\r]*"  # JSON's own: between elements nothing else is left out
_BEGIN = rb'"(?:%b)"' + _SPACE + b":" + _SPACE + rb"\[" + _SPACE
_BETWEEN_ROWS = re.compile(rb"(?<=[\]}])" + _SPACE + b"," + _SPACE + rb"(?=[\[{])")
_BETWEEN_SCALARS = re.compile(b",")


def by_rows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in lists of ROWS_AT_ONCE; they are taken from `rows` as the lists are."""
    waiting = iter(rows)
    return iter(lambda: list(islice(waiting, ROWS_AT_ONCE)), [])


def in_parts(text: bytes, keys: Sequence[str], places: Callable[[Any], Iterable[tuple[Any, str]]]) -> Any:
    """A JSON document with an iterator over its parts in the place of each long array that stands under one of the keys.

    places(document): (object, key) pairs where a long array may stand. Read every iterator to its end: only then is the JSON
    proven valid. None where the text is short or to be read whole: it has no such array, has one in another
    place, or is no JSON. It is to be read whole, too, where an iterator raises orjson.JSONDecodeError: the array is no JSON,
    or a text within it looks like a place between two elements.
    """
    if len(text) <= 2 * PART_BYTES:
        return None
    begin = re.compile(_BEGIN % "|".join(map(re.escape, keys)).encode())
    pieces: list[bytes] = []
    arrays: dict[str, list[tuple[int, int]]] = {}
    copied = start = 0
    while len(text) - start > PART_BYTES and (array := begin.search(text, start)):
        rows = text[array.end() : array.end() + 1] in (b"[", b"{")
        end = len(text) if rows else text.find(b"]", array.end())
        cuts, start = _cuts(text, array.end(), end, _BETWEEN_ROWS if rows else _BETWEEN_SCALARS)
        if cuts:
            mark = f"{_MARK} {len(arrays)}"
            arrays[mark] = cuts
            pieces += [text[copied : array.end()], b'"%b",' % mark.encode()]
            copied = start
        elif rows or end < 0:  # what was not found from here on need not be looked for again, which would take very long
            break
        else:
            start = end
    if not arrays:
        return None
    try:
        document = orjson.loads(b"".join([*pieces, text[copied:]]))
    except orjson.JSONDecodeError:
        return None
    for holder, key in places(document):
        found = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(found, list) and found and isinstance(found[0], str) and found[0] in arrays:
            holder[key] = _parts(text, arrays.pop(found[0]), found[1:])
    return None if arrays else document  # one is left where its key stands elsewhere, or twice


def _parts(text: bytes, cuts: list[tuple[int, int]], rest: list[Any]) -> Iterator[list[Any]]:
    """The elements of each part, the last ones being `rest`.

    Raises orjson.JSONDecodeError where a cut was not between two elements: a part lacks a quote or a bracket, or is empty.
    """
    for start, end in cuts:
        part = orjson.loads(b"[%b]" % text[start:end])
        if not part:
            raise orjson.JSONDecodeError("nothing between two commas", "", start)
        yield part
    yield rest


def _cuts(text: bytes, start: int, end: int, between: re.Pattern[bytes]) -> tuple[list[tuple[int, int]], int]:
    """Where the parts of what stands from `start` to `end` begin and end, and where the rest of it begins."""
    cuts = []
    while end - start > PART_BYTES and (cut := between.search(text, start + PART_BYTES, end)):
        cuts.append((start, cut.start()))
        start = cut.end()
    return cuts, start
