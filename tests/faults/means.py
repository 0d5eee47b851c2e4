"""Two means to make the n-th call fail: strace, from outside, and the hook, from inside.

An undisturbed run is listed first. A point of that list is a call, the path it is about, and its
number among the calls of that name on that path in its thread: strace counts each thread for
itself, and confined to one path by -P it counts nothing else. So a point is found again whichever
threads do the work.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from .harness import PATIENCE, Done, Place

KINDS = {
    "write": ("write", "pwrite64", "pwritev", "pwritev2", "writev", "pwrite"),
    "fsync": ("fsync", "fdatasync"),
    "rename": ("rename", "renameat", "renameat2"),
    "read": ("pread64", "preadv", "preadv2", "read", "pread"),
    "ftruncate": ("ftruncate",),
    "fallocate": ("fallocate",),
    "mkdir": ("mkdir", "mkdirat"),
    "unlink": ("unlink", "unlinkat"),
}
KIND = {call: kind for kind, calls in KINDS.items() for call in calls}
_SYSTEM_CALLS = tuple(call for call in KIND if call not in {"pwrite", "pread"})
_CALL = re.compile(r'(\d+) +(\w+)\((?:(?:AT_FDCWD|\d+)<([^>]*)>)?(?:, )?(?:"([^"]*)")?(.*)')


@dataclass(frozen=True)
class Point:
    """The ``number``-th call on a path; what it moved and where, where it moves bytes.

    Only the hook knows the offset.
    """

    call: str
    path: str
    number: int
    nbytes: int
    offset: int = 0

    @property
    def kind(self) -> str:
        return KIND[self.call]

    def __str__(self) -> str:
        return f"{self.call} {self.number} of {'/'.join(Path(self.path).parts[-2:])}"


class Strace:
    """Faults of system calls: an errno, or "kill"."""

    name = "strace"

    def __init__(self, log: Path) -> None:
        self._log = log

    def points(self, place: Place) -> list[Point]:
        """Run once without a fault and list the calls on source and output."""
        calls = ",".join(f"?{call}" for call in _SYSTEM_CALLS)  # "?": not each machine has each
        done = place.run(*self._words("-e", f"trace={calls}"))
        assert done.code == 0, done.words
        place.clear()
        seen: Counter[tuple[str, ...]] = Counter()
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            match = _CALL.match(line)
            if not match or match[2] not in KIND:
                continue
            thread, call, behind, named, rest = match.groups()
            path = named or behind or ""
            seen[thread, call, path] += 1
            if path.startswith((str(place.folder), str(place.raw))):
                moved = re.search(r"= (\d+)$", rest)
                size = int(moved[1]) if moved else 0
                found.append(Point(call, path, seen[thread, call, path], size))
        return found

    def run(self, place: Place, point: Point, action: str) -> tuple[Done, bool]:
        """Run with the fault; say how it ended and whether the fault came to pass."""
        fault = "signal=KILL" if action == "kill" else f"error={action}"
        inject = f"inject={point.call}:{fault}:when={point.number}"
        # No --seccomp-bpf: with it strace 6.1 injects errors, and drops injected signals unsaid.
        done = place.run(*self._words("-P", point.path, "-e", f"trace={point.call}", "-e", inject))
        log = self._log.read_text(errors="replace")
        return done, ("killed by SIGKILL" if action == "kill" else "(INJECTED)") in log

    def _words(self, *more: str) -> Sequence[str]:
        return ("strace", "-f", "-qq", "-y", "-s", "0", *more, "-o", str(self._log))


class Hook:
    """Faults of Python's calls: an errno, "kill", "short", "flip", "lost" or "empty"."""

    name = "hook"

    def __init__(self, log: Path) -> None:
        self._log = log

    def points(self, place: Place) -> list[Point]:
        """Run once without a fault and list the calls on source and output."""
        done = self._within(place).run()
        assert done.code == 0, done.words
        place.clear()
        return [point for point, _ in self._logged()]

    def run(self, place: Place, point: Point, action: str) -> tuple[Done, bool]:
        """Run with the fault; say how it ended and whether the fault came to pass."""
        at = json.dumps([point.call, point.path, point.number, action])
        done = self._within(place).having(FAULTS_AT=at).run()
        return done, any(fired for _, fired in self._logged())

    def _within(self, place: Place) -> Place:
        self._log.unlink(missing_ok=True)
        roots = f"{place.folder}:{place.raw}"
        return place.having(FAULTS_ROOTS=roots, FAULTS_LOG=str(self._log))

    def _logged(self) -> list[tuple[Point, bool]]:
        lines = map(json.loads, self._log.read_text().splitlines())
        return [(Point(*point), fired) for *point, fired in lines]


class Listed:
    """The points of each shape, listed once by each means and kept for other folders."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[Point]] = {}

    def of(self, means: Strace | Hook, shape: str, place: Place) -> list[Point]:
        """The points of a run, as those of this folder."""
        key, folder = (means.name, shape), str(place.folder)
        if key not in self._known:
            points = means.points(place)
            self._known[key] = [replace(p, path=p.path.replace(folder, "OUT", 1)) for p in points]
        return [replace(p, path=re.sub("^OUT", folder, p.path)) for p in self._known[key]]


@cache
def refusal() -> str:
    """Why strace cannot be used here; empty where it can."""
    if not shutil.which("strace"):
        return "no strace here"
    probe = ["strace", "-f", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true"]
    if subprocess.run(probe, capture_output=True, check=False, timeout=PATIENCE).returncode:
        return "strace may not trace, or cannot inject, here"
    return ""
