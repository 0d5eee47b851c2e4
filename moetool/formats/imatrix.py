"""Files of an importance matrix, in both of llama.cpp's forms, all of it little-endian:

    .gguf  general.type "imatrix", imatrix.datasets, .chunk_count, .chunk_size, and for each entry
           NAME.in_sum2 f32 [matrices, columns] and NAME.counts f32 [matrices, 1]
    .dat   i32 entries, for each: text name | i32 calls | i32 values | f32 values
           then, or not: i32 chunks | text dataset            text: i32 nbytes | bytes

The second came first, and has no mark to know it by: what is no GGUF is read as one. It keeps
means (times a number of calls) and no count for each matrix. So a writer must decide what to say
of an expert that no token came to: it stores 1 for its columns, and leaves out a tensor of which
no matrix got any. The first stores both as they are, and who reads it decides.
Sources: ggml-org/llama.cpp: tools/imatrix/imatrix.cpp (save_imatrix, save_imatrix_legacy),
common/imatrix-loader.cpp, ggml/src/ggml.c (ggml_n_dims: trailing dimensions of 1 are left out).
"""  # noqa: D415  # the forms come first

from __future__ import annotations

import math
import struct
import sys
from array import array
from typing import TYPE_CHECKING, Final

from moetool.durable import write_durably
from moetool.errors import BadHeader, FormatError, OutputExists, Refused, TruncatedFile, UsageFault
from moetool.extents import LocalFile
from moetool.formats.gguf import read_catalog
from moetool.formats.gguf_types import MAGIC
from moetool.formats.gguf_writer import GgufSink
from moetool.formats.importance import Entry, Imatrix, check_imatrix
from moetool.formats.rules import check_count, check_name, shown
from moetool.tensors import DType, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moetool.extents import ByteSource
    from moetool.tensors import Buffer, Catalog

__all__ = ["SUFFIXES", "Entry", "Imatrix", "check_imatrix", "read_imatrix", "write_imatrix"]

SUFFIXES: Final = (".gguf", ".dat")
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_NBYTES: Final = 256 << 20  # four times what Mixtral 8x22B's has; it is held in memory
_MAX_CALLS: Final = (1 << 31) - 1


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix; which form it has is told by its first bytes.

    Raises:
        TruncatedFile: the file ends before what it promises.
        BadHeader: it is something else, or contradicts itself.
        FormatError: values that no sum of squares can have; all entries are listed.
        ReadFailed: the machine could not read.
    """
    with LocalFile(path) as source:
        if source.nbytes > _MAX_NBYTES:
            raise Refused(f"larger than {_MAX_NBYTES} bytes", where=str(path))
        is_gguf = source.nbytes >= len(MAGIC) and source.pread(0, len(MAGIC)) == MAGIC
        found = _read_gguf(source) if is_gguf else _Dat(source).read()
    _refuse_values(found, str(path))
    return found


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write a file of the form that its suffix names, as llama.cpp writes it; all of it or none.

    Raises:
        OutputExists: the file is there already.
        UsageFault: another suffix, or a legacy matrix as .gguf: it does not know the counts.
    """
    if path.exists() or path.is_symlink():
        raise OutputExists("is there already", where=str(path))
    if path.suffix not in SUFFIXES or (imatrix.legacy and path.suffix == ".gguf"):
        raise UsageFault("an importance matrix cannot be written so", hint=" or ".join(SUFFIXES))
    content = _gguf(path, imatrix) if path.suffix == ".gguf" else _dat(imatrix)
    write_durably(path, content)


def _floats(raw: bytes) -> array[float]:
    values = array("f")
    values.frombytes(raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _raw(values: array[float]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def _refuse_values(imatrix: Imatrix, where: str) -> None:
    """Refuse what would become silence, or nonsense, in a quantiser."""
    findings = []
    for name, entry in imatrix.entries.items():
        # One look that costs little: no sum of finite float32 overflows float64.
        if math.isfinite(sum(entry.sums)) and min(entry.sums) >= 0:
            continue
        odd = sum(not math.isfinite(value) for value in entry.sums)
        negative = sum(value < 0 for value in entry.sums)
        findings.append(
            f"{name}: {odd} of {len(entry.sums)} values are not finite, {negative} are negative"
        )
    if findings:
        raise FormatError(
            "sums of squares that are not finite or negative",
            where=where,
            hint="make it anew; activations beyond float32 make such sums",
            findings=tuple(findings),
        )


# .gguf


def _read_gguf(source: ByteSource) -> Imatrix:
    catalog, where = read_catalog(source), str(source.path)
    datasets, chunk_count, chunk_size = _metadata(catalog, where)
    names = {
        suffix: [name.removesuffix(suffix) for name in catalog.tensors if name.endswith(suffix)]
        for suffix in (_SUMS, _COUNTS)
    }
    findings = [f"{name}: sums without counts" for name in names[_SUMS]
                if name + _COUNTS not in catalog.tensors]  # fmt: skip
    findings += [f"{name}: counts without sums" for name in names[_COUNTS]
                 if name + _SUMS not in catalog.tensors]  # fmt: skip
    if findings or not names[_SUMS]:
        raise BadHeader(
            "sums and counts do not belong together" if findings else "has no entry",
            where=where,
            findings=tuple(findings),
        )
    entries = {name: _entry(source, catalog, name) for name in names[_SUMS]}
    return Imatrix(entries, datasets, chunk_count, chunk_size)


def _metadata(catalog: Catalog, where: str) -> tuple[tuple[str, ...], int, int]:
    """Datasets, number of chunks, tokens of a chunk; llama-quantize insists on all three too."""
    kind = catalog.metadata.get("general.type")
    if kind != "imatrix":
        raise BadHeader(
            f"is a GGUF of general.type {shown(kind)}, not an importance matrix", where=where
        )
    keys = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    datasets, *numbers = (catalog.metadata.get(key) for key in keys)
    if not isinstance(datasets, list) or not all(isinstance(each, str) for each in datasets):
        raise BadHeader(f"{keys[0]} is missing, or no list of texts", where=where)
    for key, number in zip(keys[1:], numbers, strict=True):
        if type(number) is not int or number < 0:
            raise BadHeader(f"{key} is missing, or no count", where=where)
    chunk_count, chunk_size = (number for number in numbers if isinstance(number, int))
    return tuple(datasets), chunk_count, chunk_size


def _entry(source: ByteSource, catalog: Catalog, name: str) -> Entry:
    where = str(source.path)
    infos = [catalog.tensors[name + suffix] for suffix in (_SUMS, _COUNTS)]
    n_matrices = math.prod(infos[0].shape[:-1])
    fits = all(info.dtype is DType.F32 for info in infos) and infos[1].numel == n_matrices
    if not name or not fits or not infos[0].numel:
        shapes = " and ".join(f"{info.dtype.label} {list(info.shape)}" for info in infos)
        raise BadHeader(f"{shown(name)} has sums and counts of {shapes}", where=where)
    extents = [catalog.extents[info.name] for info in infos]
    sums, counts = (_floats(source.pread(extent.offset, extent.nbytes)) for extent in extents)
    wrong = sum(not (math.isfinite(count) and count >= 0 and count == int(count))
                for count in counts)  # fmt: skip
    if wrong:
        raise FormatError(
            f"{shown(name)}: {wrong} of {n_matrices} counts are no numbers of tokens", where=where
        )
    return Entry(sums, tuple(map(int, counts)))


class _InMemory:
    """Where a writer's bytes go before the whole file is put down at once."""

    def __init__(self) -> None:
        self.content = bytearray()

    def append(self, content: Buffer) -> None:
        """Take the next bytes."""
        self.content += content

    def skip(self, nbytes: int) -> None:
        """Zeros."""
        self.content += bytes(nbytes)

    def finish(self) -> None:
        """Nothing is left to do."""


def _gguf(path: Path, imatrix: Imatrix) -> bytes:
    metadata: Mapping[str, object] = {
        "general.type": ("str", "imatrix"),
        "imatrix.datasets": ("arr[str]", list(imatrix.datasets)),
        "imatrix.chunk_count": ("u32", imatrix.chunk_count),
        "imatrix.chunk_size": ("u32", imatrix.chunk_size),
    }
    infos, data = [], {}
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        n = len(entry.counts)
        columns = len(entry.sums) // n
        for suffix, shape, values in (
            (_SUMS, (n, columns), entry.sums),
            (_COUNTS, (n, 1), array("f", entry.counts)),
        ):
            info = TensorInfo(name + suffix, DType.F32, shape if n > 1 else shape[1:])
            infos.append(info)
            data[info.name] = _raw(values)
    into = _InMemory()
    sink = GgufSink(path, infos, metadata, into)
    for info in infos:
        sink.write(info.name, [data[info.name]])
    sink.close()
    return bytes(into.content)


# .dat


class _Dat:
    """Reads the legacy form front to back; no length is believed before the file bears it out."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.where = str(source.path)
        self.position = 0

    def read(self) -> Imatrix:
        """Read all of it."""
        n_entries = self._count("entries", least=1)
        check_count(n_entries, "entries: it is neither a GGUF nor a .dat", self.where)
        entries: dict[str, Entry] = {}
        for _ in range(n_entries):
            name = self._text("a name").decode("utf-8", "replace")
            check_name(name, self.where)
            if name in entries:
                raise self._refused(f"{shown(name)} is there twice")
            n_calls = self._count("calls", least=0)
            n_values = self._count("values", least=1)
            entries[name] = Entry(_floats(self._take(4 * n_values)), (n_calls,))
        chunk_count = 0
        datasets: tuple[str, ...] = ()
        if self.position < self.source.nbytes:  # files before March 2024 end here
            chunk_count = self._count("chunks", least=0)
            text = self._text("a dataset").decode("utf-8", "replace")
            datasets = (text,) if text else ()
        if self.position < self.source.nbytes:
            raise self._refused("more bytes than what it announces")
        return Imatrix(entries, datasets, chunk_count, 0, legacy=True)

    def _refused(self, what: str) -> BadHeader:
        return BadHeader(f"{what} (near byte {self.position})", where=self.where)

    def _take(self, nbytes: int) -> bytes:
        if self.position + nbytes > self.source.nbytes:
            raise TruncatedFile(
                f"needs {nbytes} bytes at {self.position}, the file has {self.source.nbytes}",
                where=self.where,
                hint="copy the file again, if it is an importance matrix",
            )
        taken = self.source.pread(self.position, nbytes)
        self.position += nbytes
        return taken

    def _count(self, what: str, least: int) -> int:
        number: int = struct.unpack("<i", self._take(4))[0]
        if number < least:
            raise self._refused(f"it announces {number} {what}")
        return number

    def _text(self, what: str) -> bytes:
        return self._take(self._count(f"bytes of {what}", least=0))


def _dat(imatrix: Imatrix) -> bytes:
    # llama.cpp's own rounding, step by step: a quotient and a product, each in float32.
    stored = {}
    for name, entry in imatrix.entries.items():
        if imatrix.legacy:
            stored[name] = (entry.counts[0], entry.sums)
        elif any(entry.counts):
            n_calls = min(-(-max(entry.counts) // max(imatrix.chunk_size, 1)), _MAX_CALLS)
            values = imatrix.importance(name) or ()
            stored[name] = (n_calls, array("f", [value * n_calls for value in values]))
    parts = [struct.pack("<i", len(stored))]
    for name in sorted(stored):
        n_calls, values = stored[name]
        parts += [_text(name), struct.pack("<ii", n_calls, len(values)), _raw(values)]
    last = imatrix.datasets[-1] if imatrix.datasets else ""
    return b"".join([*parts, struct.pack("<i", imatrix.chunk_count), _text(last)])


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<i", len(raw)) + raw
