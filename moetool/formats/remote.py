"""A checkpoint that is elsewhere: its headers, read through ranges of bytes that are asked for.

Where the bytes come from (a torrent of which nothing is here, an HTTP server) is not known here.
The few small files that say what the tensors mean are copied into a folder first, because
whoever recognises a model reads them there; of the weight files only the headers are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from moetool.errors import BadHeader
from moetool.files.joined import JoinedSource, part_names
from moetool.formats import gguf, pth, safetensors, strict_json
from moetool.formats.directory import INDEX, FileSet, survey_files
from moetool.formats.merge import merge
from moetool.formats.rules import check_count, shown
from moetool.formats.zip64 import END_NBYTES

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.extents import ByteSource
    from moetool.tensors import Catalog

SMALL_FILES: Final = ("params.json", "config.json")
_MAX_SMALL: Final = 4 << 20
_ENDS: Final = {
    "pth": (slice(0, 30), slice(-END_NBYTES, None)),  # a local header; where the directory lies
    "safetensors": (slice(0, 8),),
    "gguf": (slice(0, 24),),
}
"""What a reader of each format asks for first; it decides where to look next."""


class RemoteFiles(Protocol):
    """Files in one folder elsewhere; their names are plain, without folders."""

    @property
    def names(self) -> Collection[str]:
        """What is there, or may be there where it cannot be listed."""
        ...

    def open(self, name: str) -> ByteSource | None:
        """The bytes of a file; None where it turns out not to be there."""
        ...

    def expect(self, ranges: Iterable[tuple[str, slice]]) -> None:
        """Be told which bytes of which files will be read soon, to ask for all of them at once."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteCheckpoint:
    """The headers of a checkpoint elsewhere; ``files`` are its weight files with their sizes."""

    catalog: Catalog
    files: dict[str, int]


def read_remote(remote: RemoteFiles, directory: Path, name: str | None = None) -> RemoteCheckpoint:
    """Read the headers of the checkpoint in a remote folder, or of the file ``name`` in it.

    ``directory`` is an empty local folder; it will hold copies of the small files.

    Raises:
        Refused: malformed, hostile, incomplete or ambiguous; see `open_checkpoint`.
        NetworkFault: what is needed does not come.
    """
    index = INDEX if name is None else name
    if index.endswith(".index.json") and index in remote.names:
        _copy(remote, index, directory, strict_json.MAX_NBYTES)
    file_set = _find(remote, directory, name)
    weights, small = file_set.missing, [name for name in SMALL_FILES if name in remote.names]
    ends = [
        (_parts(remote, weight)[-1 if end.start < 0 else 0], end)
        for weight in weights
        for end in _ENDS[file_set.format]
    ]
    remote.expect([*ends, *((name, slice(0, _MAX_SMALL)) for name in small)])
    for beside in small:
        _copy(remote, beside, directory, _MAX_SMALL)
    sources = [_opened(remote, weight) for weight in weights]
    catalogs = [_read(file_set.format, source) for source in sources]
    files = tuple(source.path for source in sources)
    catalog = merge(replace(file_set, files=files, missing=()), catalogs)
    return RemoteCheckpoint(catalog, {source.path.name: source.nbytes for source in sources})


def _find(remote: RemoteFiles, directory: Path, name: str | None) -> FileSet:
    """Which weight files there must be; all of them are missing, for none is here."""
    file_set = survey_files(directory / name if name else directory, remote.names)
    absent = (
        []
        if name
        else [part for part in file_set.missing if _parts(remote, part)[0] not in remote.names]
    )
    if absent:
        raise BadHeader(
            f"{len(absent)} files of the checkpoint are missing",
            where=str(directory),
            findings=tuple(f"missing: {shown(part)}" for part in absent[:100]),
        )
    return file_set


def _copy(remote: RemoteFiles, name: str, directory: Path, limit: int) -> None:
    source = remote.open(name)
    if source is not None:
        check_count(source.nbytes, "bytes of JSON", str(source.path), limit)
        (directory / name).write_bytes(source.pread(0, source.nbytes))


def _parts(remote: RemoteFiles, name: str) -> tuple[str, ...]:
    """A file itself, or the parts that it was cut in."""
    return (() if name in remote.names else part_names(name, remote.names)) or (name,)


def _opened(remote: RemoteFiles, name: str) -> ByteSource:
    sources = [_opened_part(remote, part) for part in _parts(remote, name)]
    whole = sources[0].path.with_name(name)
    return sources[0] if len(sources) == 1 else JoinedSource(whole, sources)


def _opened_part(remote: RemoteFiles, name: str) -> ByteSource:
    source = remote.open(name)
    if source is None:
        raise BadHeader("is not there", where=shown(name))
    return source


def _read(file_format: str, source: ByteSource) -> Catalog:
    match file_format:
        case "safetensors":
            return safetensors.read_catalog(source)
        case "gguf":
            return gguf.read_catalog(source)
    return pth.read_catalog(source, far=True)
