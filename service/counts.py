"""What several processes that serve one port have counted: each leaves its counts in a folder for the others."""

import contextlib
import logging
from pathlib import Path

import orjson

from service.metrics import FAMILIES, Snapshot, merged

logger = logging.getLogger("service")

SHARE_SECONDS = 1.0
"""A process leaves its counts this often."""

_LASTING = frozenset(name for name, family in FAMILIES.items() if family.kind in ("counter", "histogram", "hidden"))
_ENDED = "ended.json"


class SharedCounts:
    """Counts of several processes: each leaves a file, each reads those of the others."""

    def __init__(self, folder: Path, name: str):
        self._folder = folder
        self._file = folder / f"{name}.json"

    def leave(self, taken: Snapshot) -> None:
        """Let the others know what this process has counted."""
        try:
            _write(self._file, taken)
        except OSError as error:  # a full disk must not end the service
            logger.warning("the counts of this process cannot be left for the others (%s)", error)

    def others(self) -> list[Snapshot]:
        """What the other processes have left, those included that have ended."""
        return [_read(file) for file in sorted(self._folder.glob("*.json")) if file != self._file]


def forget(folder: Path, name: str) -> None:
    """Keep of a process that has ended what it has counted, and drop what it was doing."""
    file = folder / f"{name}.json"
    if not file.exists():
        return
    try:
        ended: Snapshot = {}
        for family, series in merged([_read(folder / _ENDED), _read(file)]).items():
            if family in _LASTING:
                ended[family] = [(list(labels), numbers) for labels, numbers in series.items()]
        _write(folder / _ENDED, ended)
    except OSError as error:  # a full disk must not end the supervisor
        logger.warning("the counts of a process that has ended are lost (%s)", error)
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)


def _write(file: Path, taken: Snapshot) -> None:
    partial = file.with_suffix(".partial")
    partial.write_bytes(orjson.dumps(taken))
    partial.replace(file)


def _read(file: Path) -> Snapshot:
    try:
        taken: Snapshot = orjson.loads(file.read_bytes())
    except FileNotFoundError:  # its process has ended meanwhile
        return {}
    return taken
