"""How many may be connected, and for how long one may keep a request unfinished.

Without these, some hundred connections that say nothing take every file descriptor there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

MOST_CONNECTIONS = 128
HEAD_SECONDS = 10.0


class Connection(H11Protocol):
    """One connection: closed when the head of a request does not come, or for want of room."""

    made = 0  # in this process
    number = 0  # which of these it is
    refused = False
    _slow: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        """A request came whole and has no whole answer yet."""
        started = self.cycle is not None  # uvicorn's type does not say that it begins as None
        return started and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it; where there is no room, the one that has been idle for longest makes some."""
        others = [other for other in self.connections if isinstance(other, Connection)]
        if len(others) >= MOST_CONNECTIONS:
            idle = [other for other in others if not other.is_busy]
            victim = min(idle, key=lambda other: other.number, default=None)
            if victim is None:
                self.refused = True
                transport.abort()
                return
            victim.transport.abort()
            self.connections.discard(victim)
        Connection.made += 1
        self.number = Connection.made
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_waiting()
        if not self.refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; whoever has said a whole request may take its time again."""
        super().data_received(data)
        if self.is_busy:
            self._stop_waiting()
        elif self._slow is None and not self.transport.is_closing():
            self._await_head()

    def _await_head(self) -> None:
        self._slow = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._slow:
            self._slow.cancel()
        self._slow = None

    def _too_slow(self) -> None:
        self._slow = None
        if not self.is_busy:
            self.transport.abort()
