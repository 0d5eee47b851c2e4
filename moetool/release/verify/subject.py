"""What a verification is about: the files below a path, and every record that speaks of them."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import ReadFailed, Refused
from moetool.files.joined import Joins, parts_of, status_of, whole_name
from moetool.files.partial import OUR_FOLDER
from moetool.release.hub.listing import Listing, read_listing
from moetool.release.manifest import Release, by_info_hash, by_repository, known_releases
from moetool.release.provenance import read_origin, read_recorded_torrent
from moetool.release.source import read_torrent_file

if TYPE_CHECKING:
    from moetool.release.torrent.metainfo import Metainfo

MAX_FILES = 100_000


@dataclass(frozen=True, slots=True)
class Subject:
    """Files to judge with the size that each was promised to have, None where nobody says.

    ``path`` is what was asked for, ``folder`` the release's folder around it. ``is_ours`` says that
    a fetch made the folder, so that a record of the digests may be left in it.
    """

    path: Path
    folder: Path
    files: dict[Path, int | None]
    meta: Metainfo | None = None
    release: Release | None = None
    release_md5: str | None = None
    is_ours: bool = False
    hub: Listing | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that a pass over the files reads."""
        return sum(found.nbytes for found in map(status_of, self.files) if found)


def find_subject(
    path: Path, *, torrent: Path | None = None, release_md5: str | None = None
) -> Subject:
    """Gather the files and what is known of them.

    The torrent is the one given, else what a fetch recorded, else ``NAME.torrent`` beside the
    folder; a hub's listing is what a fetch recorded. The record of a known release is found by
    info-hash, by the hub repository that carries it, else by the folder's
    name. One file is judged alone, with what the records say of it.

    Raises:
        Refused: a FIFO, a socket, a device, or more files than a release has.
        HostileTorrent: the torrent is refused.
    """
    path = path.with_name(whole_name(path.name) or path.name)  # a part stands for all of them
    path = path.absolute()  # extents of one file are told apart by their paths
    folder = path if path.is_dir() else path.parent
    meta = _find_torrent(folder, torrent)
    origin, hub = read_origin(folder), read_listing(folder)
    named = by_repository(hub.repository) if hub else _named(folder.name)
    release = by_info_hash(meta.info_hash) if meta else named
    files: dict[Path, int | None] = dict.fromkeys(_regular_files(path))
    promised = meta.file_sizes(folder) if meta else hub.file_sizes(folder) if hub else {}
    if path.is_dir():
        files |= promised
    else:
        files = {file: promised.get(file) for file in files}
    files = Joins(files).files(files)
    recorded = (origin.release_md5 if origin else None) or (
        release.release_md5 if release else None
    )
    return Subject(
        path=path,
        folder=folder,
        files=files,
        meta=meta,
        release=release,
        release_md5=release_md5 or recorded,
        is_ours=(origin is not None or hub is not None) and path.is_dir(),
        hub=hub,
    )


def _find_torrent(folder: Path, given: Path | None) -> Metainfo | None:
    if given is not None:
        return read_torrent_file(given)
    recorded = read_recorded_torrent(folder)
    beside = folder.with_name(folder.name + ".torrent") if folder.name else folder
    if recorded is None and beside.is_file():
        return read_torrent_file(beside)
    return recorded


def _named(name: str) -> Release | None:
    return next((item for item in known_releases() if item.name == name), None)


def _regular_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [*parts_of(path)] or [path]
    found: list[Path] = []
    for item in sorted(path.rglob("*")):
        if OUR_FOLDER in item.relative_to(path).parts or item.is_dir():
            continue
        _refuse_special(item)
        found.append(item)
        if len(found) > MAX_FILES:
            raise Refused(f"more than {MAX_FILES} files", where=str(path), hint="name a folder")
    return found


def _refuse_special(path: Path) -> None:
    """Refuse what would block or never end when read; a dangling link counts as missing."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ReadFailed(error.strerror or "cannot be looked at", where=str(path)) from error
    if not stat.S_ISREG(mode):
        raise Refused("not a regular file", where=str(path), hint="move it out of the folder")
