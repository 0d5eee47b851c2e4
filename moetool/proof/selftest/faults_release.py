"""A raw release whose files were damaged: with a RELEASE and a torrent to tell, and without."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from moetool.proof.selftest.edit import append, cut, find, flip, overwrite, substitute, swap_files
from moetool.proof.selftest.fault import Fault, copied

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.extents import Extent

WEIGHTS = "consolidated.00.pth"
TENSOR = "layers.2.feed_forward.experts.5.w2.weight"
_NAMED = r"damaged: .*layers\.2 expert 5 w2 rows? \d+"
_RANGE = r"damaged: consolidated\.00\.pth bytes \d+-\d+"
_ROW = 17


def _extent(folder: Path) -> Extent:
    from moetool.formats import open_checkpoint

    with open_checkpoint(folder) as checkpoint:
        return checkpoint.catalog.extents[TENSOR]


def _weight(bit: int) -> Callable[[Path], None]:
    """A bit of one bf16 weight: the lower byte has the mantissa and the exponent's last bit."""

    def damage(folder: Path) -> None:
        extent = _extent(folder)
        flip(extent.path, extent.offset + _ROW * 512 + bit // 8, bit % 8)

    return damage


def _at(pattern: bytes, shift: int = 0, *, last: bool = False) -> Callable[[Path], None]:
    """A bit at the first or last place of some bytes in the weights' file."""

    def damage(folder: Path) -> None:
        flip(folder / WEIGHTS, find(folder / WEIGHTS, pattern, last=last) + shift)

    return damage


def _in_file(name: str, at: int) -> Callable[[Path], None]:
    return lambda folder: flip(folder / name, at)


def _zero_range(folder: Path) -> None:
    extent = _extent(folder)
    overwrite(extent.path, extent.offset + _ROW * 512, lambda old: bytes(len(old)), 4096)


def _replace(folder: Path) -> None:
    """The weights of another model of the same geometry, in a file of the same size."""
    from moetool.arch.recognize import recognize
    from moetool.convert.synthetic import RandomCheckpoint
    from moetool.formats import create, open_checkpoint

    with open_checkpoint(folder) as checkpoint:
        args = recognize(checkpoint.catalog, folder).args
    other = RandomCheckpoint(args, seed=1)
    (folder / WEIGHTS).unlink()
    sink = create(folder / WEIGHTS, tuple(other.catalog.tensors.values()), {})
    for name in other.catalog.tensors:
        sink.write(name, [other.read(name)])
    sink.close()


def _double_entry(folder: Path) -> None:
    """A second data/0 behind the first: torch would read one of them, zipfile the other."""
    with warnings.catch_warnings(), zipfile.ZipFile(folder / WEIGHTS, "a") as archive:
        warnings.simplefilter("ignore", UserWarning)
        first = next(name for name in archive.namelist() if name.endswith("/data/0"))
        archive.writestr(first, archive.read(first))


def _edit_release(folder: Path) -> None:
    """The md5 of the weights, edited by hand."""
    line = (folder / "RELEASE").read_text(encoding="utf-8").split(WEIGHTS)[0]
    digest = line.split()[-1].encode()
    substitute(folder / "RELEASE", digest, digest[::-1])


_release, _bare = partial(copied, "release"), partial(copied, "bare-pth")

FAULTS: tuple[Fault, ...] = (
    _release("release-sign-flipped", "the sign of a weight", _weight(15), verify=_NAMED),
    _release("release-exponent-high-flipped", "the highest bit of a weight's exponent", _weight(14),
             verify=_NAMED),
    _release("release-exponent-low-flipped", "the lowest bit of a weight's exponent", _weight(7),
             verify=_NAMED),
    _release("release-mantissa-flipped", "the lowest bit of a weight", _weight(0), verify=_NAMED),
    _release("zip-header-flipped", "a bit of a member's local header in the .pth",
             _at(b"PK\x03\x04", 28), verify=_RANGE, inspect=r"zip|local|header|extra"),
    _release("zip-padding-flipped", "a bit between two members of the .pth", _at(b"ZZZZ", 1),
             verify=_RANGE + ": .*header, directory or padding"),
    _release("pickle-flipped", "a bit of a name in the .pth's pickle",
             _at(b"tok_embeddings.weight"), verify=_RANGE, inspect=r"data\.pkl|CRC"),
    _release("zip-directory-flipped", "a bit of a CRC in the .pth's directory",
             _at(b"PK\x01\x02", 16, last=True), verify=_RANGE),
    _release("tokenizer-flipped", "a bit of tokenizer.model", _in_file("tokenizer.model", 5000),
             verify=r"MISMATCH +tokenizer\.model"),
    _release("params-flipped", "a bit of a digit in params.json", _in_file("params.json", 13),
             verify=r"MISMATCH +params\.json"),
    _release("release-edited", "the list of digests edited by hand", _edit_release,
             verify=r"MISMATCH +RELEASE"),
    _release("release-truncated", "the last 100 bytes of the .pth are missing",
             lambda folder: cut(folder / WEIGHTS, 100), verify=r"MISMATCH +consolidated\.00\.pth",
             inspect=r"consolidated\.00\.pth"),
    _release("release-appended", "16 bytes behind the end of the .pth",
             lambda folder: append(folder / WEIGHTS, b"\0" * 16),
             verify=r"MISMATCH +consolidated\.00\.pth", inspect=r"consolidated\.00\.pth"),
    _release("release-zero-range", "4,096 bytes of the .pth are zero", _zero_range, verify=_NAMED),
    _release("release-replaced", "the .pth of another model", _replace,
             verify=r"MISMATCH +consolidated\.00\.pth", diff=r"^w1 +32 +32 "),
    _release("release-file-missing", "params.json is not there",
             lambda folder: (folder / "params.json").unlink(),
             verify=r"params\.json.*missing", inspect=r"params\.json"),
    _release("release-files-swapped", "RELEASE and params.json under each other's name",
             lambda folder: swap_files(folder / "RELEASE", folder / "params.json"),
             verify=r"MISMATCH +params\.json", inspect=r"params\.json"),
    _bare("bare-weight-flipped", "a bit of a weight, and only the zip's own CRC to tell",
          _weight(14), verify=_NAMED),
    _bare("bare-pickle-flipped", "a bit of the pickle, and only the zip's own CRC to tell",
          _at(b"tok_embeddings.weight"), verify=r"data\.pkl|CRC", inspect=r"data\.pkl|CRC"),
    _bare("zip-entry-doubled", "two members of the .pth have one name", _double_entry,
          inspect=r"data/0"),
    _bare("bare-truncated", "the last 100 bytes of a .pth without references",
          lambda folder: cut(folder / WEIGHTS, 100), inspect=r"consolidated\.00\.pth",
          verify=r"consolidated\.00\.pth"),
    _bare("bare-appended", "16 bytes behind the end of a .pth without references",
          lambda folder: append(folder / WEIGHTS, b"\0" * 16), inspect=r"consolidated\.00\.pth"),
)  # fmt: skip
