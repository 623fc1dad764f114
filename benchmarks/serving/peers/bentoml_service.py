"""BentoML: services, as "Create online API Services" and "Adaptive batching" of its documentation have them.

`python -m benchmarks.serving.peers.bentoml_service MODEL PORT [BATCH_ROWS BATCH_SECONDS]`
"""

import os
import sys

import bentoml
import numpy as np

from benchmarks.serving.peers.model import COVERAGE, Model

_PATH, _ROWS, _SECONDS = "ERRORBAR_BENCHMARK_MODEL", "ERRORBAR_BENCHMARK_ROWS", "ERRORBAR_BENCHMARK_SECONDS"
_QUIET = {"access": {"enabled": False}}


@bentoml.service(workers=1, logging=_QUIET)
class Plain:
    """A run a request."""

    def __init__(self) -> None:
        self.model = Model(os.environ[_PATH])

    @bentoml.api
    def predict(self, x: np.ndarray, coverage: float = COVERAGE) -> np.ndarray:
        """Mean, std, lower and upper bound: [n, 4]."""
        return np.stack(list(self.model.answers(x, coverage).values()), axis=1)


@bentoml.service(workers=1, logging=_QUIET)
class Batched:
    """The rows of several requests in one run, all at the default coverage."""

    def __init__(self) -> None:
        self.model = Model(os.environ[_PATH])

    @bentoml.api(
        batchable=True,
        max_batch_size=int(os.environ.get(_ROWS, "100")),
        max_latency_ms=int(1000 * float(os.environ.get(_SECONDS, "60"))),
    )
    def predict(self, x: np.ndarray) -> np.ndarray:
        """Mean, std, lower and upper bound: [n, 4]."""
        return np.stack(list(self.model.answers(x).values()), axis=1)


def main() -> None:
    """Serve."""
    path, port, *batching = sys.argv[1:]
    os.environ[_PATH] = path
    if batching:
        os.environ[_ROWS], os.environ[_SECONDS] = batching
    service = f"benchmarks.serving.peers.bentoml_service:{'Batched' if batching else 'Plain'}"
    command = [sys.executable, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", port]
    os.execv(sys.executable, command)  # noqa: S606 - a command of our own


if __name__ == "__main__":
    main()
