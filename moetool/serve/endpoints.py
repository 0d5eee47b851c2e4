"""The routes: models, completions, chats, the line; nothing else is there.

GET  /v1/models          the models;  /v1/models/NAME also has its card
POST /v1/completions     POST /v1/chat/completions
GET  /v1/queue           who is being served, and how many wait
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.routing import Route

from moetool.errors import MoetoolError
from moetool.serve.answers import DONE, Answer, comment, event, model_entry
from moetool.serve.asked import Asked, read_chat, read_completion
from moetool.serve.faults import Fault, fault_of
from moetool.serve.writing import Gone, Writing

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from moetool.serve.lane import Lane, Ticket
    from moetool.serve.subject import Subject
    from moetool.serve.writing import Piece

CLIENT_LEFT = 499  # nobody reads it; for the count of requests


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What is served, by name, and the line before it."""

    subjects: Mapping[str, Subject]
    lane: Lane[Piece]
    on_bug: Callable[[BaseException], None]

    @property
    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            Route("/v1/queue", self.queue, methods=["GET"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chats, methods=["POST"]),
        ]

    async def models(self, _request: Request) -> Response:
        """List the models."""
        entries = [model_entry(subject) for subject in self.subjects.values()]
        return document({"object": "list", "data": entries})

    async def model(self, request: Request) -> Response:
        """One model and its card."""
        try:
            subject = self._subject(request.path_params["name"])
        except Fault as fault:
            return refusal(fault)
        return document(model_entry(subject) | {"card": subject.card})

    async def queue(self, _request: Request) -> Response:
        """The line."""
        return document(self.lane.state)

    async def completions(self, request: Request) -> Response | Stream:
        """Continue a text."""
        return await self._answer(request, read_completion)

    async def chats(self, request: Request) -> Response | Stream:
        """Answer messages, by the checkpoint's template."""
        return await self._answer(request, read_chat)

    async def _answer(self, request: Request, read: Callable[[bytes], Asked]) -> Response | Stream:
        try:
            asked = read(await request.body())
            subject = self._subject(asked.model)
            # In a thread of their own: the next request must not wait for a long text.
            if asked.messages is not None:
                prompt = await asyncio.to_thread(subject.tokens_of_chat, asked.messages)
            else:
                prompt = await asyncio.to_thread(subject.tokens_of, asked.prompt or "")
            writing = Writing(subject, asked, prompt)
            answer = Answer(writing, is_chat=asked.messages is not None)
            ticket = self.lane.enter(subject.name)
        except Exception as error:  # noqa: BLE001  # said to the client as the API says it
            return refusal(self._fault(error))
        if asked.stream:
            return Stream(self._events(ticket, answer), partial(self.lane.give_up, ticket))
        return await self._whole(request.receive, ticket, answer)

    def _subject(self, name: str | None) -> Subject:
        """The model that is meant; the first where none is named."""
        if name is None:
            return next(iter(self.subjects.values()))
        if name not in self.subjects:
            raise Fault(
                HTTPStatus.NOT_FOUND,
                f"there is no model {ascii(name)[:80]}",
                hint=f"there is {', '.join(self.subjects)}",
                param="model",
                code="model_not_found",
            )
        return self.subjects[name]

    def _fault(self, error: BaseException) -> Fault:
        """The fault that an error is; a bug of ours is told to whoever runs the server."""
        if isinstance(error, Fault):
            return error
        if isinstance(error, MoetoolError):
            return fault_of(error)
        self.on_bug(error)
        return Fault(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error", hint="see the server")

    async def _pieces(self, ticket: Ticket, answer: Answer) -> AsyncGenerator[Piece | int]:
        """First the places in the line, then the pieces."""
        async for place in self.lane.wait(ticket):
            yield place
        async with aclosing(self.lane.flow(ticket, answer.writing.run)) as flow:
            async for piece in flow:
                yield piece

    async def _events(self, ticket: Ticket, answer: Answer) -> AsyncGenerator[bytes]:
        try:
            for found in answer.first():
                yield event(found)
            async with aclosing(self._pieces(ticket, answer)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, int):
                        yield comment(f"waiting {piece}")
                    else:
                        yield event(answer.chunk(piece))
            for found in answer.last():
                yield event(found)
            yield DONE
        except Gone:
            return
        except Exception as error:  # noqa: BLE001  # the head is sent: it can only be told in the stream
            yield event(self._fault(error).document)

    async def _whole(self, receive: Receive, ticket: Ticket, answer: Answer) -> Response:
        async def collect() -> list[Piece]:
            async with aclosing(self._pieces(ticket, answer)) as pieces:
                return [piece async for piece in pieces if not isinstance(piece, int)]

        made = asyncio.create_task(collect())
        left = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait({made, left}, return_when=asyncio.FIRST_COMPLETED)
            if not made.done():
                return Response(status_code=CLIENT_LEFT)
            return document(answer.whole(made.result()))
        except Exception as error:  # noqa: BLE001  # said to the client as the API says it
            return refusal(self._fault(error))
        finally:
            for task in (made, left):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
            self.lane.give_up(ticket)


@dataclass(frozen=True, slots=True)
class Stream:
    """Events as they come, until they end or the client leaves."""

    events: AsyncGenerator[bytes]
    give_up: Callable[[], None]

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        head = [(b"content-type", b"text/event-stream; charset=utf-8")]
        start = {"type": "http.response.start", "status": HTTPStatus.OK, "headers": head}
        sent = asyncio.create_task(self._send(start, send))
        left = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait({sent, left}, return_when=asyncio.FIRST_COMPLETED)
            if sent.done():
                sent.result()
        finally:
            for task in (sent, left):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
            self.give_up()

    async def _send(self, start: Message, send: Send) -> None:
        await send(start)
        async with aclosing(self.events) as events:
            async for data in events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def document(content: Mapping[str, Any], status: int = HTTPStatus.OK) -> Response:
    """One JSON document; half a surrogate pair in it is spelled out."""
    return Response(json.dumps(content), status, media_type="application/json")


def refusal(fault: Fault) -> Response:
    """The answer that says no."""
    return document(fault.document, fault.status)
