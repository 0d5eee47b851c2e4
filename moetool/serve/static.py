"""The page: a few files that were read when the server began, by the names they have there."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/answer.js": ("answer.js", "text/javascript"),
    "/api.js": ("api.js", "text/javascript"),
    "/card.js": ("card.js", "text/javascript"),
    "/lanes.js": ("lanes.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}


def page_routes() -> list[Route]:
    """A route for each file; no path of a request ever becomes the path of a file."""
    folder = files("moetool.serve").joinpath("page")
    return [
        _route(path, folder.joinpath(name).read_bytes(), kind)
        for path, (name, kind) in PAGE.items()
    ]


def _route(path: str, content: bytes, kind: str) -> Route:
    async def give(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return Route(path, give, methods=["GET"])
