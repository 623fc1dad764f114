"""KServe's Python server: a `kserve.Model`, as "Custom Predictor" of its documentation has it; V1, V2 and V2 with raw bytes.

`python -m benchmarks.serving.peers.kserve_model MODEL PORT`
"""

import logging
import sys
from typing import Any

import kserve
import numpy as np
from kserve.utils.utils import generate_uuid, get_predict_input

from benchmarks.serving.peers.model import COVERAGE, Model


class Errorbar(kserve.Model):
    """The model file under the name m."""

    def __init__(self, path: str) -> None:
        super().__init__("m")
        self.path = path
        self.ready = self.load()

    def load(self) -> bool:
        """Open the model file."""
        self.model = Model(self.path)
        return True

    def predict(
        self,
        payload: dict[str, Any] | kserve.InferRequest,
        headers: dict[str, str] | None = None,  # noqa: ARG002 - KServe gives them
    ) -> dict[str, Any] | kserve.InferResponse:
        """An object for each row (V1), or a tensor for each output (V2)."""
        x = get_predict_input(payload)
        options = payload if isinstance(payload, dict) else payload.parameters or {}
        answers = self.model.answers(x, options.get("coverage", COVERAGE))
        if isinstance(payload, dict):
            rows = zip(*(values.tolist() for values in answers.values()), strict=True)
            return {"predictions": [dict(zip(answers, row, strict=True)) for row in rows]}
        return kserve.InferResponse(
            response_id=payload.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=[_output(name, values) for name, values in answers.items()],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


def _output(name: str, values: Any) -> kserve.InferOutput:
    values = values.astype(np.float64).reshape(-1, 1)
    return kserve.InferOutput(name=name, shape=list(values.shape), datatype="FP64", data=values)


def main() -> None:
    """Serve."""
    path, port = sys.argv[1:]
    server = kserve.ModelServer(http_port=int(port), enable_grpc=False, enable_latency_logging=False)
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)  # else a line a request
    logging.getLogger("uvicorn.access").handlers.clear()
    server.start([Errorbar(path)])


if __name__ == "__main__":
    main()
