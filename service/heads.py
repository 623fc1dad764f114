"""Heads of requests that came before, byte for byte: what the HTTP parser made of them is used again.

From one request to the next a client changes the body, and of the head only the body's length. Parsing a head takes an eighth
of a small request's time, recognising it next to nothing.
"""

from dataclasses import dataclass

from starlette.types import Scope

from service.routes.hot import Route

_END = b"\r\n\r\n"
_MOST_HEADS = 1000
_MOST_BYTES, _MOST_LINES = 2048, 50
"""Of a head that is remembered; times their number they bound the memory, to ten megabytes."""


@dataclass(frozen=True)
class Head:
    """A head as it was parsed."""

    route: Route
    scope: Scope
    """ASGI's, of the first request with this head; later ones may come from another client."""
    body_bytes: int


class KnownHeads:
    """The heads of plain requests for predictions; all are forgotten when they become too many."""

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and the body of `data`, where it is one request with a known head and nothing else."""
        end = data.find(_END) + len(_END)
        head = self._heads.get(data[:end])
        return (head, data[end:]) if head is not None and head.body_bytes == len(data) - end else None

    def add(self, data: bytes, head: Head) -> None:
        """Remember what the parser made of `data`, which begins with a request's first byte."""
        text = data[: len(data) - head.body_bytes]
        # With other line ends, or some before it, the head may end elsewhere than `find` sees
        usual = text.startswith(b"POST ") and b"\n" not in text.replace(b"\r\n", b"")
        if usual and len(text) <= _MOST_BYTES and text.count(b"\n") <= _MOST_LINES:
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            self._heads[text] = head
