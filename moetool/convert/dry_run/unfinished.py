"""A source that is not complete yet: what it will be, from the headers that are here.

Names, shapes and places follow from the hyperparameters, so a plan needs few headers, and none at
all where params.json or config.json is here: what is not seen is assumed and said. Only a dry run
takes such a source; a conversion refuses it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.arch.recognize import recognize, recognize_part
from moetool.convert.job import Source
from moetool.convert.sidecars import read_tokenizer
from moetool.errors import (
    FormatError,
    InconsistentCheckpoint,
    MoetoolError,
    NotFetched,
    TruncatedFile,
)
from moetool.files import open_file
from moetool.files.joined import status_of, whole_name
from moetool.formats import read_part
from moetool.formats.directory import FileSet, survey_files
from moetool.formats.merge import merge
from moetool.formats.rules import shown
from moetool.release.hub.listing import read_listing
from moetool.release.provenance import read_origin, read_recorded_torrent
from moetool.tensors import Buffer, Catalog, DType, TensorInfo, main_dtype

if TYPE_CHECKING:
    from moetool.arch.recognize import Recognized

_USUAL = {".pth": "mistral", ".pt": "mistral-packed", ".gguf": "gguf", ".safetensors": "hf"}


@dataclass(frozen=True, slots=True)
class Survey:
    """A source as far as it is here: ``gaps`` says what is not, ``assumed`` what is not known."""

    source: Source
    gaps: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Headers:
    """The headers of a checkpoint; its weights cannot be read through it."""

    catalog: Catalog

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Buffer:
        """Raise `MoetoolError`: a plan reads no weight."""
        raise MoetoolError(f"{name} {start}:{stop} was to be read for a plan")


@dataclass(slots=True)
class _Seen:
    """What the headers of a file set say, file by file."""

    catalogs: list[Catalog] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)


def survey(path: Path) -> Survey:
    """Recognise what lies at ``path``, whole or not; no weight is read.

    Raises:
        UsageFault: there is nothing at that path.
        Refused: malformed, hostile or of a kind that is not known; or so little is here that
            nothing can be said.
    """
    directory = path if path.is_dir() else path.parent
    promised = _promised(directory)
    file_set = survey_files(path, promised)
    seen = _look(file_set, _joined(promised))
    if not seen.gaps and len(seen.files) == len(file_set.files):
        try:
            return _whole(path, file_set, seen)
        except InconsistentCheckpoint:
            if not _may_continue(file_set):
                raise
            seen.gaps.append(f"files after {file_set.files[-1].name}, it seems")
    return _part(path, file_set, seen)


def _promised(directory: Path) -> Mapping[str, int]:
    """Names and sizes of the files that a fetch which has not ended will bring."""
    origin, hub = read_origin(directory), read_listing(directory)
    coming = read_recorded_torrent(directory) if origin and origin.fetched_at is None else None
    listed = coming or (hub if hub and hub.fetched_at is None else None)
    sizes = listed.file_sizes(directory) if listed else {}
    return {path.name: nbytes for path, nbytes in sizes.items() if path.parent == directory}


def _joined(promised: Mapping[str, int]) -> Mapping[str, int]:
    """The sizes of the wholes in place of those of their parts."""
    sizes: dict[str, int] = defaultdict(int)
    for name, nbytes in promised.items():
        sizes[whole_name(name) or name] += nbytes
    return sizes


def _look(file_set: FileSet, promised: Mapping[str, int]) -> _Seen:
    """Read each header that is here."""
    seen = _Seen(gaps=[f"{shown(name)} is missing" for name in file_set.missing])
    for path in file_set.files:
        here = status_of(path)
        assert here is not None  # it was listed just now
        whole = promised.get(path.name)
        if whole is not None:
            held = min(here.held_nbytes, whole)
            seen.gaps.append(f"{path.name} is being fetched: {held:,} of {whole:,} bytes are here")
        lacking = _not_fetched(path) if whole is None else 0
        if lacking:
            seen.gaps.append(f"{path.name}: {lacking:,} of {here.nbytes:,} bytes were not fetched")
        try:
            catalog, end = read_part(path, file_set.format)
        except NotFetched:
            continue
        except FormatError as error:
            if whole is None and not isinstance(error, TruncatedFile):
                raise
            if whole is None:
                seen.gaps.append(f"{path.name} is cut short: {error.what}")
            continue
        if end > here.nbytes and whole is None:
            seen.gaps.append(f"{path.name} is cut short: {here.nbytes:,} of {end:,} bytes")
        seen.catalogs.append(catalog)
        seen.files.append(path)
    return seen


def _not_fetched(path: Path) -> int:
    """How many bytes of a file of a partial release are holes."""
    with open_file(path) as file:
        return file.nbytes - file.held(0, file.nbytes)


def _whole(path: Path, file_set: FileSet, seen: _Seen) -> Survey:
    catalog = merge(file_set, seen.catalogs)
    recognized = recognize(catalog, file_set.directory)
    tokenizer = read_tokenizer(file_set.directory)
    return Survey(Source(Headers(catalog), recognized, path, tokenizer))


def _part(path: Path, file_set: FileSet, seen: _Seen) -> Survey:
    catalog = _union(file_set.format, seen.catalogs)
    names = {*catalog.tensors, *(file_set.index or {})}
    first = (*file_set.missing, *(file.name for file in file_set.files))[0]
    usual = "mistral" if first.startswith("consolidated") else _USUAL[Path(first).suffix]
    usual = _USUAL[".pt"] if first.endswith(".pt") else usual
    recognized = recognize_part(catalog, file_set.directory, names, usual)
    filled, assumed = _filled(catalog, recognized)
    source = Source(Headers(filled), recognized, path, read_tokenizer(file_set.directory))
    return Survey(source, tuple(seen.gaps), assumed)


def _may_continue(file_set: FileSet) -> bool:
    """Whether more files may follow: consolidated.NN does not say how many there are."""
    last = file_set.files[-1].name
    return file_set.format == "pth" and (last.endswith(".pt") or len(file_set.files) > 1)


def _union(file_format: str, catalogs: Sequence[Catalog]) -> Catalog:
    return Catalog(
        file_format,
        {name: info for catalog in catalogs for name, info in catalog.tensors.items()},
        {name: extent for catalog in catalogs for name, extent in catalog.extents.items()},
        catalogs[0].metadata if catalogs else {},
    )


def _filled(catalog: Catalog, recognized: Recognized) -> tuple[Catalog, tuple[str, ...]]:
    """The catalog with every tensor of the layout: those not seen are of the type of the rest."""
    seen = catalog.tensors
    main = main_dtype(seen.values()) if seen else DType.BF16
    tensors = {
        name: seen.get(name)
        or TensorInfo(name, DType.F32 if stored.full_precision else main, stored.shape)
        for name, stored in recognized.layout.items()
    }
    n_unseen = len(tensors) - len(seen)
    assumed = (f"{n_unseen} of {len(tensors)} tensors are {main.label}",) if n_unseen else ()
    return Catalog(catalog.format, tensors, catalog.extents, catalog.metadata), assumed
