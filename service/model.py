"""A version of a model that is ready to answer."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.artifact import OUTPUTS, Arrays, check_golden, digest_of, read_model
from models.manifest import Manifest
from service.codecs.features import Features, features_of
from service.inference.batcher import Batcher, RunLimits
from service.inference.session import Device, Session
from service.metrics import ModelMetrics
from service.predictions import CalibratedTargets, calibrated_targets

_WARM_UP_ROWS = (1, 2, 64, 64)
"""ONNX Runtime plans its memory by input shape, so the first run of a size is slower than the next. The last one is timed."""


@dataclass(frozen=True)
class ServedModel:
    """One version of a model: verified, loaded, warmed up."""

    name: str
    version: int
    manifest: Manifest
    features: Features
    targets: CalibratedTargets
    batcher: Batcher
    metrics: ModelMetrics
    device: Device
    sha256: str
    datatypes: dict[str, str]
    """FP32 or FP64, by output."""
    loaded: str
    """ISO 8601, UTC."""


def load_model(path: Path, *, name: str, version: int, device: Device, limits: RunLimits) -> ServedModel:
    """The model of a file, once it has repeated its golden rows on `device`.

    Raises ArtifactError or DeviceError with the reason where it cannot be served.
    """
    data, manifest = read_model(path)
    session = Session(data, device)

    def run_all(x: NDArray[np.float64], coverage: NDArray[np.float64]) -> Arrays:
        return session.run({"x": x, "coverage": coverage}, OUTPUTS)

    check_golden(manifest, run_all, where=str(path))
    coverage = np.array([manifest.default_coverage])
    for rows in _WARM_UP_ROWS:
        start = time.perf_counter()
        warm = run_all(np.zeros((rows, len(manifest.columns))), coverage)
        row_seconds = (time.perf_counter() - start) / rows
    metrics = ModelMetrics(manifest.targets)
    return ServedModel(
        name=name,
        version=version,
        manifest=manifest,
        features=features_of(manifest.columns),
        targets=calibrated_targets(manifest),
        batcher=Batcher(
            lambda x, c, outputs: session.run({"x": x, "coverage": c}, outputs),
            row_seconds=row_seconds,
            limits=limits,
            metrics=metrics,
        ),
        metrics=metrics,
        device=device,
        sha256=digest_of(data),
        datatypes={output: f"FP{8 * array.dtype.itemsize}" for output, array in warm.items()},
        loaded=datetime.now(UTC).isoformat(timespec="seconds"),
    )
