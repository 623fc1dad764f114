"""What the folder of a model repository holds: `<repository>/<name>/<version>/model.onnx`, labels, and what is no model."""

import errno
import json
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from models.artifact import LABELS_FILE, MODEL_FILE, MODEL_NAME, MODEL_VERSION
from service.files import Signature, signature

logger = logging.getLogger("service")

UNLOADED_FILE = "unloaded"
"""Beside a model's versions, it keeps all of them unloaded: in every process that serves the folder, and after a restart."""

Identity = tuple[int, int]
"""Device and inode of a folder."""


@dataclass(frozen=True)
class Found:
    """A model's folder as a scan found it."""

    versions: dict[int, Signature]
    labels: dict[str, int]
    labels_problem: str | None = None
    unloaded: bool = False
    touched: int = 0
    """When a version came or went, or `load` was asked for: ns."""


class RepositoryFolder:
    """The folder, read again and again: what is odd is told once."""

    def __init__(self, path: Path):
        self._path = path
        self.unreadable: set[str] = set()
        """Names of folders that this process may not read: what is served of them stays."""
        self._left_out: set[Path] = set()
        self._identity: Identity | None = None
        """Of the folder that was read last."""

    def read(self, *, had_models: bool) -> dict[str, Found]:
        """What the folder holds, by model. had_models: whether some are known, which a volume that is gone does not take away.

        Raises OSError where it cannot be told.
        """
        before = identity(self._path)
        found = self._found()
        if had_models and before is None:
            raise FileNotFoundError(f"{self._path} is gone")
        if before != identity(self._path):
            raise OSError(f"{self._path} was replaced while it was read")
        if had_models and not found and before != self._identity:  # what stands there when a volume is no longer mounted
            raise FileNotFoundError(f"{self._path} is another folder, without a model")
        self._identity = before
        return found

    def _found(self) -> dict[str, Found]:
        found, unreadable = {}, set()
        for folder in _folders(self._path):
            if MODEL_NAME.fullmatch(folder.name):
                try:
                    versions = self._versions(folder)
                    unloaded = os.path.lexists(folder / UNLOADED_FILE)
                except PermissionError as error:
                    if folder.name not in self.unreadable:
                        logger.error("%s cannot be read, and stays as it was: %s", folder, error)  # noqa: TRY400
                    unreadable.add(folder.name)
                    continue
                if versions:
                    labels, problem = _labels(folder / LABELS_FILE)
                    found[folder.name] = Found(versions, labels, problem, unloaded=unloaded, touched=_touched(folder))
            elif not folder.name.startswith("."):
                self._leave_out(folder, "a model's name is letters, digits, '.', '_' and '-'")
        self.unreadable = unreadable
        return found

    def _versions(self, folder: Path) -> dict[int, Signature]:
        versions = {}
        for entry in _folders(folder):
            if MODEL_VERSION.fullmatch(entry.name):
                try:
                    versions[int(entry.name)] = signature((entry / MODEL_FILE).stat())
                except FileNotFoundError:  # no model file, or gone since the folder was listed
                    continue
                except OSError:  # a loop of links, say: of no concern to other models; loading it will tell the reason
                    versions[int(entry.name)] = (0, 0, 0)
            elif not entry.name.startswith(".") and os.path.lexists(entry / MODEL_FILE):
                self._leave_out(entry, "a version is a whole number from 1, such as 3")
        return versions

    def _leave_out(self, folder: Path, reason: str) -> None:
        if folder not in self._left_out:
            self._left_out.add(folder)
            logger.warning("%r is left out: %s", str(folder), reason)


def identity(folder: Path) -> Identity | None:
    """What tells a folder from another that takes its place; None where there is none."""
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if _is_folder(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_folder(entry: Path) -> bool:
    """Whether an entry is a folder, or a link to one. An odd link must not keep the others from being found."""
    try:
        return entry.is_dir()
    except PermissionError:  # to look into it will tell
        return True
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def _touched(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:  # gone since it was listed
        return 0


def _labels(path: Path) -> tuple[dict[str, int], str | None]:
    """The labels of a model, and what is wrong with the file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return {}, f"{path} is no regular file"
        labels = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{path} cannot be read ({error})"
    expected = 'an object of labels and versions, such as {"stable": 3}'
    if not isinstance(labels, dict):
        return {}, f"{path} is not {expected}"
    for label, version in labels.items():
        if not MODEL_NAME.fullmatch(label) or type(version) is not int or version < 1:
            return {}, f"{path} holds {label!r}: {version!r}; it must be {expected}"
    return labels, None
