"""MLflow: a `PythonModel` with a signature, saved and served by `mlflow models serve`, as its documentation has it.

`python -m benchmarks.serving.peers.mlflow_pyfunc MODEL PORT` saves the model in the working folder.
"""

import os
import sys
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature

from benchmarks.serving.peers.model import COVERAGE, Model


class Errorbar(mlflow.pyfunc.PythonModel):
    """The artifact named model."""

    def load_context(self, context: Any) -> None:
        """Open the model file."""
        self.model = Model(context.artifacts["model"])

    def predict(
        self,
        context: Any,  # noqa: ARG002 - MLflow gives it
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """A column for each output."""
        coverage = (params or {}).get("coverage", COVERAGE)
        return pd.DataFrame(self.model.answers(model_input.to_numpy(), coverage))


def main() -> None:
    """Serve."""
    path, port = sys.argv[1:]
    model = Model(path)
    table = pd.DataFrame(np.zeros((1, model.features)), columns=[f"f{number}" for number in range(model.features)])
    answer = pd.DataFrame(model.answers(table.to_numpy()))
    mlflow.pyfunc.save_model(
        path="model",
        python_model=Errorbar(),
        artifacts={"model": path},
        signature=infer_signature(table, answer, params={"coverage": COVERAGE}),
        pip_requirements=["mlflow", "onnxruntime"],
    )
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "model", "--env-manager", "local", "--workers", "1"]
    os.environ |= {"UVICORN_ACCESS_LOG": "0", "UVICORN_LOG_LEVEL": "warning"}
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", port])  # noqa: S606 - a command of our own


if __name__ == "__main__":
    main()
