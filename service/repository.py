"""The model repository: watches its folder (service/scan.py), loads and swaps models.

A version is read, verified (SHA-256, golden rows), loaded and warmed up before anybody sees it; requests in flight keep
the model they have. A file that cannot be served leaves what there is in place, and its reason is told.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import awatch

from models.artifact import MODEL_FILE, MODEL_NAME, MODEL_VERSION, ArtifactError
from service.errors import NotFoundError, UnavailableError
from service.files import Signature
from service.inference.session import DeviceError
from service.model import ServedModel
from service.scan import UNLOADED_FILE, Found, RepositoryFolder, identity

logger = logging.getLogger("service")

Load = Callable[[Path, str, int], ServedModel]
"""`load(path, name, version)`; raises ArtifactError or DeviceError with the reason."""

_MISSING_FOLDER_SECONDS = 1.0


@dataclass
class Entry:
    """A model by name: what of it is served, and what is not and why."""

    served: dict[int, ServedModel] = field(default_factory=dict)
    signatures: dict[int, Signature] = field(default_factory=dict)
    """Of every file that was tried."""
    failures: dict[int, str] = field(default_factory=dict)
    """Why the newest file of a version is not served; an older file of that version may still be."""
    unloaded: frozenset[int] = frozenset()
    """Present, but older than those kept loaded."""
    labels: dict[str, int] = field(default_factory=dict)
    labels_problem: str | None = None
    lost_labels: frozenset[str] = frozenset()
    """That name versions which are not there."""
    touched: int = 0
    """As it was when what failed was tried last."""
    awaited: bool = True
    """Whether the service is not ready without it: not where it came to a service that was ready, and has never served."""
    unloaded_by_hand: bool = False
    """Somebody asked for it, through `Repository.unload`; it keeps nobody from being ready."""

    @property
    def default(self) -> ServedModel | None:
        """The highest version that can be served."""
        return self.served[max(self.served)] if self.served else None

    @property
    def versions(self) -> list[int]:
        """All versions that are known, ascending."""
        return sorted(self.served.keys() | self.failures.keys() | self.unloaded)


class Repository:
    """The models that are served, kept in step with a folder."""

    def __init__(
        self,
        path: Path,
        load: Load,
        *,
        loaded_versions: int,
        rescan_seconds: float,
        reloads: Counter[str] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ):
        """reloads: counts the files that were taken in (`ok`) or `refused`. stopping: whether to load no more."""
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._load = load
        self._loaded_versions = loaded_versions
        self._rescan_seconds = rescan_seconds
        self._reloads = Counter[str]() if reloads is None else reloads
        self._stopping = stopping
        self._scanning = asyncio.Lock()
        self._folder = RepositoryFolder(path)
        self._waiting_for: str | None = None
        self._was_ready = False
        self._served_once: set[str] = set()
        self._watch_problem: str | None = None
        self._outage: str | None = None

    def waiting_for(self) -> str | None:
        """What keeps the service from being ready, or None where nothing does (docs/decisions/016)."""
        if not self.entries:
            what = "has no model yet" if self.path.is_dir() else "does not exist yet"
            if self._outage is not None:
                what = f"cannot be read ({self._outage})"
            return f"the model repository {self.path} {what}; waiting for <name>/<version>/{MODEL_FILE}"
        missing = [(name, entry) for name, entry in sorted(self.entries.items()) if entry.default is None]
        nothing_serves = len(missing) == len(self.entries)
        awaited = [(name, entry) for name, entry in missing if entry.awaited or nothing_serves]
        reasons = [_not_ready(name, entry) for name, entry in awaited if not entry.unloaded_by_hand]
        return "; ".join(reasons) or None

    def model(self, name: str, *, version: str | None = None, label: str | None = None) -> ServedModel:
        """The model to answer with. Raises NotFoundError or UnavailableError."""
        entry = self.entry(name)
        if version is None and label is None:
            default = entry.default
            if default is None:
                raise UnavailableError(_not_ready(name, entry))
            return default
        if label is not None:
            if label not in entry.labels:
                raise NotFoundError(f"model {name!r} has no label {label!r}; it has {_listed(sorted(entry.labels), 'none')}")
            number = entry.labels[label]
        elif version is not None and MODEL_VERSION.fullmatch(version):
            number = int(version)
        else:
            raise NotFoundError(f"{version!r} is no version; versions are whole numbers from 1")
        return self._version(name, entry, number, named_by="" if label is None else f", which label {label!r} names")

    def entry(self, name: str) -> Entry:
        """What is known of a model. Raises NotFoundError."""
        try:
            return self.entries[name]
        except KeyError:
            raise NotFoundError(
                f"there is no model {name!r}; there is {_listed(sorted(self.entries), 'no model yet')}"
            ) from None

    def _version(self, name: str, entry: Entry, number: int, *, named_by: str) -> ServedModel:
        if number in entry.served:
            return entry.served[number]
        if number in entry.failures:
            raise UnavailableError(f"version {number} of model {name!r} cannot be served: {entry.failures[number]}")
        if entry.unloaded_by_hand:
            raise UnavailableError(_not_ready(name, entry))
        if number in entry.unloaded:
            raise NotFoundError(
                f"version {number} of model {name!r} is not loaded: only the newest {self._loaded_versions} versions are "
                "(setting loaded_versions), and those that a label names"
            )
        versions = [str(version) for version in sorted(entry.served)]
        raise NotFoundError(
            f"model {name!r} has no version {number}{named_by}; it has {_listed(versions, 'none that is ready')}"
        )

    async def unload(self, name: str) -> None:
        """Take a model out of service until `load`. Raises NotFoundError; UnavailableError where the folder is read-only."""
        self.entry(name)
        try:
            (self.path / name / UNLOADED_FILE).touch()
        except OSError as error:
            raise UnavailableError(f"the repository cannot be written, so {name!r} stays loaded ({error.strerror})") from error
        await self._rescanned(name)

    async def load(self, name: str) -> None:
        """Take a model into service, and try again what failed, in every process that serves the folder.

        Raises NotFoundError; UnavailableError where none can serve.
        """
        if not MODEL_NAME.fullmatch(name):
            raise NotFoundError(f"{name[:100]!r} is no name of a model")
        mark = self.path / name / UNLOADED_FILE
        try:
            if os.path.lexists(mark):  # a read-only folder refuses to remove even what is not there
                mark.unlink(missing_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"the repository cannot be written, so {name!r} stays as it is ({error.strerror})"
            ) from error
        with contextlib.suppress(OSError):  # a read-only folder tells no other process
            os.utime(self.path / name)
        self.entries.get(name, Entry()).touched = -1  # as no folder was
        await self._rescanned(name)
        if self.entry(name).default is None:
            raise UnavailableError(_not_ready(name, self.entries[name]))

    async def _rescanned(self, name: str) -> None:
        await self.rescan()
        if self._outage is not None:
            raise UnavailableError(f"the repository cannot be read, so {name!r} stays as it is for now ({self._outage})")

    async def rescan(self) -> None:
        """Bring the served models in step with the folder; one scan at a time."""
        async with self._scanning:
            try:
                found = await asyncio.to_thread(self._folder.read, had_models=bool(self.entries))
            except OSError as error:  # an outage of the file system takes no model away
                self._tell_outage(str(error))
                return
            self._tell_outage(None)
            for name in self.entries.keys() - found.keys() - self._folder.unreadable:
                del self.entries[name]
                logger.info("model %s was removed", name)
            for name, folder in found.items():
                if not self._stopping():
                    await self._update(name, folder)
            self._tell_what_is_waited_for()

    async def watch(self) -> None:
        """Rescan whenever the folder changes, and now and then in case the file system does not tell; runs until cancelled."""
        while True:
            try:
                await self._watch_folder()
            except Exception as error:
                if str(error) != self._watch_problem:  # such as no inotify instance left
                    self._watch_problem = str(error)
                    sentence = "%s cannot be watched (%s): changes are noticed by reading it every %g s"
                    logger.warning(sentence, self.path, error, self._rescan_seconds, exc_info=True)
                await asyncio.sleep(self._rescan_seconds)

    async def _watch_folder(self) -> None:
        """Watch the folder that stands there now, until another does."""
        watched = identity(self.path)
        if watched is None:
            await asyncio.sleep(_MISSING_FOLDER_SECONDS)
            await self.rescan()
            return
        await self.rescan()  # something may have come between the last scan and this watch
        milliseconds = max(1, int(self._rescan_seconds * 1e3))
        changes = awatch(
            self.path,
            watch_filter=None,
            debounce=400,
            step=50,
            rust_timeout=milliseconds,
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        async with contextlib.aclosing(changes):
            async for _ in changes:
                await self.rescan()
                if identity(self.path) != watched:
                    return

    async def _update(self, name: str, found: Found) -> None:
        """Bring one model in step with its folder."""
        entry = self.entries.get(name) or Entry(awaited=not self._was_ready or name in self._served_once)
        if found.touched != entry.touched:
            entry.touched = found.touched
            for version in entry.failures:
                entry.signatures.pop(version, None)
        if found.labels_problem not in (None, entry.labels_problem):
            logger.error("labels of %s stay as they were: %s", name, found.labels_problem)
        entry.labels_problem = found.labels_problem
        labels = entry.labels if found.labels_problem else found.labels
        kept, refused = await self._load_versions(name, found, entry, labels)
        if self._stopping():
            return
        # Only now: there is no moment in which a request finds neither the old nor the new.
        entry.labels = labels
        _tell_lost_labels(name, entry, found)
        entry.unloaded = frozenset(found.versions.keys() - kept)
        entry.unloaded_by_hand = found.unloaded
        if entry.default is not None:
            self._served_once.add(name)
            entry.awaited = True
        self.entries[name] = entry
        serving = f"version {entry.default.version} serves" if entry.default else "nothing serves this model"
        for version in refused:
            logger.error("model %s version %d is refused: %s (%s)", name, version, entry.failures[version], serving)
        for version in (entry.signatures.keys() | entry.failures.keys()) - kept:  # `load` forgets signatures of what failed
            entry.signatures.pop(version, None)
            entry.failures.pop(version, None)
            if entry.served.pop(version, None):
                logger.info("model %s version %d is no longer served", name, version)

    async def _load_versions(self, name: str, found: Found, entry: Entry, labels: dict[str, int]) -> tuple[set[int], list[int]]:
        """Take in the newest versions and those with a label: all that are kept, and those whose files are refused now."""
        kept, refused = set[int](), []
        good = 0  # a refused version takes no good one's place
        for version in sorted(found.versions, reverse=True):
            if found.unloaded or self._stopping():
                break
            if good >= self._loaded_versions and version not in labels.values():
                continue
            if entry.signatures.get(version) != found.versions[version]:
                entry.signatures[version] = found.versions[version]
                told = entry.failures.get(version)
                await self._take_in(name, version, entry)
                if entry.failures.get(version) not in (None, told):
                    refused.append(version)
            kept.add(version)
            good += version in entry.served
        return kept, refused

    async def _take_in(self, name: str, version: int, entry: Entry) -> None:
        path = self.path / name / str(version) / MODEL_FILE
        try:
            model = await asyncio.to_thread(self._load, path, name, version)
        except (ArtifactError, DeviceError) as error:
            entry.failures[version] = str(error)
            if isinstance(error.__cause__, OSError):  # nothing is known of the file, so the next scan tries again
                entry.signatures.pop(version, None)
        except Exception as error:
            entry.failures[version] = f"{path}: cannot be loaded ({type(error).__name__}: {error})"
            logger.exception("model %s version %d: an unforeseen problem", name, version)
        else:
            entry.failures.pop(version, None)
            entry.served[version] = model
            self._reloads["ok"] += 1
            logger.info("model %s version %d is ready on %s (sha256 %s)", name, version, model.device.name, model.sha256[:12])
            return
        self._reloads["refused"] += 1

    def _tell_outage(self, reason: str | None) -> None:
        """Say once what keeps the repository from being read, and when it is over."""
        if reason is not None and reason != self._outage:
            logger.error("the model repository cannot be read (%s); what is loaded goes on serving", reason)
        elif reason is None and self._outage is not None:
            logger.info("the model repository can be read again")
        self._outage = reason

    def _tell_what_is_waited_for(self) -> None:
        waiting_for = self.waiting_for()
        self._was_ready = self._was_ready or waiting_for is None
        if waiting_for is not None and waiting_for != self._waiting_for:
            logger.warning("not ready: %s", waiting_for)
        self._waiting_for = waiting_for


def _tell_lost_labels(name: str, entry: Entry, found: Found) -> None:
    """Say once which labels name versions that are not there."""
    lost = frozenset(label for label, version in entry.labels.items() if version not in found.versions)
    for label in sorted(lost - entry.lost_labels):
        logger.warning("label %s of model %s names version %d, which is not there", label, name, entry.labels[label])
    entry.lost_labels = lost


def _not_ready(name: str, entry: Entry) -> str:
    if entry.unloaded_by_hand:
        return f"model {name!r} was unloaded; POST /v2/repository/models/{name}/load takes it in again"
    version = max(entry.failures)
    return f"model {name!r} has no version that can be served; version {version}: {entry.failures[version]}"


def _listed(names: list[str], none: str) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else none
