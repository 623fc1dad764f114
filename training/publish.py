"""Put a model file into a model repository: `<repository>/<name>/<version>/model.onnx`, whole or not at all."""

import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from models.artifact import LABELS_FILE, MODEL_FILE, MODEL_NAME, MODEL_VERSION, ArtifactError, flush_folder, open_model

_UNFINISHED = ".publishing-"
_ABANDONED_SECONDS = 24 * 3600


def publish(model: Path, repository: Path, *, name: str) -> Path:
    """Publish `model` as the next version of `name`; returns the path of the published file.

    The file is copied beside its final place, flushed to disk, verified (loaded in ONNX Runtime, golden rows repeated) and
    renamed. Killed at any moment, this leaves the repository as it was; two publishers at once get two versions. A report
    `<model>.html` next to the model travels with it as `report.html`. Raises ArtifactError for a bad file or name.
    """
    if not MODEL_NAME.fullmatch(name):
        raise ArtifactError(
            f"model name {name!r}: use up to 100 letters, digits, '.', '_' and '-', beginning with a letter or a digit"
        )
    folder = repository / name
    unfinished = _unfinished_folder(folder)
    try:
        _remove_abandoned(folder)
        _copy_to_disk(model, unfinished / MODEL_FILE)
        report = model.with_suffix(".html")
        if model.suffix == ".onnx" and report.exists():
            _copy_to_disk(report, unfinished / "report.html")
        _verify(unfinished / MODEL_FILE, source=model)
        unfinished.chmod(0o755)  # mkdtemp makes it private; a service under another user must read it
        flush_folder(unfinished)
        final = _renamed_to_next_version(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # it holds versions, or another publisher's work
            folder.rmdir()
        raise
    flush_folder(folder)
    return final / MODEL_FILE


def versions(folder: Path) -> list[int]:
    """The published versions in a model's folder, ascending."""
    return sorted(int(entry.name) for entry in folder.iterdir() if MODEL_VERSION.fullmatch(entry.name))


def _labelled(path: Path) -> list[int]:
    """The versions that labels name, also those that were removed: a label must not come to mean another model by itself."""
    try:
        labels = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):  # which the service tells
        return []
    named = labels.values() if isinstance(labels, dict) else ()
    return [version for version in named if type(version) is int and MODEL_VERSION.fullmatch(str(version))]


def _unfinished_folder(folder: Path) -> Path:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # a publisher that failed has removed the folder just now: it held nothing
            return Path(tempfile.mkdtemp(dir=folder, prefix=_UNFINISHED))


def _renamed_to_next_version(unfinished: Path, folder: Path) -> Path:
    version = max([*versions(folder), *_labelled(folder / LABELS_FILE)], default=0) + 1
    while True:
        if not MODEL_VERSION.fullmatch(str(version)):
            raise ArtifactError(
                f"{folder}: holds version {version - 1}, and no service reads a higher one; remove that folder, or the label "
                "that names it"
            )
        try:
            return unfinished.rename(folder / str(version))
        except OSError:
            if not (folder / str(version)).exists():
                raise
            version += 1  # another publisher was first: renaming onto a folder that holds something fails


def _copy_to_disk(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as read, target.open("wb") as written:
            shutil.copyfileobj(read, written)
            written.flush()
            os.fsync(written.fileno())
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ArtifactError(f"{source}: cannot be read ({error.strerror})") from error
    except OSError as error:
        if error.filename is None:  # writing does not tell where
            error.filename = os.fspath(target.parent.parent)
        raise
    target.chmod(0o644)


def _verify(copy: Path, *, source: Path) -> None:
    try:
        open_model(copy)
    except ArtifactError as error:  # the copy goes away: what its user has is `source`
        raise ArtifactError(str(error).replace(str(copy), str(source), 1)) from error


def _remove_abandoned(folder: Path) -> None:
    """Remove what publishers that were killed long ago left behind."""
    for entry in folder.glob(f"{_UNFINISHED}*"):
        with suppress(FileNotFoundError):  # its publisher has just renamed it, or another has removed it
            if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
