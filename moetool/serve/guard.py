"""Who may ask at all: who names this server, comes from its own page or none, knows the token.

A page of another site can make a browser send requests to this machine, and a name of its own can
be made to point here. Neither may read or start anything.

    Host                exactly 127.0.0.1:PORT or localhost:PORT      else 403
    Origin, Sec-Fetch   our own, or none                              else 403
    Authorization       Bearer TOKEN, for all of /v1                  else 401
    Upgrade, websocket                                                403
    POST                application/json, 1 MB at most, within 10 s   else 415, 413, 408

No header that would let another origin read is ever sent.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from moetool.serve.endpoints import refusal
from moetool.serve.faults import Fault

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY = 1_000_000  # bytes
BODY_SECONDS = 10.0
HTTP_PORT = 80

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


@dataclass(frozen=True, slots=True)
class Guard:
    """Stands before the application; lets through what it has no reason to refuse."""

    app: ASGIApp
    token: str
    port: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            headers = self._check(scope)
            if scope["method"] == "POST":
                async with asyncio.timeout(BODY_SECONDS):
                    receive = replayed(await read_body(headers, receive), receive)
        except TimeoutError:
            fault = Fault(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time")
        except Fault as found:
            fault = found
        else:
            await self.app(scope, receive, guarded)
            return
        answer = refusal(fault)
        answer.headers["connection"] = "close"  # what is left of the body is not read
        if fault.status == HTTPStatus.UNAUTHORIZED:
            answer.headers["www-authenticate"] = "Bearer"
        await answer(scope, receive, guarded)

    def _check(self, scope: Scope) -> dict[bytes, bytes]:
        """The headers, of a request that may be let through.

        Raises:
            Fault: it may not.
        """
        pairs: list[tuple[bytes, bytes]] = scope["headers"]
        headers = dict(pairs)
        hosts = [value for name, value in pairs if name == b"host"]
        if len(hosts) != 1 or hosts[0] not in self._hosts():
            raise Fault(
                HTTPStatus.FORBIDDEN,
                "this server answers to its own name only",
                hint=f"ask 127.0.0.1:{self.port}",
                code="foreign_host",
            )
        # A link to the page may stand anywhere; what it opens is no part of the page it stood on.
        visits = scope["path"] == "/" and headers.get(b"sec-fetch-dest") == b"document"
        site = b"none" if visits else headers.get(b"sec-fetch-site", b"none")
        own = {None, b"http://" + hosts[0]}
        if headers.get(b"origin") not in own or site not in {b"none", b"same-origin"}:
            raise Fault(
                HTTPStatus.FORBIDDEN, "pages of other origins get no answer", code="foreign_origin"
            )
        if b"upgrade" in headers:
            raise Fault(HTTPStatus.FORBIDDEN, "there is no other protocol here")
        # The page itself holds no secret, and its script brings the token.
        if scope["path"].startswith("/v1") and not self._knows_token(headers):
            raise Fault(
                HTTPStatus.UNAUTHORIZED,
                "the token is missing or wrong",
                hint="send 'Authorization: Bearer TOKEN', the token of the address that "
                "moetool serve printed",
                code="invalid_api_key",
            )
        return headers

    def _hosts(self) -> set[bytes]:
        names = {"127.0.0.1", "localhost"}
        bare = names if self.port == HTTP_PORT else set()
        return {name.encode() for name in bare | {f"{name}:{self.port}" for name in names}}

    def _knows_token(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        return kind.lower() == b"bearer" and secrets.compare_digest(token, self.token.encode())


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The body of a POST.

    Raises:
        Fault: not JSON, or too large, which is said before it is read where its size is told.
    """
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Fault(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json", hint="say so"
        )
    too_large = Fault(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MOST_BODY} bytes")
    told = headers.get(b"content-length", b"0")
    if not told.isdigit() or int(told[:20]) > MOST_BODY:
        raise too_large
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect":
            raise Fault(HTTPStatus.BAD_REQUEST, "the client left before the end of the body")
        more = message.get("more_body", False)
        if len(body) > MOST_BODY:
            raise too_large
    return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read, once more; behind it, what else the client does."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
