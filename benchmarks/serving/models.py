"""The models that are served: of 13 features, fitted for an epoch; what they predict is of no matter here."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.serving.candidates import FEATURES
from training.config import fit_options
from training.publish import publish
from training.train import train

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "ensemble": {"members": 5, "width": 128, "depth": 2, "frequencies": 0},
    "default": {},
}
"""The 5 x 128 x 128 ensemble that the figures of peers are for, and the product's default."""
_ROWS = 3000


def publish_model(repository: Path, *, name: str, network: Mapping[str, Any]) -> Path:
    """Fit `network` for an epoch and publish it; the path of the model file."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(_ROWS, FEATURES))
    table = pl.DataFrame({f"f{k}": x[:, k] for k in range(FEATURES)} | {"y": x[:, 0] + 0.1 * rng.normal(size=len(x))})
    settings = {"target": ["y"], "baselines": False, "epochs": 1, "dropout": 0.1, **network}
    with tempfile.TemporaryDirectory() as folder:
        path, model = Path(folder) / "table.parquet", Path(folder) / "model.onnx"
        table.write_parquet(path)
        train(path, fit_options(settings), output=model, command="python -m benchmarks.serving")
        return publish(model, repository, name=name)
