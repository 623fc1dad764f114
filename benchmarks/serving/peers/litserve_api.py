"""LitServe: a `LitAPI`, as its documentation has it.

`python -m benchmarks.serving.peers.litserve_api MODEL PORT [BATCH_SIZE BATCH_SECONDS]`; with batches also its queue for more
than 100 requests a second.
"""

import sys
from typing import Any

import litserve
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.peers.model import COVERAGE, Model


class Errorbar(litserve.LitAPI):
    """A request at a time."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe gives it
        """Open the model file."""
        self.model = Model(self.path)

    def decode_request(self, request: dict[str, Any]) -> tuple[NDArray[np.float64], float]:
        """Rows and coverage."""
        return np.array(request["x"], dtype=np.float64), request.get("coverage", COVERAGE)

    def predict(self, x: tuple[NDArray[np.float64], float]) -> dict[str, NDArray[Any]]:
        """The model's outputs."""
        return self.model.answers(*x)

    def encode_response(self, output: dict[str, NDArray[Any]]) -> dict[str, list[float]]:
        """A list for each output."""
        return {name: values.tolist() for name, values in output.items()}


class BatchedErrorbar(Errorbar):
    """The rows of several requests in one run, all at the default coverage."""

    def batch(self, inputs: list[tuple[NDArray[np.float64], float]]) -> list[NDArray[np.float64]]:
        """Requests need not have equally many rows."""
        return [x for x, _ in inputs]

    def predict(self, x: list[NDArray[np.float64]]) -> list[dict[str, NDArray[Any]]]:  # type: ignore[override]
        """The model's outputs for each request."""
        answers = self.model.answers(np.concatenate(x))
        ends = np.cumsum([len(rows) for rows in x])
        starts = ends - [len(rows) for rows in x]
        return [{name: values[start:end] for name, values in answers.items()} for start, end in zip(starts, ends, strict=True)]

    def unbatch(self, output: list[dict[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        """Is one answer a request already."""
        return output


def main() -> None:
    """Serve."""
    path, port, *batching = sys.argv[1:]
    if batching:
        api: Errorbar = BatchedErrorbar(path, max_batch_size=int(batching[0]), batch_timeout=float(batching[1]))
    else:
        api = Errorbar(path)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=bool(batching))
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False, access_log=False)


if __name__ == "__main__":
    main()
