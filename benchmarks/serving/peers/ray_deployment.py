"""Ray Serve: a deployment of one replica, as "Getting Started" and "Dynamic Request Batching" of its documentation have it.

`python -m benchmarks.serving.peers.ray_deployment MODEL PORT [BATCH_SIZE BATCH_SECONDS]`
"""

import signal
import sys
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.peers.model import COVERAGE, Model

_QUIET = {"enable_access_log": False}


@serve.deployment
class Plain:
    """A run a request."""

    def __init__(self, path: str) -> None:
        self.model = Model(path)

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        """A list for each output."""
        asked = await request.json()
        answers = self.model.answers(np.array(asked["x"]), asked.get("coverage", COVERAGE))
        return {name: values.tolist() for name, values in answers.items()}


@serve.deployment(max_ongoing_requests=256)
class Batched:
    """The rows of several requests in one run, all at the default coverage."""

    def __init__(self, path: str, size: int, seconds: float) -> None:
        self.model = Model(path)
        self.run.set_max_batch_size(size)
        self.run.set_batch_wait_timeout_s(seconds)

    @serve.batch
    async def run(self, tables: list[NDArray[np.float64]]) -> list[dict[str, list[float]]]:
        """A list for each output, for each request."""
        answers = self.model.answers(np.concatenate(tables))
        ends = np.cumsum([len(rows) for rows in tables])
        starts = ends - [len(rows) for rows in tables]
        return [
            {name: values[start:end].tolist() for name, values in answers.items()}
            for start, end in zip(starts, ends, strict=True)
        ]

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        """A list for each output."""
        answer: dict[str, list[float]] = await self.run(np.array((await request.json())["x"]))
        return answer


def main() -> None:
    """Serve until told to stop."""
    path, port, *batching = sys.argv[1:]
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, logging_config=_QUIET)
    arguments: tuple[Any, ...] = (int(batching[0]), float(batching[1])) if batching else ()
    deployment: Any = Batched if batching else Plain
    serve.run(deployment.options(logging_config=_QUIET).bind(path, *arguments))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.pause()


if __name__ == "__main__":
    main()
