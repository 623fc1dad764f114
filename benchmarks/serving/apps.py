"""What errorbar is compared with in its own environment: a bare ASGI application, and FastAPI the usual way.

Each is started as `python -m benchmarks.serving.apps MODEL PORT NAME`.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, create_model
from starlette.types import Receive, Scope, Send

from models.artifact import cpu_session, read_model


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, answers two words: what HTTP alone costs with uvicorn."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"13")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'"hello world"'})


def naive(path: Path) -> FastAPI:
    """A Pydantic model for a row, one for an answer, one run a request."""
    data, manifest = read_model(path)
    session: onnxruntime.InferenceSession = cpu_session(data, threads=1)
    names = [f"f{number}" for number in range(len(manifest.columns))]  # a feature's name need not be an identifier
    row = create_model("Row", **dict.fromkeys(names, (float, ...)))  # type: ignore[call-overload]
    request = create_model("Request", instances=(list[row], ...))  # type: ignore[valid-type]
    coverage = np.array([0.9])

    class Interval(BaseModel):
        coverage: float
        lower: float
        upper: float

    class Prediction(BaseModel):
        mean: float
        std: float
        epistemic_std: float
        intervals: list[Interval]

    class Answer(BaseModel):
        predictions: list[Prediction]

    app = FastAPI()

    @app.post("/predict")
    async def predict(asked: request) -> Answer:  # type: ignore[valid-type]
        rows: Any = asked.instances  # type: ignore[attr-defined]
        x = np.array([[getattr(one, name) for name in names] for one in rows])
        outputs = ["mean", "std", "epistemic_std", "lower", "upper"]
        mean, std, epistemic, lower, upper = session.run(outputs, {"x": x, "coverage": coverage})
        return Answer(
            predictions=[
                Prediction(
                    mean=mean[i, 0],
                    std=std[i, 0],
                    epistemic_std=epistemic[i, 0],
                    intervals=[Interval(coverage=0.9, lower=lower[i, 0, 0], upper=upper[i, 0, 0])],
                )
                for i in range(len(x))
            ]
        )

    return app


def main() -> None:
    """Serve one of them."""
    model, port, name = sys.argv[1:]
    app: Any = hello if name == "hello" else naive(Path(model))
    uvicorn.run(app, port=int(port), access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
