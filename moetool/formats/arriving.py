"""A checkpoint whose files are still coming: opened by what its readers ask for first.

The sources wait for the bytes that are read. Where headers lie between the weights (a .pth), the
places of the weights are assumed from the directory, and compared with all headers at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.errors import BadHeader
from moetool.files.joined import JoinedFile, part_names, whole_name
from moetool.formats import FileCheckpoint, gguf, pth, safetensors
from moetool.formats.directory import survey_files
from moetool.formats.merge import merge
from moetool.formats.rules import shown

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.extents import ByteSource, LocalFile
    from moetool.files import File
    from moetool.tensors import Catalog


def open_arriving(path: Path, directory: Path, sources: Mapping[str, LocalFile]) -> FileCheckpoint:
    """Open the checkpoint in a folder in which some files are not whole.

    Args:
        path: how it is called.
        directory: where it lies, with its index, hyperparameters and tokenizer whole.
        sources: every file that is there or will be, by name; reading one waits for its bytes.

    Raises:
        Refused: see `open_checkpoint`.
        NetworkFault, SystemFault: the bytes do not come.
    """
    files = _with_wholes(sources, directory)
    found = survey_files(directory, sources)
    names = sorted([*(file.name for file in found.files), *found.missing])
    absent = [name for name in names if name not in files]
    if absent:
        raise BadHeader(
            f"{len(absent)} files of the checkpoint are missing",
            where=str(directory),
            findings=tuple(f"missing: {shown(name)}" for name in absent[:100]),
        )
    opened = {files[name].path: files[name] for name in names}
    file_set = replace(found, files=tuple(opened), missing=())
    catalog = merge(file_set, [_read(found.format, source, far=True) for source in opened.values()])
    return FileCheckpoint(path, catalog, opened, directory, pinned=True)


def _with_wholes(sources: Mapping[str, LocalFile], directory: Path) -> dict[str, File]:
    """The files, with each that comes in parts under the name of the whole beside them.

    Raises:
        BadHeader: a part is missing.
    """
    found: dict[str, File] = dict(sources)
    for whole in dict.fromkeys(filter(None, map(whole_name, sources))):
        if whole not in sources:
            parts = [sources[name] for name in part_names(whole, sources)]
            found[whole] = JoinedFile(directory / whole, parts)
    return found


def check_assumed(checkpoint: FileCheckpoint, sources: Mapping[Path, ByteSource]) -> None:
    """Read all headers, now that they are here, and compare them with what was assumed.

    Raises:
        Refused: the files contradict themselves; see `open_checkpoint`.
    """
    if checkpoint.catalog.format != "pth":
        return  # its headers were read whole
    catalogs = [_read("pth", source, far=False) for source in sources.values()]
    extents = {name: place for catalog in catalogs for name, place in catalog.extents.items()}
    if extents != checkpoint.catalog.extents:
        moved = [name for name, place in checkpoint.catalog.extents.items()
                 if extents.get(name) != place]  # fmt: skip
        raise BadHeader(
            f"{len(moved)} tensors do not lie where the zip's directory lets them be assumed",
            where=str(checkpoint.path),
            hint="fetch it without --convert, then moetool convert",
            findings=tuple(shown(name) for name in moved[:100]),
        )


def _read(file_format: str, source: ByteSource, *, far: bool) -> Catalog:
    match file_format:
        case "safetensors":
            return safetensors.read_catalog(source)
        case "gguf":
            return gguf.read_catalog(source)
    return pth.read_catalog(source, far=far, claimed=True)
