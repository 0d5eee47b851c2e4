"""The fields of a request, each taken with its type and range; what nobody took is refused."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, TypeVar

from moetool.errors import BadHeader
from moetool.formats.strict_json import read_object
from moetool.serve.faults import Fault, bad

T = TypeVar("T")

# Said by clients, and without influence on what is written.
WITHOUT_EFFECT = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
     "parallel_tool_calls"}
)  # fmt: skip


class Fields:
    """The fields of one JSON object; null is the same as left out.

    Raises:
        Fault: the body is no JSON object.
    """

    def __init__(self, body: bytes) -> None:
        try:
            self._left = read_object(body, "the body")
        except BadHeader as error:
            raise bad(f"the body is {error.what}", hint="send one JSON object") from error

    def take(self, name: str) -> Any:  # noqa: ANN401  # JSON is made of Any
        """The value of a field, of any type."""
        return self._left.pop(name, None)

    def integer(self, name: str, low: int, high: int, usual: T) -> int | T:
        """A whole number in a range.

        Raises:
            Fault: it is none.
        """
        value = self.take(name)
        if value is None:
            return usual
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise bad(f"{name} must be a whole number from {low} to {high}", name)
        return value

    def number(self, name: str, low: float, high: float, usual: float) -> float:
        """A number in a range; NaN is in none.

        Raises:
            Fault: it is none.
        """
        value = self.take(name)
        if value is None:
            return usual
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not low <= value <= high
        ):
            raise bad(f"{name} must be a number from {low:g} to {high:g}", name)
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false; false where it is left out.

        Raises:
            Fault: it is neither.
        """
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise bad(f"{name} must be true or false", name)
        return bool(value)

    def text(self, name: str) -> str | None:
        """A string.

        Raises:
            Fault: it is something else.
        """
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise bad(f"{name} must be a string", name)
        return value

    def only(self, name: str, *allowed: object) -> None:
        """A field of the API that may only say what is done here anyway.

        Raises:
            Fault: it asks for more.
        """
        value = self.take(name)
        if value is not None and value not in allowed:
            raise Fault(
                HTTPStatus.BAD_REQUEST,
                f"{name} is not supported",
                param=name,
                code="unsupported",
                hint="leave it out",
            )

    def end(self) -> None:
        """Refuse what is left, so that nobody believes that it was heeded.

        Raises:
            Fault: there is a field that is not known.
        """
        unknown = sorted(set(self._left) - WITHOUT_EFFECT)
        if unknown:
            raise bad(
                f"unknown field {ascii(unknown[0])[:80]}", hint="see docs/explanation/serve.md"
            )
