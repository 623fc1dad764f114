"""Serves model files over HTTP."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("errorbar")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"
