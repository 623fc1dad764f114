"""Servers that are started and, with all that they start, gone afterwards."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_STOP_SECONDS = 30.0
_PROCESSES = Path("/proc")
_SET_CHILD_SUBREAPER, _GET_CHILD_SUBREAPER = 36, 37  # of Linux's prctl
_TOLD_CHARACTERS = 300
_TOLD_LINES = 20


@dataclass(frozen=True)
class Server:
    """A server that answers. begun: when it was started, by time.monotonic()."""

    port: int
    process: subprocess.Popen[bytes]
    begun: float

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self.process.pid


@contextlib.contextmanager
def running(
    command: Callable[[int], Sequence[str]],
    *,
    ready: Callable[[int], bool],
    seconds: float,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    core: int | None = None,
) -> Iterator[Server]:
    """The server that `command(port)` starts in `folder`, on `core` alone where one is given, once `ready(port)`.

    What it prints goes to `folder`/log. Raises RuntimeError, with the last line of the log, where it ends or is not ready
    within `seconds`. Afterwards it is stopped, with all processes that came from it, whatever session they have moved to.
    """
    others = _descendants(os.getpid())
    port = _free_port()
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    log = folder / "log"
    begun = time.monotonic()
    with _adopting_orphans():
        with log.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603 - a command of our own
                [*pinned, *command(port)],
                cwd=folder,
                env=os.environ | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while not ready(port):
                if process.poll() is not None:
                    raise RuntimeError(f"it ended with status {process.returncode}: {_end_of(log)}")
                if time.monotonic() > begun + seconds:
                    raise RuntimeError(f"it did not answer within {seconds:g} s: {_end_of(log)}")
                time.sleep(0.02)
            yield Server(port=port, process=process, begun=begun)
        finally:
            _stop(process, but=others)


def resident(pid: int) -> int:
    """Bytes of memory that a process and its descendants hold."""
    total = 0
    for one in {pid} | _descendants(pid):
        with contextlib.suppress(OSError, StopIteration):
            lines = (_PROCESSES / str(one) / "status").read_text().splitlines()
            total += 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])
    return total


def exit_on_sigterm() -> None:
    """Let SIGTERM, as `timeout` sends it, end this program the way Ctrl-C does: after its servers."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _stop(process: subprocess.Popen[bytes], *, but: set[int]) -> None:
    """End `process`, then all of this process's descendants but `but`."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_STOP_SECONDS)  # it may have children to stop in an order of its own
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + _STOP_SECONDS / 3
        while (left := _left(process, but)) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.05)
    if left:
        raise RuntimeError(f"processes {sorted(left)} cannot be stopped")


def _left(process: subprocess.Popen[bytes], but: set[int]) -> set[int]:
    left = _descendants(os.getpid()) - but
    if process.poll() is not None:
        left.discard(process.pid)
    for pid in list(left - {process.pid}):  # those that have ended wait for their parent, which we have become
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                left.discard(pid)
    return left


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Meanwhile, descendants whose parent ends become children of this process: none gets lost."""
    prctl = ctypes.CDLL(None).prctl
    before = ctypes.c_int()
    prctl(_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def _descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for folder in _PROCESSES.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_of(log: Path) -> str:
    """The last line, for a sentence; more of them go to stderr."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["(it printed nothing)"]
    print(*lines[-_TOLD_LINES:], sep="\n", file=sys.stderr, flush=True)
    return lines[-1].strip()[:_TOLD_CHARACTERS]
