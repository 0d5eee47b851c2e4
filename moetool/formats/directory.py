"""Which files make one checkpoint: the forms that a directory may hold, and only one of them.

    consolidated.00.pth  consolidated.01.pth ...       disjoint keys, numbered without a gap
    consolidated.00.pt   consolidated.01.pt ...        likewise (Mistral's hub upload)
    consolidated.00.pth-split0, consolidated.safetensors.0 ...  cut in parts: `moetool.files`
    consolidated.safetensors
    consolidated-00001-of-00003.safetensors ...
    model.safetensors
    model.safetensors.index.json + the shards it names
    NAME.gguf, or one split: NAME-00001-of-00003.gguf ...

Two forms side by side could be two models: the user chooses by naming a file. `find_files` wants
all files of one; `survey_files` says which are not here, for a plan that is made before they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moetool.errors import BadHeader, ReadFailed, Refused, UsageFault
from moetool.extents import LocalFile
from moetool.files import open_file
from moetool.files.joined import parts_of, whole_name
from moetool.formats import strict_json
from moetool.formats.rules import shown
from moetool.formats.safetensors import read_index

INDEX: Final = "model.safetensors.index.json"
_SUFFIXES: Final = {".pth": "pth", ".pt": "pth", ".safetensors": "safetensors", ".gguf": "gguf"}
_MAGICS: Final = {b"PK\x03\x04": "pth", b"\x80\x02\x8a\x0a": "pth", b"GGUF": "gguf"}
SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<suffix>\w+)")
_HF_SHARD: Final = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

# Label of the form -> what the names of its files look like. A GGUF split is found by its names.
FORMS: Final = {
    "consolidated.NN.pth": re.compile(r"consolidated\.\d{2}\.pth"),
    "consolidated.NN.pt": re.compile(r"consolidated\.\d{2}\.pt"),
    "consolidated.safetensors": re.compile(r"consolidated\.safetensors"),
    "consolidated-NNNNN-of-NNNNN.safetensors": re.compile(
        r"consolidated-\d{5}-of-\d{5}\.safetensors"
    ),
    "model.safetensors": re.compile(r"model\.safetensors"),
    INDEX: re.compile(re.escape(INDEX)),
    "*.gguf": re.compile(r".+\.gguf"),
}


@dataclass(frozen=True, slots=True)
class FileSet:
    """The weight files of one checkpoint, in order; ``index`` says which tensor is in which.

    ``missing`` names the files that belong to it and are not there.
    """

    directory: Path
    format: str
    files: tuple[Path, ...]
    index: dict[str, str] | None = None
    missing: tuple[str, ...] = ()


def find_files(path: Path) -> FileSet:
    """Find the files of the checkpoint that ``path`` (a file, an index or a directory) names.

    Raises:
        UsageFault: there is nothing at that path.
        Refused: no checkpoint, more than one, or one that lacks a file.
    """
    file_set = survey_files(path)
    if file_set.missing:
        raise BadHeader(
            f"{len(file_set.missing)} files of the checkpoint are missing",
            where=str(file_set.directory),
            hint="fetch them, or give one file to look at that alone",
            findings=tuple(f"missing: {shown(name)}" for name in file_set.missing[:100]),
        )
    return file_set


def survey_files(path: Path, promised: Iterable[str] = ()) -> FileSet:
    """Find what is there of a checkpoint; ``promised`` are names that will come to the directory.

    They count as missing: what is in ``files`` can be opened.

    Raises:
        UsageFault: there is nothing at that path.
        Refused: no checkpoint, or more than one.
    """
    if path.is_dir():
        return _in_directory(path, frozenset(promised))
    whole = whole_name(path.name)
    if whole is not None:  # any part stands for all, as the folder does
        return survey_files(path.with_name(whole), promised)
    is_promised = path.name in _joined(promised)
    if not is_promised and not os.path.lexists(path) and not parts_of(path):
        raise UsageFault("no such file or directory", where=str(path))
    if path.name.endswith(".index.json"):
        return _indexed(path)
    shard = SHARD.fullmatch(path.name)
    if shard and shard["suffix"] == "gguf":
        if int(shard["number"]) != 1:
            raise Refused(
                f"is part {int(shard['number'])} of a split",
                where=str(path),
                hint=f"give the first part, {shard['stem']}-00001-of-{shard['count']}.gguf",
            )
        here = {name for name in _all_parts(shard) if (path.parent / name).is_file()}
        return _file_set(path.parent, "gguf", _all_parts(shard), here)
    if is_promised and path.suffix in _SUFFIXES:
        return FileSet(path.parent, _SUFFIXES[path.suffix], (), missing=(path.name,))
    return FileSet(path.parent, _format(path), (path,))


def is_weight_file(name: str) -> bool:
    """Whether a file of that name can be of a checkpoint: its suffix is a format's."""
    name = whole_name(name) or name
    return Path(name).suffix in _SUFFIXES or name.endswith(".index.json")


def format_of_name(name: str) -> str | None:
    """The format that a file's suffix stands for (pth, safetensors, gguf); None for others."""
    return _SUFFIXES.get(Path(name).suffix)


def is_hf_shard(name: str) -> bool:
    """Whether a file of that name is a shard of which an index must speak."""
    return _HF_SHARD.fullmatch(name) is not None


def _format(path: Path) -> str:
    """The format of one file: its suffix says so, else its first bytes do."""
    known = _SUFFIXES.get(path.suffix)
    if known is not None:
        return known
    with open_file(path) as file:
        head = file.pread(0, min(9, file.nbytes))
    if head[8:9] == b"{":
        return "safetensors"
    for magic, name in _MAGICS.items():
        if head.startswith(magic):
            return name
    raise Refused(
        "is neither a .pth, nor a safetensors, nor a GGUF file",
        where=str(path),
        hint="give the checkpoint's file, or the directory it lies in",
    )


def _file_set(
    directory: Path,
    kind: str,
    expected: Iterable[str],
    here: Container[str],
    index: dict[str, str] | None = None,
) -> FileSet:
    """Sort the expected files into those that are here and those that are not."""
    names = list(expected)
    return FileSet(
        directory,
        kind,
        tuple(directory / name for name in names if name in here),
        index,
        tuple(name for name in names if name not in here),
    )


def _in_directory(directory: Path, promised: frozenset[str]) -> FileSet:
    try:
        here = set(os.listdir(directory))  # noqa: PTH208  # 100,000 names need no Path each
    except OSError as error:
        raise ReadFailed(error.strerror or "cannot be listed", where=str(directory)) from error
    here = _joined(here) - _joined(promised - here)  # a whole is here when all its parts are
    names = sorted(here | _joined(promised))
    present = {
        form: found
        for form, pattern in FORMS.items()
        if (found := [name for name in names if pattern.fullmatch(name)])
    }
    match list(present):
        case [form] if form == INDEX and INDEX in here:
            return _indexed(directory / INDEX, [n for n in names if is_hf_shard(n)])
        case [form] if form != INDEX:
            files = _expected(form, present[form], directory)
            return _file_set(directory, _SUFFIXES["." + files[0].rpartition(".")[2]], files, here)
        case []:
            raise _nothing(directory, names)
    first, second, *_ = (found[0] for found in present.values())
    raise Refused(
        f"holds more than one checkpoint: {shown(first)} and {shown(second)}",
        where=str(directory),
        hint="give the file you mean instead of the directory",
    )


def _joined(names: Iterable[str]) -> set[str]:
    """The names, each whole in place of its parts."""
    return {whole_name(name) or name for name in names}


def _expected(form: str, found: list[str], directory: Path) -> list[str]:
    """The files that one form has, by the names of those found, in numeric order."""
    where = str(directory)
    if form.startswith("consolidated.NN"):
        last, suffix = found[-1].split(".")[1:]
        return [f"consolidated.{number:02d}.{suffix}" for number in range(int(last) + 1)]
    if len(found) == 1 and not SHARD.fullmatch(found[0]):
        return found
    sets = {}
    for name in found:
        shard = SHARD.fullmatch(name)
        sets[(shard["stem"], shard["count"]) if shard else name] = shard
    shard = next(iter(sets.values()))
    if len(sets) != 1 or shard is None:
        raise Refused(
            f"holds more than one checkpoint: {', '.join(map(shown, found[:8]))}",
            where=where,
            hint="give the file you mean instead of the directory",
        )
    expected = _all_parts(shard)
    _refuse_beyond(set(found) - set(expected), where)
    return expected


def _all_parts(shard: re.Match[str]) -> list[str]:
    stem, count, suffix = shard["stem"], shard["count"], shard["suffix"]
    # More parts than a directory could hold files of a megabyte would only feed an error message.
    return [f"{stem}-{n:05d}-of-{count}.{suffix}" for n in range(1, min(int(count), 9999) + 1)]


def _indexed(index: Path, beside: list[str] | None = None) -> FileSet:
    """The shards that an index names; ``beside`` are those that lie in the directory."""
    with LocalFile(index) as file:  # a small file: of a part of a release, too, it is whole
        if file.nbytes > strict_json.MAX_NBYTES:
            raise BadHeader(f"an index of {file.nbytes} bytes", where=str(index))
        weight_map = read_index(file.pread(0, file.nbytes), str(index))
    names = sorted(set(weight_map.values()))
    here = {name for name in names if (index.parent / name).is_file()}
    _refuse_beyond(set(beside or ()) - set(names), str(index.parent))
    return _file_set(index.parent, "safetensors", names, here, weight_map)


def _refuse_beyond(beyond: set[str], where: str) -> None:
    if beyond:
        raise BadHeader(
            f"{len(beyond)} shards belong to no file set here",
            where=where,
            hint="put them elsewhere: they are of another upload, or the index is stale",
            findings=tuple(f"left over: {shown(name)}" for name in sorted(beyond)[:100]),
        )


def _nothing(directory: Path, names: list[str]) -> Refused:
    if any(map(is_hf_shard, names)):
        return BadHeader(
            f"holds shards without {INDEX}", where=str(directory), hint="fetch the index as well"
        )
    weights = [name for name in names if Path(name).suffix in _SUFFIXES]
    seen = f"; it does hold {', '.join(map(shown, weights[:8]))}" if weights else ""
    return Refused(
        f"no checkpoint of a known form in this directory{seen}",
        where=str(directory),
        hint="give the file itself" if weights else "give a checkpoint's file or directory",
    )
