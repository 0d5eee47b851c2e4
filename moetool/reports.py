"""Results as data: every command's outcome is a report, and a report is one JSON document.

``{"schema": "moetool.verify", "version": 1, "ok": true, ...}``. A change that breaks a reader
raises the version.
"""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol


class Report(Protocol):
    """A frozen dataclass that knows its schema name and whether every check said yes."""

    schema: ClassVar[str]
    version: ClassVar[int]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def ok(self) -> bool:
        """True when nothing said no."""
        ...


def plain(value: object) -> Any:  # noqa: ANN401  # JSON is made of Any
    """Turn dataclasses, enums, paths and tuples into what json can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value[0] if isinstance(value.value, tuple) else value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return value


def to_json(report: Report) -> str:
    """Write a report as one JSON document, schema and verdict first."""
    head = {"schema": report.schema, "version": report.version, "ok": report.ok}
    return json.dumps({**head, **plain(report)}, indent=2, ensure_ascii=True)
