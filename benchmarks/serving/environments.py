"""An environment for each peer: what one needs must not decide what another, or errorbar, gets."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[2] / ".benchmark-peers"
COMMON = ("onnxruntime==1.31.1", "uvloop==0.23.0", "httptools==0.9.0")
"""In every environment. uvloop and httptools make uvicorn faster where a peer brings neither."""
REQUIREMENTS = {
    "kserve": ("kserve==0.21.0",),
    "mlserver": ("mlserver==1.7.1",),
    "mlflow": ("mlflow==3.17.2",),
    "bentoml": ("bentoml==1.4.39",),
    "litserve": ("litserve==0.2.19",),
    "ray": ("ray[serve]==2.60.0",),
}
"""What each environment holds besides."""
_STAMP = "requirements.txt"
_INSTALL_SECONDS = 1800
_TOLD = ("onnxruntime", "numpy", "fastapi", "starlette", "uvicorn")
_VERSIONS = """
import importlib.metadata as metadata, sys
for name in sys.argv[1:]:
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        pass
"""


class NoEnvironmentError(RuntimeError):
    """An environment that cannot be made or used, with the reason in one sentence."""


class Environment(NamedTuple):
    """Its Python, and the versions of the peer and of what that stands on."""

    python: Path
    versions: str


def environment(name: str, folder: Path) -> Environment:
    """The environment of a peer in `folder`, which is made unless it is there with the same requirements.

    Raises NoEnvironmentError.
    """
    place = folder / name
    python = place / "bin" / "python"
    wanted = "\n".join([*REQUIREMENTS[name], *COMMON]) + "\n"
    stamp = place / _STAMP
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and python.exists()):
        shutil.rmtree(place, ignore_errors=True)
        print(f"making the environment of {name} in {place}", file=sys.stderr, flush=True)
        try:
            _run([sys.executable, "-m", "venv", str(place)])
            _run([str(python), "-m", "pip", "install", "--quiet", *wanted.split()])
        except NoEnvironmentError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        stamp.write_text(wanted, encoding="utf-8")  # last: an interrupted installation is made anew
    libraries = [requirement.split("=")[0].split("[")[0] for requirement in REQUIREMENTS[name]]
    return Environment(python, ", ".join(_run([str(python), "-c", _VERSIONS, *libraries, *_TOLD]).splitlines()))


def _run(command: list[str]) -> str:
    try:
        ended = subprocess.run(  # noqa: S603 - a command of our own
            command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoEnvironmentError(f"its environment cannot be made: {error}") from error
    if ended.returncode:
        lines = (ended.stderr or ended.stdout).strip().splitlines() or [f"exit status {ended.returncode}"]
        raise NoEnvironmentError(f"its environment cannot be made: {lines[-1]}")
    return ended.stdout
