"""The server: built from what it serves, run until a signal."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette

from moetool.serve.connections import Connection
from moetool.serve.endpoints import Endpoints
from moetool.serve.guard import Guard
from moetool.serve.lane import Lane
from moetool.serve.static import page_routes

if TYPE_CHECKING:
    import socket
    from types import FrameType

    from starlette.types import ASGIApp

    from moetool.serve.subject import Subject
    from moetool.serve.writing import Piece

GRACE_SECONDS = 2  # for answers that are cut off to say so
MOST_HEAD = 16 << 10  # bytes of a request before its body


@dataclass(slots=True)
class Service:
    """The application over some models, and the line before them; `close` it."""

    subjects: Mapping[str, Subject]
    token: str
    port: int
    on_bug: Callable[[BaseException], None]
    lane: Lane[Piece] = field(default_factory=Lane)

    @property
    def app(self) -> ASGIApp:
        """What answers requests."""
        endpoints = Endpoints(self.subjects, self.lane, self.on_bug)
        inner = Starlette(routes=[*page_routes(), *endpoints.routes])
        return Guard(inner, self.token, self.port)

    def close(self) -> None:
        """End what is being written; closing twice is harmless."""
        self.lane.close()


class Server(uvicorn.Server):
    """Ends on a signal, and remembers which; what is being written is cut off at once."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.signal: int | None = None
        super().__init__(
            uvicorn.Config(
                service.app,
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,  # nobody stands between, whatever a header says
                server_header=False,
                h11_max_incomplete_event_size=MOST_HEAD,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to end."""
        self.signal = self.signal or sig
        self.should_exit = True
        self.service.lane.stop()


def run(service: Service, listening: socket.socket) -> int:
    """Serve until a signal comes, and give its number."""
    server = Server(service)
    try:
        server.run([listening])
    finally:
        service.close()
    return server.signal or signal.SIGINT
