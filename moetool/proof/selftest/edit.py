"""Edits of files, as bad disks and careless hands make them: bits, ranges, names, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moetool.errors import MoetoolError

if TYPE_CHECKING:
    from pathlib import Path

Edit = Callable[["Path"], None]


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    overwrite(path, at, lambda old: bytes([old[0] ^ 1 << bit]), 1)


def overwrite(path: Path, at: int, change: Callable[[bytes], bytes], nbytes: int) -> None:
    """Replace ``nbytes`` bytes at an offset by what ``change`` makes of them."""
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(nbytes)
        new = change(old)
        if len(new) != len(old) or new == old:
            raise MoetoolError("this would be no fault", where=f"{path} byte {at}")
        file.seek(at)
        file.write(new)


def substitute(path: Path, old: bytes, new: bytes) -> None:
    """Replace the first place of some bytes by as many others, or the whole of a small file."""
    raw = path.read_bytes()
    if old not in raw or old == new:
        raise MoetoolError(f"this would be no fault: {old!r}", where=str(path))
    path.write_bytes(raw.replace(old, new, 1))


def find(path: Path, pattern: bytes, *, last: bool = False) -> int:
    """Where some bytes lie in a file."""
    raw = path.read_bytes()
    at = raw.rfind(pattern) if last else raw.find(pattern)
    if at < 0:
        raise MoetoolError(f"holds no {pattern!r}", where=str(path))
    return at


def swap_files(one: Path, other: Path) -> None:
    """Give each of two files the name of the other."""
    aside = one.with_name(one.name + ".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def cut(path: Path, nbytes: int) -> None:
    """Cut bytes off the end."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - nbytes)


def append(path: Path, content: bytes) -> None:
    """Add bytes at the end."""
    with path.open("ab") as file:
        file.write(content)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON object in place."""
    data = json.loads(path.read_text(encoding="utf-8"))
    before = json.dumps(data)
    change(data)
    if json.dumps(data) == before:
        raise MoetoolError("this would be no fault", where=str(path))
    path.write_text(json.dumps(data, indent=2), encoding="utf-8")
