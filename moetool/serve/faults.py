"""What went wrong, as the OpenAI API says it, with the next step."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from moetool.errors import (
    Mismatch,
    MoetoolError,
    NotEnoughMemory,
    Refused,
    UsageFault,
)

_STATUS = (
    (UsageFault, HTTPStatus.BAD_REQUEST),
    (Refused, HTTPStatus.BAD_REQUEST),
    (NotEnoughMemory, HTTPStatus.SERVICE_UNAVAILABLE),
    (Mismatch, HTTPStatus.INTERNAL_SERVER_ERROR),
)
_KINDS = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


class Fault(Exception):
    """A request that gets an error in place of an answer.

    ``param`` is the field of the request that is wrong, ``code`` a word for programs.
    """

    def __init__(
        self,
        status: HTTPStatus,
        what: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        self.status = status
        self.what = what
        self.hint = hint
        self.param = param
        self.code = code
        super().__init__(what)

    @property
    def document(self) -> dict[str, Any]:
        """The body; clients of the API show ``message``, so the hint is part of it."""
        usual = "invalid_request_error" if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else None
        return {
            "error": {
                "message": f"{self.what}; {self.hint}" if self.hint else self.what,
                "type": _KINDS.get(self.status, usual or "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def bad(what: str, param: str | None = None, *, hint: str | None = None) -> Fault:
    """A request that cannot be meant."""
    return Fault(HTTPStatus.BAD_REQUEST, what, param=param, hint=hint)


def fault_of(error: MoetoolError) -> Fault:
    """The fault that an error of ours is; nothing of where it happened, which may be a path."""
    status = next(
        (status for kind, status in _STATUS if isinstance(error, kind)),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    return Fault(status, error.what, hint=error.hint, code=type(error).__name__)
