"""MLServer: a custom inference runtime, as "Custom Inference Runtimes" of its documentation has it; V2.

`python -m benchmarks.serving.peers.mlserver_runtime MODEL PORT [BATCH_SIZE BATCH_SECONDS]` writes the two settings files into
the working folder and starts `mlserver start` there. No parallel workers: the documentation of parallel inference says that
light models do better without.
"""

import json
import socket
import sys
from pathlib import Path
from typing import Any

from mlserver import MLModel
from mlserver.cli import main as mlserver
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.serving.peers.model import COVERAGE, Model


class Errorbar(MLModel):
    """The model file that `parameters.uri` names."""

    async def load(self) -> bool:
        """Open the model file."""
        self.model = Model(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A tensor for each output."""
        x = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        coverage = getattr(payload.parameters, "coverage", COVERAGE)
        answers = self.model.answers(x, coverage)
        outputs = [NumpyCodec.encode_output(name, values.reshape(-1, 1)) for name, values in answers.items()]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Serve."""
    path, port, *batching = sys.argv[1:]
    server = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": int(port),
        "grpc_port": _free_port(),
        "metrics_port": _free_port(),
        "parallel_workers": 0,
    }
    model: dict[str, Any] = {
        "name": "m",
        "implementation": "benchmarks.serving.peers.mlserver_runtime.Errorbar",
        "parameters": {"uri": path},
    }
    if batching:
        model |= {"max_batch_size": int(batching[0]), "max_batch_time": float(batching[1])}
    Path("settings.json").write_text(json.dumps(server), encoding="utf-8")
    Path("model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    sys.argv = ["mlserver", "start", "."]
    mlserver()


if __name__ == "__main__":
    main()
