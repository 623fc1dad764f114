"""Metrics for Prometheus."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from service.metrics import page
from service.state import state_of

router = APIRouter(tags=["metrics"])


@router.get("/metrics", summary="Metrics")
async def metrics(request: Request) -> Response:
    """What was counted since the start, of all processes of this service, in Prometheus' text format."""
    return Response(page(state_of(request).snapshots()), media_type=CONTENT_TYPE_PLAIN_0_0_4)
