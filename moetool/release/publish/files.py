"""Which files of a folder are published, and what is refused because a fetch would refuse it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from moetool.errors import HostileTorrent, ReadFailed, Refused, UsageFault
from moetool.files.partial import OUR_FOLDER
from moetool.release.source import refuse_impostor
from moetool.release.torrent.create import blank, in_order, info_dict
from moetool.release.torrent.metainfo import MAX_FILES, read_info, why_refused

# Ours, those of other downloaders and of editors, and what clients without BEP 47 leave of padding.
LEFT_OUT = (
    OUR_FOLDER, ".pad", ".git", ".cache", ".DS_Store", "Thumbs.db", "desktop.ini",
    "*.partial", "*.tmp", "*.part", "*.aria2", "*.crdownload", "*.swp", "*~",
)  # fmt: skip
UNFINISHED = ".partial"


@dataclass(frozen=True, slots=True)
class Listed:
    """A file by its path below the folder, and its size in bytes."""

    parts: tuple[str, ...]
    nbytes: int

    @property
    def path(self) -> str:
        """The path with slashes."""
        return "/".join(self.parts)


def find_files(folder: Path) -> tuple[tuple[Listed, ...], tuple[str, ...]]:
    """The files of a folder in the order of a torrent, and the paths that are left out.

    Raises:
        UsageFault: no folder, or the root of the file system.
        Refused: not complete yet, nothing in it, links, special files, or names that a fetch
            refuses: all are listed; more files than a torrent may have.
    """
    _refuse_folder(folder)
    files: dict[tuple[str, ...], int] = {}
    findings, left_out = list(_bad_name((folder.name,))), []
    for parts, entry in _walk(folder, ()):
        if _is_left_out(entry.name):
            left_out.append("/".join(parts) + "/" * entry.is_dir(follow_symlinks=False))
            continue
        status = entry.stat(follow_symlinks=False)
        findings += [*_bad_name(parts), *_bad_kind(parts, status.st_mode)]
        if stat.S_ISREG(status.st_mode):
            files[parts] = status.st_size
        if len(files) > MAX_FILES:
            raise Refused(f"more than {MAX_FILES} files", where=str(folder))
    if findings:
        raise Refused(
            "what a fetch would refuse cannot be published",
            where=str(folder),
            hint="rename or move it; put files in the place of links",
            findings=tuple(findings),
        )
    if not any(files.values()):
        raise Refused("holds no byte to publish", where=str(folder))
    return tuple(Listed(parts, files[parts]) for parts in in_order(files)), tuple(sorted(left_out))


def judge(folder: Path, files: Sequence[Listed], piece_length: int) -> None:
    """Read the file list as a fetch will, before any byte is hashed.

    The hybrid form is judged for v1 too, since it asks for more.

    Raises:
        Refused: a fetch would refuse it, whatever the bytes are.
    """
    hint = "rename the folder or the file"
    if [file.parts for file in files] == [(folder.name,)]:
        what = "its one file has its own name: clients take that for a torrent of one file"
        raise Refused(what, where=str(folder), hint=hint)
    blanks = [blank(file.parts, file.nbytes, piece_length) for file in files]
    try:
        read_info(info_dict(folder.name, piece_length, blanks))
        refuse_impostor(folder.name, None)
    except HostileTorrent as error:
        where = error.where or str(folder)
        raise Refused(f"a fetch would refuse it: {error.what}", where=where, hint=hint) from error


def _walk(
    folder: Path, above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], os.DirEntry[str]]]:
    """Everything below a folder, without what lies in folders that are left out."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ReadFailed(error.strerror or "cannot be read", where=str(folder)) from error
    for entry in found:
        parts = (*above, entry.name)
        yield parts, entry
        if not _is_left_out(entry.name) and entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), parts)


def _is_left_out(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def _refuse_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise UsageFault(what, where=str(folder), hint="a release is a folder, also of one file")
    if not folder.name:
        raise UsageFault("has no name", where=str(folder), hint="name the folder of the release")
    if folder.name.endswith(UNFINISHED):
        raise Refused("is not complete yet", where=str(folder), hint="let its command end first")


def _bad_kind(parts: tuple[str, ...], mode: int) -> Iterator[str]:
    """What a fetch has against an entry that is neither a file nor a folder."""
    path = "/".join(parts)
    if stat.S_ISLNK(mode):
        yield f"{path!a} is a symbolic link"
    elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        yield f"{path!a} is neither a file nor a folder"


def _bad_name(parts: tuple[str, ...]) -> Iterator[str]:
    """What a fetch has against the last name of a path."""
    try:
        reason = why_refused(parts[-1])
    except UnicodeEncodeError:
        reason = "is not UTF-8"
    if reason:
        yield f"{'/'.join(parts)!a} {reason}"
