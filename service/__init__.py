"""Serves model files over HTTP."""

from importlib.metadata import PackageNotFoundError, version

import models  # noqa: F401 - before anything imports ONNX Runtime, which it tells to send nothing to its maker

try:
    __version__ = version("errorbar")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"
