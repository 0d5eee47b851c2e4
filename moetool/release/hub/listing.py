"""The files of one commit of a hub repository, and the digest that the hub gives of each.

Large files (git LFS, Xet) have a SHA-256. All others have the name that git gives to their content,
a SHA-1 over "blob SIZE", a zero byte and the bytes; a hub takes none beyond a few megabytes.
The listing comes from a server and is judged like a torrent's: before anything is made of a name.

DIR/.moetool/hub.json    the listing that a fetch was made by; fetched_at is null until it is done
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from moetool.durable import write_durably
from moetool.errors import Refused
from moetool.extents import Claim, Digest, Extent
from moetool.files.partial import OUR_FOLDER
from moetool.release.torrent.metainfo import MAX_FILES, MAX_NBYTES, why_refused

RECORD = "hub.json"
GIT = "git-blob"
MAX_GIT_NBYTES = 64 << 20  # hashed in memory; hubs ask for LFS beyond 10 MB
_MAX_RECORD_NBYTES = 64 << 20
_HEX = {GIT: re.compile(r"[0-9a-f]{40}"), "sha256": re.compile(r"[0-9a-f]{64}")}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file: path below the repository with slashes, size, and the hub's digest."""

    path: str
    nbytes: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Listing:
    """Files of a commit; ``revision`` is what was asked for, ``fetched_at`` UTC in ISO 8601.

    ``include`` are the patterns by which they were chosen; none: a checkpoint and what explains it.
    """

    endpoint: str
    repository: str
    commit: str
    revision: str | None
    files: tuple[HubFile, ...]
    include: tuple[str, ...] = ()
    fetched_at: str | None = None

    @property
    def reference(self) -> str:
        """How reports name it."""
        return f"hub {self.repository}@{self.commit[:8]}"

    @property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum(file.nbytes for file in self.files)

    def only(self, paths: Iterable[str], include: tuple[str, ...] = ()) -> Listing:
        """The same commit with fewer files, judged.

        Raises:
            Refused: see `judge`.
        """
        wanted = set(paths)
        files = tuple(file for file in self.files if file.path in wanted)
        chosen = replace(self, files=files, include=include)
        judge(chosen)
        return chosen

    def file_sizes(self, folder: Path) -> dict[Path, int]:
        """The size of each file, with the paths below ``folder``."""
        return {folder / file.path: file.nbytes for file in self.files}

    def claims(self, folder: Path) -> Iterator[Claim]:
        """What the hub says of the files, as they lie in ``folder``."""
        for file in self.files:
            extent = Extent(folder / file.path, 0, file.nbytes)
            yield Claim((extent,), file.digest, f"{self.reference}#{file.path}")


def refuse_escapes(paths: Iterable[str], where: str) -> None:
    """Refuse a listing with a name that leaves its folder; git makes none, so somebody else did.

    Raises:
        Refused: with all such names.
    """
    wrong = [path for path in paths if _escapes(path)]
    if wrong:
        raise Refused(
            "the hub lists files outside of the repository",
            where=where,
            hint="do not use it: no git repository can hold such names",
            findings=tuple(ascii(path[:300]) for path in wrong[:100]),
        )


def judge(listing: Listing) -> None:
    """Refuse what must not become files here.

    Raises:
        Refused: no commit, names that clash or cannot be seen, sizes or digests that cannot be.
    """
    where = f"{listing.repository}@{listing.commit[:40]}"
    if not _COMMIT.fullmatch(listing.commit):
        raise Refused("the hub gives no commit", where=ascii(where))
    if len(listing.files) > MAX_FILES or not listing.files:
        raise Refused(f"{len(listing.files)} files to fetch", where=where)
    findings = [text for file in listing.files for text in _faults(file)]
    findings += _clashes([file.path for file in listing.files])
    if findings:
        raise Refused(
            "the listing is not one to be fetched",
            where=where,
            hint="leave these files out with --include, or tell the repository's owner",
            findings=tuple(findings[:100]),
        )


def write_listing(folder: Path, listing: Listing) -> None:
    """Record by which listing the files of ``folder`` are made."""
    text = json.dumps(asdict(listing), indent=2) + "\n"
    write_durably(folder / OUR_FOLDER / RECORD, text.encode())


def read_listing(folder: Path) -> Listing | None:
    """The listing that a fetch recorded in a folder; None if there is none.

    Raises:
        Refused: somebody changed it into one that would not have been taken.
    """
    path = folder / OUR_FOLDER / RECORD
    try:
        if not path.is_file() or path.stat().st_size > _MAX_RECORD_NBYTES:
            return None
        table: dict[str, Any] = json.loads(path.read_text("utf-8"))
        files = tuple(
            HubFile(str(entry["path"]), entry["nbytes"], Digest(**entry["digest"]))
            for entry in table["files"]
        )
        listing = Listing(**{**table, "files": files, "include": tuple(table["include"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    judge(listing)
    return listing


def _escapes(path: str) -> bool:
    names = path.replace("\\", "/").split("/")
    return (
        PurePosixPath(path).is_absolute()
        or ".." in names
        or re.match(r"[A-Za-z]:", path) is not None
    )


def _faults(file: HubFile) -> Iterator[str]:
    shown = ascii(file.path[:300])
    reasons = [why_refused(name) for name in file.path.split("/")]
    yield from (f"{shown} {reason}" for reason in reasons if reason)
    size: object = file.nbytes  # what a server says, whatever its type is
    if not isinstance(size, int) or not 0 <= size <= MAX_NBYTES:
        yield f"{shown}: a size of {ascii(file.nbytes)[:40]}"
        return
    pattern = _HEX.get(file.digest.algorithm)
    if pattern is None or not pattern.fullmatch(str(file.digest.hex)):
        yield f"{shown}: no digest"
    elif file.digest.algorithm == GIT and file.nbytes > MAX_GIT_NBYTES:
        yield f"{shown}: {file.nbytes} bytes without a SHA-256"


def _clashes(paths: list[str]) -> Iterator[str]:
    """Names that are one on some file system, and files that are folders too."""
    spelled: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            kind = "file" if count == len(parts) else "folder"
            spelled["/".join(parts[:count]).casefold()].add(f"{kind} {'/'.join(parts[:count])!a}")
    yield from (f"twice: {path!a}" for path, count in Counter(paths).items() if count > 1)
    yield from (
        f"one name: {' and '.join(sorted(names))}" for names in spelled.values() if len(names) > 1
    )
