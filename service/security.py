"""Keys: who may ask for predictions, and who may load and unload models. The file of keys holds hashes, never a key.

A key is 256 random bits, so one round of SHA-256 hides it; slow hashes are for what people think up.
"""

import contextlib
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from models.artifact import write_atomically
from service.answers import KEY_NAME, Content, error_content, header, send_content
from service.errors import ForbiddenError, ServiceError, UnauthorizedError
from service.files import Signature, signature
from service.metrics import ServiceMetrics

logger = logging.getLogger("service")

KeyScope = Literal["predict", "admin"]
"""`admin` may do all that `predict` may, and load and unload models."""

OPEN_PATHS = frozenset(["/v2/health/live", "/v2/health/ready", "/ping"])
"""What probes ask, without a key."""
ADMIN_PATHS = ("/v2/repository/models/",)
"""Paths with these prefixes change what is served and need the admin scope."""

_PREFIX = "eb_"
_CHECK_SECONDS = 1.0


class KeysError(ValueError):
    """A file of keys that cannot be used, with the reason."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Key(_Part):
    """One key of the file."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[KeyScope], Field(min_length=1)]


class _File(_Part):
    keys: list[Key]


class Keys:
    """The keys of a file. It is read again when it has changed; a changed file that is bad leaves the keys that were."""

    def __init__(self, path: Path):
        """Raises KeysError."""
        self._path = path
        self._signature = _signature(path)  # before the file is read: what changes meanwhile is read again
        self._keys = read_keys(path)
        self._problem = ""
        self._next_check = time.monotonic() + _CHECK_SECONDS

    def check(self, presented: bytes | None, scope: KeyScope) -> str:
        """The name of the key that is `presented` and has `scope`. Raises UnauthorizedError, ForbiddenError."""
        self._refresh()
        if presented is None:
            raise UnauthorizedError("this service needs a key; send the header 'Authorization: Bearer <key>'")
        digest = hashlib.sha256(presented).hexdigest()
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]  # all of them, whichever it is
        if not found:
            raise UnauthorizedError("this key is not known to the service")
        allowed = next((key for key in found if scope in key.scopes or "admin" in key.scopes), None)
        if allowed is None:
            raise ForbiddenError(f"key {found[0].name!r} lacks the scope {scope!r}")
        return allowed.name

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_SECONDS
        signature = _signature(self._path)
        if signature is not None and signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = read_keys(self._path)
        except KeysError as error:
            if isinstance(error.__cause__, OSError):  # a permission given later shows in none of what the signature holds
                self._signature = None
            if str(error) != self._problem:
                logger.error("the keys stay as they were: %s", error)  # noqa: TRY400 - the reason says it all
            self._problem = str(error)
        else:
            self._problem = ""
            logger.info("%d keys read from %s", len(self._keys), self._path)


class Guard:
    """Lets a request pass with the key that its path needs."""

    def __init__(self, keys: Keys | None, *, metrics: ServiceMetrics, probe: str | None = None):
        """probe: one more path that is open."""
        self._open = OPEN_PATHS | ({probe} if probe is not None else set())
        self._keys = keys
        self._metrics = metrics

    def refusal(self, scope: Scope) -> Content | None:
        """What refuses the request; None where it may pass."""
        try:
            self._check(scope)
        except ServiceError as error:
            self._metrics.rejected[error.reason] += 1
            return error_content(error)
        return None

    def _check(self, scope: Scope) -> None:
        admin = scope["path"].startswith(ADMIN_PATHS)
        if self._keys is None:
            if admin:
                raise ForbiddenError("loading and unloading models needs a key of scope 'admin', and this service has no keys "
                                     "(setting keys)")  # fmt: skip
        elif scope["path"] not in self._open:
            scope[KEY_NAME] = self._keys.check(_presented(scope), "admin" if admin else "predict")


class Guarded:
    """ASGI middleware that lets pass what a guard does not refuse."""

    def __init__(self, app: ASGIApp, *, guard: Guard):
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        refusal = self._guard.refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await send_content(refusal, send)


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. Raises KeysError."""
    try:
        return _File.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise KeysError(f"the file of keys {path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise KeysError(
            f"the file of keys {path} is not valid ({place}: {first['msg']}); `python -m service new-key` writes it"
        ) from error


def add_key(path: Path, *, name: str, scopes: frozenset[KeyScope]) -> str:
    """A new key, whose hash is added to a file that need not be there yet; it is returned here and stored nowhere.

    Raises KeysError where the file is bad or holds a key of that name.
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    try:
        added = Key(name=name, sha256=hashlib.sha256(key.encode()).hexdigest(), scopes=scopes)
    except ValidationError as error:
        raise KeysError(f"a key's name has 1 to 100 characters, not {len(name)}") from error
    file = path.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file.parent):  # of two keys made at once, one would be printed and forgotten
        keys = read_keys(path) if path.exists() else []
        if any(one.name == name for one in keys):
            raise KeysError(f"{path} has a key named {name!r}; take another name, or remove that one from the file first")
        write_atomically(_File(keys=[*keys, added]).model_dump_json(indent=2).encode() + b"\n", file)
    return key


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _presented(scope: Scope) -> bytes | None:
    kind, _, key = (header(scope, b"authorization") or b"").partition(b" ")
    return key.strip() if kind.lower() == b"bearer" else (header(scope, b"x-api-key") or b"").strip() or None


def _signature(path: Path) -> Signature | None:
    try:
        return signature(path.stat())
    except OSError:
        return None
