"""Serves model files over HTTP."""

import os
from importlib.metadata import PackageNotFoundError, version

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as models/__init__.py says; here ONNX Runtime may be imported before it

try:
    __version__ = version("errorbar")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"
