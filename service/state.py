"""What the routes share: settings, device, repository, and whether the service is on its way out."""

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from service.inference.session import Device
from service.repository import Repository
from service.settings import Settings


@dataclass
class ServiceState:
    """One running service."""

    settings: Settings
    device: Device
    repository: Repository
    draining: bool = False
    """Set at SIGTERM: not ready any more, still serving."""

    def not_ready(self) -> str | None:
        """Why the service is not ready, or None where it is."""
        return "shutting down" if self.draining else self.repository.waiting_for()


def state_of(connection: HTTPConnection) -> ServiceState:
    """The service that answers this request."""
    state: ServiceState = connection.app.state.service
    return state
