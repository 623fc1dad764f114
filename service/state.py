"""What the routes share: settings, device, repository, and whether the service is on its way out."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from starlette.requests import HTTPConnection

from service.codecs.terms import Limits
from service.counts import SharedCounts
from service.errors import NotFoundError, UnavailableError
from service.inference.session import Device
from service.metrics import ServiceMetrics, Snapshot, snapshot
from service.model import ServedModel
from service.repository import Repository
from service.settings import Settings


@dataclass
class ServiceState:
    """One running service."""

    settings: Settings
    device: Device
    repository: Repository
    metrics: ServiceMetrics
    counts: SharedCounts | None = None
    """Where this process is one of several."""
    draining: bool = False
    """Set at SIGTERM: not ready any more, still serving."""

    @cached_property
    def limits(self) -> Limits:
        """How large a request may be."""
        settings = self.settings
        return Limits(rows=settings.max_rows, answer_values=settings.max_answer_values, levels=settings.max_levels)

    def not_ready(self) -> str | None:
        """Why the service is not ready, or None where it is."""
        return "shutting down" if self.draining else self.repository.waiting_for()

    def default_model(self) -> ServedModel:
        """The model of requests that name none. Raises NotFoundError where it is not clear; UnavailableError."""
        name = self.settings.default_model
        if name is None:
            names = sorted(self.repository.entries)
            if not names:
                raise UnavailableError(f"not ready: {self.repository.waiting_for()}")
            if len(names) > 1:
                raise NotFoundError(f"which of the models {', '.join(names[:20])}? say it by the setting default_model")
            (name,) = names
        return self.repository.model(name)

    def models(self) -> Iterator[ServedModel]:
        """Every version that is served."""
        for entry in self.repository.entries.values():
            yield from entry.served.values()

    def snapshots(self) -> list[Snapshot]:
        """What was counted, by every process of this service."""
        own = self.own_snapshot()
        if self.counts is None:
            return [own]
        self.counts.leave(own)  # counts must not fall when another process is asked next
        return [own, *self.counts.others()]

    def own_snapshot(self) -> Snapshot:
        """What this process has counted."""
        failed = {name: len(entry.failures) for name, entry in self.repository.entries.items()}
        return snapshot(self.metrics, self.models(), ready=self.not_ready() is None, failed_versions=failed)


def state_of(connection: HTTPConnection) -> ServiceState:
    """The service that answers this request."""
    state: ServiceState = connection.app.state.service
    return state
