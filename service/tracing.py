"""OpenTelemetry traces of requests, where an exporter is configured through OpenTelemetry's own environment variables."""

import logging
import os
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

import service
from service.routes.hot import find_route

logger = logging.getLogger("service")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def add_tracing(app: FastAPI) -> Callable[[], None] | None:
    """Trace the requests of `app` if OTEL_EXPORTER_OTLP_ENDPOINT is set; what sends the last spans, None without it.

    Names, sampling and headers follow OpenTelemetry's variables too (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER ...).
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning("no traces: an exporter is configured, but %s is missing: pip install '.[tracing]'", error.name)
        return None
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    name = {} if named else {"service.name": "errorbar"}
    provider = TracerProvider(resource=Resource.create(name | {"service.version": service.__version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    app.add_middleware(
        OpenTelemetryMiddleware,
        tracer_provider=provider,
        default_span_details=_details,
        exclude_spans=["receive", "send"],
    )
    logger.info("traces are sent as OTEL_EXPORTER_OTLP_ENDPOINT says")
    return provider.shutdown


def _details(scope: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A span's name, the same for all models, and what tells them apart."""
    method = scope.get("method", "HTTP")
    route = find_route(scope["path"])
    if route is not None:
        named = {f"errorbar.{key}": value for key, value in route.names.items() if value is not None}
        return f"{method} {route.protocol.name}", named
    return f"{method} {scope['path'].lstrip('/').partition('/')[0][:20] or '/'}", {}
