"""Request bodies: received and decompressed within limits, of one request and of all together."""

import asyncio
import zlib

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.answers import content_length
from service.errors import InvalidRequestError, OverloadedError, TooLargeError

SMALL_BYTES = 64 * 1024
"""This much of each body is not counted: large bodies do not keep small ones out."""
LARGEST_BODIES = 16
"""There is room for so many bodies of the largest size that is allowed."""

_GZIP = ("gzip", "x-gzip")
_EITHER = 32 + zlib.MAX_WBITS
"""zlib finds out whether the data is gzip or zlib."""
_JOINED_ASIDE = 2**20
"""From so many bytes on, bytes.join lets other threads run."""


class BodyRoom:
    """The memory for bodies that are arriving, or wait to be read."""

    def __init__(self, largest: int):
        """largest: bytes of the largest body that is allowed."""
        self.bytes = LARGEST_BODIES * largest
        self.taken = 0


class HeldBody:
    """What one body takes of the room."""

    __slots__ = ("_counted", "_room", "_size")

    def __init__(self, room: BodyRoom):
        self._room = room
        self._size = self._counted = 0

    def grow(self, size: int) -> None:
        """Count `size` bytes more. Raises OverloadedError where there is no room for them."""
        self._size += size
        more = self._size - SMALL_BYTES - self._counted
        if more <= 0:
            return
        room = self._room
        if room.taken + more > room.bytes:
            raise OverloadedError(
                f"overloaded: {room.taken} bytes of large bodies are here or arriving, at most {room.bytes} may "
                f"({LARGEST_BODIES} times the setting max_body_bytes); try again later"
            )
        room.taken += more
        self._counted += more

    def free(self) -> None:
        """The body is read, or not wanted any more."""
        self._room.taken -= self._counted
        self._size = self._counted = 0


async def receive_body(scope: Scope, receive: Receive, *, limit: int, held: HeldBody | None = None) -> bytes:
    """The request's body as it was sent.

    Raises TooLargeError for more than `limit` bytes and what `held.grow` raises, without reading on; ClientDisconnect.
    """
    if content_length(scope) > limit:
        raise _too_large(limit)  # before it is sent
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        if held is not None:
            held.grow(len(piece))
        more = message.get("more_body", False)
    if len(pieces) == 1:
        return pieces[0]
    return b"".join(pieces) if size < _JOINED_ASIDE else await asyncio.to_thread(b"".join, pieces)


def encoding_of(scope: Scope) -> str | None:
    """The body's Content-Encoding; None where it has none."""
    given = b", ".join(value for name, value in scope["headers"] if name == b"content-encoding")
    encoding = given.decode("latin-1").strip().lower()
    return None if encoding in ("", "identity") else encoding


def beginning(body: bytes, *, size: int) -> bytes:
    """The first `size` bytes of what a compressed body holds; empty where it is not compressed as it should be."""
    try:
        return zlib.decompressobj(wbits=_EITHER).decompress(body, size)
    except zlib.error:
        return b""


def decompressed(scope: Scope, body: bytes, *, limit: int) -> bytes:
    """What a body of this request holds. Raises InvalidRequestError; TooLargeError where that is more than `limit` bytes."""
    encoding = encoding_of(scope)
    if encoding is None:
        return body
    if encoding not in (*_GZIP, "deflate"):
        raise InvalidRequestError(f"Content-Encoding {encoding[:40]!r} is not read here; send gzip, deflate or no encoding")
    reader = zlib.decompressobj(wbits=_EITHER)
    try:
        plain = reader.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequestError(f"the body is not {encoding}: {error}") from error
    if len(plain) > limit:
        raise _too_large(limit)
    if not reader.eof:
        raise InvalidRequestError(f"the body is not {encoding}: it is cut short")
    if reader.unused_data:
        raise InvalidRequestError(f"the body holds {len(reader.unused_data)} bytes after its {encoding} data; send one stream")
    return plain


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than {limit} bytes (setting max_body_bytes): send the rows in parts")
