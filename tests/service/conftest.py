"""A service in process: an application with its lifespan, asked through httpx without a socket."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from service.state import ServiceState
from tests.model_files import write_formula_model
from tests.service.live import Process


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("ERRORBAR_")]:
        monkeypatch.delenv(name)


class Running:
    """An application that has started, and a client for it."""

    def __init__(self, app: FastAPI, http: httpx.AsyncClient):
        self.app = app
        self.http = http
        self.state: ServiceState = app.state.service

    async def predict(self, model: str = "m", **request: Any) -> httpx.Response:
        return await self.http.post(f"/v1/models/{model}:predict", json=request)


@contextlib.asynccontextmanager
async def running(repository: Path, **settings: Any) -> AsyncIterator[Running]:
    app = create_app(Settings(repository=repository, **settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield Running(app, http)


def slowed(service: Running, *, seconds: float) -> None:
    """Let each run of model `m` take so much longer."""
    batcher = service.state.repository.model("m").batcher
    run = batcher._run

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return run(*arguments)

    batcher._run = slow


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Starts services as processes: `start(repository, *flags, kind=Process)`. They are gone after the test."""
    started = []

    def start(*arguments: Any, kind: type[Process] = Process, **options: Any) -> Process:
        started.append(kind(*arguments, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with version 1 of model `m`: features a and b, target y."""
    path = tmp_path / "repository"
    write_formula_model(path / "m" / "1" / "model.onnx")
    return path
