"""Names, values and types in the sentences that clients read."""

import difflib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from types import NoneType

from models.manifest import Column

SUGGESTIONS = 3
"""Of names most like unknown ones, in one answer: to find one takes some milliseconds."""
_LISTED_CATEGORIES = 10
_MOST_LIKE = 200
_SHOWN_CHARACTERS = 100
_JSON_TYPES = {
    dict: "an object", list: "an array", str: "a text", bool: "a boolean", int: "a number", float: "a number", NoneType: "null",
}  # fmt: skip


def nearest(name: str, known: Sequence[str], *, cutoff: float = 0.6) -> str:
    """`; did you mean ...?` with the names most like `name`; nothing where none is, or there are too many to look."""
    if len(known) > _MOST_LIKE:
        return ""
    near = difflib.get_close_matches(name[:_SHOWN_CHARACTERS], known, n=3, cutoff=cutoff)
    return f"; did you mean {' or '.join(repr(other) for other in near)}?" if near else ""


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that stood before; None where each stands once. Clients may send very many."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def json_type(value: object) -> str:
    """What a JSON value is, in words."""
    return _JSON_TYPES[type(value)]


def shown(value: object) -> str:
    """A value as JSON has it, cut where it is long."""
    if isinstance(value, list | dict):  # may be nested deeper than repr goes
        return "[...]" if isinstance(value, list) else "{...}"
    if isinstance(value, str):
        value = value[: _SHOWN_CHARACTERS + 1]  # a long one may stand in many rows
    return shortened(str(value).lower() if isinstance(value, bool) else repr(value))


def shortened(text: str) -> str:
    """A text, cut where it is long."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def known_categories(column: Column) -> str:
    """The first categories of a column."""
    categories = column.categories or []
    listed = ", ".join(categories[:_LISTED_CATEGORIES])
    return listed if len(categories) <= _LISTED_CATEGORIES else f"{listed}, ... ({len(categories)} in all)"


def written(value: float | None, column: Column) -> str:
    """A value as people write it: whole numbers without a point, moments as dates."""
    if value is None:
        return "any"
    if column.kind == "datetime":
        try:
            moment = datetime.fromtimestamp(value, UTC)
        except (ValueError, OverflowError, OSError):
            return f"{value:.12g} s"
        return moment.strftime("%Y-%m-%d" if value % 86400 == 0 else "%Y-%m-%dT%H:%M:%SZ")
    return f"{value:.12g}"
