"""One ONNX Runtime session on the chosen device: nothing falls back to the CPU without saying so."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.artifact import Arrays, session_options
from service.settings import DevicePolicy

logger = logging.getLogger("service")

DeviceName = Literal["cpu", "cuda"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# The smallest model that shows whether a device runs: y = x + x, float32 [1], ONNX IR 9, opset 18.
_PROBE = bytes.fromhex(
    "08093a3b0a100a01780a017812017922034164643a00120570726f62655a0f0a0178120a"
    "0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001012"
)


class DeviceError(RuntimeError):
    """The device that was asked for does not run, with the reason."""


@dataclass(frozen=True)
class Device:
    """Where models run: the device in use, and why it is not the one preferred."""

    name: DeviceName
    threads: int
    fallback_reason: str | None = None


def available_cores() -> int:
    """Cores that this process may use; all of the machine where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(policy: DevicePolicy, *, threads: int) -> Device:
    """The device to use under `policy`, proved by a run on it.

    threads: 0 takes every core that this process may use; always an explicit number, as ONNX Runtime's own count goes wrong
    under CPU sets. Raises DeviceError where policy `cuda` cannot be kept.
    """
    threads = threads or available_cores()
    if policy == "cpu":
        return Device("cpu", threads)
    cuda = Device("cuda", threads)
    try:
        Session(_PROBE, cuda).run({"x": np.ones(1, dtype=np.float32)}, ["y"])
    except DeviceError as error:
        if policy == "cuda":
            raise
        logger.warning("CUDA was preferred but does not run (%s): models run on the CPU", error)
        return Device("cpu", threads, fallback_reason=str(error))
    return cuda


class Session:
    """A loaded graph. Runs may come from several threads at once."""

    def __init__(self, model: bytes, device: Device):
        """Raises DeviceError where the graph does not wholly run on `device`."""
        options = session_options(threads=device.threads)
        provider = _PROVIDERS[device.name]
        try:
            if device.name == "cuda":
                self._session = _cuda_session(model, options)
            else:
                self._session = onnxruntime.InferenceSession(model, options, providers=[provider])
        except DeviceError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise DeviceError(f"ONNX Runtime cannot load the model on {device.name}: {error}") from error
        self._session.disable_fallback()  # or a failing run would silently move to the CPU
        used = self._session.get_providers()
        if used[0] != provider:
            raise DeviceError(f"{device.name} was asked for, and ONNX Runtime uses {used[0]}")

    def run(self, inputs: dict[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
        """The named outputs for `inputs`."""
        return dict(zip(outputs, self._session.run(outputs, inputs), strict=True))


def _cuda_session(model: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise DeviceError("this onnxruntime has no CUDA: install onnxruntime-gpu in the place of onnxruntime")
    onnxruntime.preload_dlls()
    # Refuses any node on the CPU; only allowed where the CPU is not among the providers.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    cuda = (_PROVIDERS["cuda"], {"use_tf32": "0"})  # TF32 keeps 10 bits: CPU and GPU would disagree in the third digit
    return onnxruntime.InferenceSession(model, options, providers=[cuda])
