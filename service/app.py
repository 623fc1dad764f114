"""The application: `create_app(settings)` puts repository, routes and telemetry together."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp, Receive, Scope, Send

import service
from service.answers import add_error_handlers
from service.counts import SHARE_SECONDS, SharedCounts
from service.direct import Direct
from service.inference.batcher import RunLimits
from service.inference.session import Device, available_cores, choose_device
from service.metrics import ServiceMetrics
from service.model import ServedModel, load_model
from service.repository import Repository
from service.routes import health, metrics, v1, v2
from service.routes.hot import HotRoutes, Predictions
from service.routes.openapi import openapi_document
from service.security import Guard, Guarded, Keys
from service.settings import Settings
from service.state import ServiceState
from service.telemetry import RequestTelemetry
from service.tracing import add_tracing

logger = logging.getLogger("service")

_INLINE_MILLISECONDS = 2.0
_INLINE_MILLISECONDS_BESIDE_A_THREAD = 1.0
"""Where a worker has more than one core (docs/decisions/011)."""


def create_app(settings: Settings, *, counts: SharedCounts | None = None) -> FastAPI:
    """The service as an ASGI application. counts: shared with the other processes, where it is one of several.

    Raises DeviceError where the device that must be used does not run, KeysError where the file of keys is bad.
    """
    state = _service_state(settings, counts)
    app = FastAPIOffline(  # Swagger UI from this server: /docs works without a way out to the internet
        docs_url="/docs",
        redoc_url=None,
        title="errorbar",
        version=service.__version__,
        lifespan=_lifespan,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # looking for a provider costs 5 % of a request
    )
    app.state.service = state
    app.include_router(health.router)
    app.include_router(v2.router)
    app.include_router(v1.router)
    app.include_router(metrics.router)
    if settings.vertex_health_route is not None:
        app.add_api_route(settings.vertex_health_route, health.ready, include_in_schema=False)
    add_error_handlers(app)
    predictions = Predictions(state)
    keys = None if settings.keys is None else Keys(settings.keys)
    guard = Guard(keys, metrics=state.metrics, probe=settings.vertex_health_route)
    app.add_middleware(_HeadAsGet)
    app.add_middleware(HotRoutes, predictions=predictions)
    app.add_middleware(Guarded, guard=guard)
    app.add_middleware(RequestTelemetry, access_log=settings.access_log, metrics=state.metrics)
    app.state.end_tracing = add_tracing(app)
    traced = app.state.end_tracing is not None
    app.state.direct = None if traced else Direct(predictions, guard=guard, metrics=state.metrics, settings=settings)

    def openapi() -> dict[str, Any]:
        return openapi_document(app, state.repository, keys=settings.keys is not None)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to change it
    return app


class _HeadAsGet:
    """ASGI middleware: what answers GET answers HEAD (RFC 9110, 9.1). The HTTP server leaves the body out."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = {**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope
        await self._app(asked, receive, send)


def _service_state(settings: Settings, counts: SharedCounts | None) -> ServiceState:
    device = choose_device(settings.device, threads=settings.threads)
    limits = _run_limits(settings, device)

    def load(path: Path, name: str, version: int) -> ServedModel:
        return load_model(path, name=name, version=version, device=device, limits=limits)

    counted = ServiceMetrics()
    models = Repository(
        settings.repository,
        load,
        loaded_versions=settings.loaded_versions,
        rescan_seconds=settings.rescan_seconds,
        reloads=counted.reloads,
        stopping=lambda: state.draining,
    )
    state = ServiceState(settings, device, models, counted, counts)
    return state


def _run_limits(settings: Settings, device: Device) -> RunLimits:
    inline_milliseconds = settings.inline_milliseconds
    if inline_milliseconds is None:
        beside_a_thread = available_cores() > settings.workers
        inline_milliseconds = _INLINE_MILLISECONDS_BESIDE_A_THREAD if beside_a_thread else _INLINE_MILLISECONDS
    return RunLimits(
        # A run on a GPU waits for the GPU: never on the event loop, and what queues up meanwhile shares the next.
        inline_seconds=inline_milliseconds / 1e3 if device.name == "cpu" else 0.0,
        run_rows=settings.run_rows,
        queued_rows=settings.max_queued_rows,
        deadline_seconds=settings.deadline_seconds,
    )


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: ServiceState = app.state.service
    await state.repository.rescan()
    default = state.settings.default_model
    if default is not None and default not in state.repository.entries and not state.draining:
        logger.warning("the repository has no model %r, which the setting default_model names", default)
    gc.collect()
    gc.freeze()  # what lives as long as the service is not searched for garbage again and again
    gc.set_threshold(10_000)  # nor, with each turn of many requests, those in flight
    async with asyncio.TaskGroup() as tasks:
        background = [tasks.create_task(state.repository.watch())]
        if state.counts is not None:
            background.append(tasks.create_task(_share_counts(state, state.counts)))
        yield
        for task in background:
            task.cancel()
    if app.state.end_tracing is not None:
        await asyncio.to_thread(app.state.end_tracing)


async def _share_counts(state: ServiceState, counts: SharedCounts) -> None:
    """Leave this process's counts for the others, now and then and at the end."""
    try:
        while True:
            counts.leave(state.own_snapshot())
            await asyncio.sleep(SHARE_SECONDS)
    finally:
        counts.leave(state.own_snapshot())
