"""Files <-> named tensors: open any checkpoint, write any format.

    pth zip64 zip_records unpickler    torch.save files; pth_writer writes them
    safetensors strict_json            header and extents, and the writer
    gguf gguf_types                    key-values, tensor infos; gguf_writer writes them
    imatrix importance                 importance matrices, .gguf and .dat; what they mean
    sentencepiece                      the vocabulary in tokenizer.model
    directory merge                    which files make one checkpoint
    remote                             the headers of one that is elsewhere
    arriving                           one whose files are still coming
    rules output                       what all of them share

Readers take a `ByteSource`; only this module and `directory` open files, by `moetool.files`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from moetool.errors import MoetoolError, UsageFault
from moetool.extents import Closing
from moetool.files import open_file
from moetool.formats import gguf, pth, safetensors
from moetool.formats.directory import find_files
from moetool.formats.gguf_types import TENSOR_TYPES
from moetool.formats.gguf_writer import GgufSink
from moetool.formats.merge import merge
from moetool.formats.pth_writer import PthSink
from moetool.formats.safetensors import SafetensorsSink
from moetool.formats.unpickler import STORAGE_DTYPES
from moetool.formats.zip64 import BEFORE_NBYTES, BEHIND_NBYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from moetool.extents import Extent
    from moetool.files import File
    from moetool.formats.directory import FileSet
    from moetool.formats.output import OutputFile
    from moetool.tensors import Catalog, DType, Sink, TensorInfo

__all__ = ["FileCheckpoint", "can_hold", "create", "open_checkpoint", "read_headers", "read_part"]

_READERS = {
    "pth": pth.read_catalog,
    "safetensors": safetensors.read_catalog,
    "gguf": gguf.read_catalog,
}


class FileCheckpoint(Closing):
    """A `Checkpoint` in files that stay open until `close`.

    ``path`` is what was asked for, ``directory`` where params.json, config.json and
    tokenizer.model lie. ``pinned``: no byte is given out that was not compared with a publisher's
    digest before, so the times of the files say nothing; they may be those of a download.
    """

    __slots__ = ("catalog", "directory", "path", "pinned", "sources")

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        sources: Mapping[Path, File],
        directory: Path,
        *,
        pinned: bool = False,
    ) -> None:
        self.path = path
        self.catalog = catalog
        self.sources = sources
        self.directory = directory
        self.pinned = pinned

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, in order; one that was cut in parts is named as the whole."""
        return tuple(self.sources)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read bytes ``start:stop`` of the stored form of a tensor (row-major).

        Raises:
            MoetoolError: no such range: the caller's bug.
            ReadFailed, TruncatedFile: the machine could not read, or the file has shrunk.
        NotFetched: it is a partial release, and some of the bytes are a hole.
        """
        extent = self.catalog.extents[name]
        end = extent.nbytes if stop is None else stop
        if not 0 <= start <= end <= extent.nbytes:
            raise MoetoolError(f"{name} has no bytes {start}:{end}", where=str(extent.path))
        return self.sources[extent.path].pread(extent.offset + start, end - start)

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the stored bytes from ``start`` on; nothing is held in between.

        Raises:
            ReadFailed, TruncatedFile: the machine could not read, or the file has shrunk.
        """
        extent = self.catalog.extents[name]
        source, offset = self.sources[extent.path], extent.offset + start
        while buffer:
            got = source.pread_into(buffer, offset)
            if not got:
                source.pread(offset, len(buffer))  # says where the file ends
            offset, buffer = offset + got, buffer[got:]

    def held(self, name: str, start: int = 0, stop: int | None = None) -> int:
        """How many bytes of a tensor are here; of a partial release, some were never fetched."""
        extent = self.catalog.extents[name]
        end = extent.nbytes if stop is None else stop
        return self.sources[extent.path].held(extent.offset + start, end - start)

    def holds(self, name: str, start: int = 0, stop: int | None = None) -> bool:
        """Whether bytes of a tensor are here, all of them."""
        extent = self.catalog.extents[name]
        end = extent.nbytes if stop is None else stop
        return self.sources[extent.path].holds(extent.offset + start, end - start)

    def places(self, name: str, start: int, stop: int) -> Iterator[Extent]:
        """The ranges of files in which bytes of a tensor lie, or some before or behind it."""
        extent = self.catalog.extents[name]
        source = self.sources[extent.path]
        low, high = max(0, extent.offset + start), min(source.nbytes, extent.offset + stop)
        yield from source.places(low, high - low)

    def headers_of(self, name: str) -> Iterator[Extent]:
        """Where the file says of one tensor by itself where it lies: in a .pth, around it."""
        if self.catalog.format == "pth":
            nbytes = self.catalog.extents[name].nbytes
            yield from self.places(name, -BEFORE_NBYTES, 0)
            yield from self.places(name, nbytes, nbytes + BEHIND_NBYTES)

    def close(self) -> None:
        """Close the files; closing twice is harmless."""
        for source in self.sources.values():
            source.close()


def open_checkpoint(path: Path) -> FileCheckpoint:
    """Open a file, an index, or a directory that holds one checkpoint; read headers only.

    Raises:
        UsageFault: there is nothing at that path.
        Refused: malformed, hostile, incomplete or ambiguous.
        ReadFailed: the machine could not read.
    """
    file_set = find_files(path)
    reader = _READERS[file_set.format]
    with ExitStack() as opened:
        sources: dict[Path, File] = {}
        for file in file_set.files:
            sources[file] = open_file(file)
            opened.callback(sources[file].close)
        catalog = merge(file_set, [reader(source) for source in sources.values()])
        opened.pop_all()
    return FileCheckpoint(path, catalog, sources, file_set.directory)


def read_headers(path: Path) -> tuple[Catalog, FileSet]:
    """Read the headers of a checkpoint that is being fetched; its weights may be holes.

    Raises:
        UsageFault, Refused, ReadFailed: as `open_checkpoint`; also where a header is a hole.
    """
    file_set = find_files(path)
    catalogs = [read_part(file, file_set.format, far=True)[0] for file in file_set.files]
    return merge(file_set, catalogs), file_set


def read_part(path: Path, file_format: str, *, far: bool = False) -> tuple[Catalog, int]:
    """Read the header of a file whose data may not be here yet; give also where they will end.

    A .pth has its directory at the end, so it is here whole or not at all; unless ``far`` lets the
    small headers between its weights be holes (see `pth.read_catalog`).

    Raises:
        TruncatedFile: not even the header is here.
        Refused: malformed or hostile.
        ReadFailed: the machine could not read.
    """
    with open_file(path) as source:
        match file_format:
            case "safetensors":
                return safetensors.read_part(source)
            case "gguf":
                return gguf.read_part(source)
        return pth.read_catalog(source, far=far), source.nbytes


def can_hold(file_format: str, dtype: DType) -> bool:
    """Whether files of a format (pth, safetensors, gguf) have a name for a storage type."""
    held = {
        "pth": STORAGE_DTYPES.values(),
        "safetensors": safetensors.LABELS.values(),
        "gguf": TENSOR_TYPES.values(),
    }
    return dtype in held[file_format]


def create(
    path: Path,
    infos: Sequence[TensorInfo],
    metadata: Mapping[str, object],
    into: OutputFile | None = None,
) -> Sink:
    """Begin a file of the format that its suffix names; the tensors are written in this order.

    ``metadata`` is the format's own: texts for safetensors, (label, value) pairs for GGUF, and
    nothing for .pth. ``into`` is where the bytes go, by default a new file of that path.

    Raises:
        OutputExists: the file is there already.
        SystemFault: it cannot be made.
    """
    match path.suffix:
        case ".pth" | ".pt":
            return PthSink(path, infos, root=path.stem, into=into)
        case ".safetensors":
            return SafetensorsSink(path, infos, metadata, into)
        case ".gguf":
            return GgufSink(path, infos, metadata, into)
    raise UsageFault(f"no format is called {path.suffix}", where=str(path))
