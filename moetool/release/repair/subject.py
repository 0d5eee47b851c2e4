"""What the files of a folder should be, and which files of a copy stand for them."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import UsageFault
from moetool.files.joined import part_names, status_of, whole_name
from moetool.release.provenance import read_origin, read_recorded_torrent
from moetool.release.repair.mend import Copy
from moetool.release.source import Source, judge_metadata, resolve_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moetool.release.torrent.metainfo import Metainfo


def find_source(folder: Path, given: str | None) -> Source:
    """What the files of a folder should be: what is given, else what lies in it or beside it.

    Raises:
        UsageFault: nothing says it.
        BadMagnet, HostileTorrent, ReadFailed: see `resolve_source`.
    """
    recorded, origin = read_recorded_torrent(folder), read_origin(folder)
    beside = folder.with_name(folder.name + ".torrent") if folder.name else folder
    if given is not None:
        source = resolve_source(given)
    elif origin is not None:
        source = resolve_source(origin.magnet)
    elif recorded is not None:
        source = Source(resolve_source(recorded.hashes[0]).magnet)
    elif beside.is_file():
        source = resolve_source(str(beside))
    else:
        try:
            source = resolve_source(folder.name)
        except UsageFault as error:
            raise UsageFault(
                "nothing says what its bytes should be",
                where=str(folder),
                hint="give --torrent: a .torrent file, a magnet link or the name of a release",
            ) from error
    wanted = {source.magnet.info_hash, source.magnet.info_hash_v2} - {None}
    if source.meta is None and recorded and wanted <= set(recorded.hashes):
        return judge_metadata(source, recorded)
    return source


def copy_of(meta: Metainfo, folder: Path, other: Path) -> Copy:
    """Which file of a copy stands for which file of the release.

    A single file stands for the one of its name, else for the one of its size, else for the
    largest; a whole for the parts that it was cut in. A file that is the very one to be repaired
    is no copy of it.

    Raises:
        UsageFault: it is not there, or holds no file of the release but those to be repaired.
    """
    status = status_of(other)
    if status is None:
        raise UsageFault("no such file or folder", where=str(other))
    sizes = meta.file_sizes(folder)
    cut = [path for path in sizes if whole_name(path.name) == other.name]
    if other.is_dir():
        places = {path: _place(other / path.relative_to(folder), sizes, path) for path in sizes}
    elif cut:
        places = {path: _place(other.with_name(path.name), sizes, path) for path in cut}
    else:

        def likeness(path: Path) -> tuple[bool, bool, int]:
            return path.name == other.name, sizes[path] == status.nbytes, sizes[path]

        places = {max(sizes, key=likeness): (other, 0)}
    there = {path: place for path, place in places.items() if status_of(place[0])}
    apart = {path: place for path, place in there.items() if not _is_same(path, place[0])}
    if not apart:
        what = "is what is to be repaired" if there else "holds no file of the release"
        raise UsageFault(what, where=str(other), hint="--from wants another copy of it")
    return Copy(str(other), apart)


def _place(there: Path, sizes: Mapping[Path, int], path: Path) -> tuple[Path, int]:
    """Where the copy of a file begins; that of a part may be inside the whole."""
    name = whole_name(path.name)
    if there.exists() or name is None:
        return there, 0
    names = {other.name: other for other in sizes if other.parent == path.parent}
    before = takewhile(lambda part: part != path.name, part_names(name, names))
    return there.with_name(name), sum(sizes[names[part]] for part in before)


def _is_same(path: Path, place: Path) -> bool:
    return path.exists() and place.exists() and path.samefile(place)
