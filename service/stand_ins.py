"""What stands in the place of uvicorn's own on a connection: its flow control, a request's cycle, and a cycle's transport."""

from collections.abc import Callable, Sized
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from service.routes.hot import GiveUp, Route


class Flow(FlowControl):
    """Does not resume reading from a connection while requests wait for the one before them, whoever asks for it."""

    def __init__(self, transport: Any, waiting: Sized):
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Read on, unless requests wait."""
        if not self._waiting:
            super().resume_reading()


class Exchange:
    """A request that is answered without ASGI, in the place of uvicorn's cycle: it has the attributes that uvicorn asks for.

    It is its own `message_event`, which is set when the client has gone.
    """

    def __init__(self, route: Route, *, keep_alive: bool):
        self.route = route
        self.chunks: list[bytes] = []
        self.body_bytes = 0
        self.give_up: GiveUp | None = None
        self.keep_alive = keep_alive
        self.disconnected = self.response_started = self.response_complete = False

    @property
    def message_event(self) -> "Exchange":
        """Itself."""
        return self

    def set(self) -> None:
        """The client has gone."""
        if self.give_up is not None:
            self.give_up()


class UntilRead:
    """The transport as uvicorn's cycle has it: `close` waits for the rest of the request."""

    def __init__(self, transport: Any, *, close: Callable[[], None]):
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, close
