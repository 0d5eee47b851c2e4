"""One generation at a time: it has the memory and the cores; the others wait in a line.

    lane.enter() ─Ticket→ lane.wait(ticket) … until it is first ─→ lane.flow(ticket, work)

The work runs in the lane's one thread; what it gives comes over into the event loop. A ticket
leaves the line when its work has ended in the thread, whether or not its reader has read it all:
who reads slowly keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from threading import Event
from typing import Generic, TypeVar

from moetool.serve.faults import Fault

T = TypeVar("T")
MOST_WAITING = 16
NEWS_SECONDS = 5.0  # who waits hears at least so often that it still does


@dataclass(eq=False, slots=True)
class Ticket:
    """A place in the line; ``gone`` is set when nobody waits for the result any more."""

    model: str
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    gone: Event = field(default_factory=Event)
    n_tokens: int = 0
    began: float | None = None


class Lane(Generic[T]):
    """The line before the one thread that computes; `close` it."""

    def __init__(self) -> None:
        self._line: list[Ticket] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._closing = False
        self.n_done = 0  # those that were given up, too

    @property
    def state(self) -> dict[str, object]:
        """Who is being served, and how many wait."""
        first = self._line[0] if self._line else None
        seconds = time.monotonic() - first.began if first and first.began else 0.0
        running = first and {
            "model": first.model, "tokens": first.n_tokens, "seconds": round(seconds, 3),
        }  # fmt: skip
        return {"running": running, "waiting": max(0, len(self._line) - 1), "done": self.n_done}

    def enter(self, model: str) -> Ticket:
        """Take a place at the end.

        Raises:
            Fault: the line is full, or the server is stopping.
        """
        if self._closing:
            raise stopping()
        if len(self._line) > MOST_WAITING:
            raise Fault(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{MOST_WAITING} requests wait already",
                hint="try again later",
                code="queue_full",
            )
        ticket = Ticket(model)
        self._line.append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give the place up; leaving twice is harmless."""
        ticket.gone.set()
        if ticket in self._line:
            self._line.remove(ticket)
            self.n_done += 1
            for other in self._line:
                other.moved.set()

    def give_up(self, ticket: Ticket) -> None:
        """Let nobody wait for it; its place is free now, or as soon as the thread has heard."""
        ticket.gone.set()
        if ticket.began is None:
            self.leave(ticket)

    async def wait(self, ticket: Ticket) -> AsyncGenerator[int]:
        """How many are before it, each time that this changes and every few seconds, until none.

        Raises:
            Fault: the server is stopping.
        """
        while place := self._line.index(ticket):
            yield place
            with suppress(TimeoutError):
                await asyncio.wait_for(ticket.moved.wait(), NEWS_SECONDS)
            ticket.moved.clear()
            if self._closing:
                raise stopping()

    async def flow(
        self, ticket: Ticket, work: Callable[[Callable[[], bool]], Iterator[list[T]]]
    ) -> AsyncGenerator[T]:
        """Do the work in the thread and give what it makes, item by item.

        ``work`` gets a function that says whether nobody waits any more, and heeds it. An error in
        it is raised here.
        """
        loop = asyncio.get_running_loop()
        made: asyncio.Queue[list[T] | BaseException | None] = asyncio.Queue()

        def tell(call: Callable[..., object], *words: object) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody is there to hear
                loop.call_soon_threadsafe(call, *words)

        def run() -> None:
            end: BaseException | None = None
            try:
                for items in work(ticket.gone.is_set):
                    ticket.n_tokens += 1
                    tell(made.put_nowait, items)
                    if ticket.gone.is_set():
                        end = stopping()  # what came so far must not pass for all
                        break
            except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
                end = error
            tell(self.leave, ticket)
            tell(made.put_nowait, end)

        ticket.began = time.monotonic()
        self._thread.submit(run)
        try:
            while (item := await made.get()) is not None:
                if isinstance(item, BaseException):
                    raise stopping() if self._closing else item
                for one in item:
                    yield one
        finally:
            ticket.gone.set()

    def stop(self) -> None:
        """End what is being computed, and let nobody wait."""
        self._closing = True
        for ticket in self._line:
            ticket.gone.set()
            ticket.moved.set()

    def close(self) -> None:
        """Stop, and wait for the thread; closing twice is harmless."""
        self.stop()
        self._thread.shutdown(cancel_futures=True)


def stopping() -> Fault:
    """The fault of a request that the end of the server cuts off."""
    return Fault(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping", code="stopping")
