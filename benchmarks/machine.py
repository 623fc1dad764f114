"""What a measurement was made on: the machine and the versions of the libraries, a line each."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path


def facts(libraries: Iterable[str], *, also: str = "") -> str:
    """A sentence for a page of results: the machine, what `also` says of it, versions, the date."""
    return f"{machine()}{also}; {versions(libraries)}; {datetime.now(UTC):%Y-%m-%d}."


def load_before() -> str:
    """What else the machine does, for `also`; ask before measuring."""
    return f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""


def machine() -> str:
    """Processor, cores that this process may use, memory, system."""
    return f"{_processor()}, {_cores()} cores, {_memory() / 2**30:.1f} GiB, {platform.system()}"


def versions(libraries: Iterable[str]) -> str:
    """Python's version and those of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", information.read_text() if information.exists() else "", re.MULTILINE)
    return named.group(1).strip() if named else platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    """Bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
