"""A GGUF file: key-values, tensor infos, data.

    "GGUF" | u32 version | u64 tensors | u64 key-values
    key-value: text key | u32 type | value        text: u64 nbytes | UTF-8
    tensor:    text name | u32 n | n x u64 dims | u32 type | u64 offset
    padding to general.alignment (32) | data, every tensor padded to the alignment

Dims come innermost first, so shapes here are their reverse; offsets count from the first byte of
data, and must be what the sizes before them add up to. The rules are ggml's own, which other
readers are laxer about. Sources: ggml-org/ggml: docs/gguf.md, src/gguf.cpp, include/ggml.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from moetool.errors import BadHeader, TruncatedFile
from moetool.extents import Extent
from moetool.formats.gguf_types import (
    ARRAY,
    BOOL,
    DEFAULT_ALIGNMENT,
    LAYOUTS,
    MAGIC,
    MAX_DIMS,
    MAX_NAME,
    TENSOR_TYPES,
    TEXT,
    padded,
)
from moetool.formats.rules import check_count, check_info, shown
from moetool.tensors import Catalog

if TYPE_CHECKING:
    import struct
    from collections.abc import Sequence

    from moetool.extents import ByteSource
    from moetool.tensors import TensorInfo

_VERSIONS: Final = frozenset({2, 3})  # 1 had 32-bit lengths and lived for days
_MAX_HEADER: Final = 24 << 20
_MAX_KEY: Final = 65_535
_MAX_KEY_VALUES: Final = 4096
_MAX_ITEMS: Final = 1_000_000  # of all arrays together; Llama 3 has 660,000
_MAX_ALIGNMENT: Final = 1 << 20
_WINDOW: Final = 256 << 10


def read_catalog(source: ByteSource) -> Catalog:
    """Read which tensors a GGUF file holds and where, and all key-values; no weight is read.

    Raises:
        TruncatedFile: the file ends before its header or its last tensor does.
        BadHeader: the header contradicts the format, itself or the file's size.
    """
    catalog, padded_end = read_part(source)
    end = max((extent.end for extent in catalog.extents.values()), default=padded_end)
    _check_end(source, end, padded_end)
    return catalog


def read_part(source: ByteSource) -> tuple[Catalog, int]:
    """Read the header of a file whose data may not be here yet; give also where they will end.

    Raises:
        TruncatedFile: not even the header is here.
        BadHeader: the header contradicts the format or itself.
    """
    cursor = _Cursor(source)
    count, pairs = _preamble(cursor)
    metadata: dict[str, object] = {}
    for _ in range(pairs):
        key = cursor.text(_MAX_KEY)
        if not key or key in metadata:
            raise cursor.refused(f"the key {shown(key)} is empty or there twice")
        metadata[key] = _value(cursor, key)
    alignment = _alignment(metadata, cursor)
    entries = [_entry(cursor) for _ in range(count)]
    start = padded(cursor.position, alignment)
    tensors: dict[str, TensorInfo] = {}
    extents: dict[str, Extent] = {}
    position = 0
    for info, offset in entries:
        if info.name in tensors or offset != position:
            raise cursor.refused(
                f"tensor {shown(info.name)} is there twice, or at {offset} instead of {position}"
            )
        tensors[info.name] = info
        extents[info.name] = Extent(source.path, start + offset, info.nbytes)
        position = padded(offset + info.nbytes, alignment)
    return Catalog("gguf", tensors, extents, metadata), start + position


class _Cursor:
    """Reads a header front to back through a window, never more than `_MAX_HEADER` of it."""

    __slots__ = ("_at", "_window", "_window_start", "items", "source")

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.items = 0
        self._window, self._window_start, self._at = b"", 0, 0

    @property
    def position(self) -> int:
        """The offset in the file of the next byte."""
        return self._window_start + self._at

    def refused(self, what: str) -> BadHeader:
        """The error to raise at the position reached."""
        return BadHeader(f"{what} (near byte {self.position})", where=str(self.source.path))

    def take(self, nbytes: int) -> bytes:
        """Take the next bytes."""
        if self._at + nbytes > len(self._window):
            self._refill(nbytes)
        taken = self._window[self._at : self._at + nbytes]
        self._at += nbytes
        return taken

    def _refill(self, nbytes: int) -> None:
        start, where = self.position, str(self.source.path)
        if start + nbytes > self.source.nbytes:
            raise TruncatedFile(
                f"the header needs {nbytes} bytes at {start}, the file has {self.source.nbytes}",
                where=where,
                hint="fetch or copy the file again",
            )
        check_count(start + nbytes, "bytes of header", where, _MAX_HEADER)
        wanted = min(max(nbytes, _WINDOW), self.source.nbytes - start)
        self._window = self.source.pread(start, wanted)
        self._window_start, self._at = start, 0

    def number(self, layout: struct.Struct) -> Any:  # noqa: ANN401  # int or float
        """Take one number."""
        return layout.unpack(self.take(layout.size))[0]

    def u32(self) -> int:
        """Take an unsigned 32-bit number."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """Take an unsigned 64-bit number."""
        return int.from_bytes(self.take(8), "little")

    def text(self, limit: int = _MAX_HEADER) -> str:
        """Take a length and that many bytes of UTF-8."""
        nbytes = self.u64()
        if nbytes > limit:
            raise self.refused(f"a text of {nbytes} bytes, more than {limit}")
        raw = self.take(nbytes)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.refused(f"text {shown(raw[:40])} is not UTF-8") from None


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    """Magic and version; give the counts of tensors and key-values."""
    where = str(cursor.source.path)
    if cursor.take(4) != MAGIC:
        raise BadHeader("does not begin with GGUF", where=where)
    version = cursor.u32()
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        raise BadHeader(
            "is a big-endian GGUF" if swapped else f"is GGUF version {version}",
            where=where,
            hint="convert it anew with a present llama.cpp",
        )
    count, pairs = cursor.u64(), cursor.u64()
    check_count(count, "tensors", where)
    check_count(pairs, "key-values", where, _MAX_KEY_VALUES)
    return count, pairs


def _value(cursor: _Cursor, key: str) -> object:
    kind = cursor.u32()
    if kind == TEXT:
        return cursor.text()
    if kind == BOOL:
        return _boolean(cursor, cursor.take(1), key)
    if kind in LAYOUTS:
        return cursor.number(LAYOUTS[kind])
    if kind != ARRAY:
        raise cursor.refused(f"key {shown(key)} has a value of type {kind}")
    return _array(cursor, key)


def _array(cursor: _Cursor, key: str) -> list[Any]:
    kind, count = cursor.u32(), cursor.u64()
    cursor.items += count
    check_count(cursor.items, "array items", str(cursor.source.path), _MAX_ITEMS)
    if kind == TEXT:
        return [cursor.text() for _ in range(count)]
    if kind == BOOL:
        return [_boolean(cursor, cursor.take(1), key) for _ in range(count)]
    if kind not in LAYOUTS:
        raise cursor.refused(f"key {shown(key)} has an array of type {kind}")
    layout = LAYOUTS[kind]
    return [value for (value,) in layout.iter_unpack(cursor.take(count * layout.size))]


def _boolean(cursor: _Cursor, raw: bytes, key: str) -> bool:
    if raw not in {b"\0", b"\1"}:
        raise cursor.refused(f"key {shown(key)} has a bool of {raw[0]}")
    return raw == b"\1"


def _alignment(metadata: dict[str, object], cursor: _Cursor) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        raise cursor.refused(f"general.alignment is {shown(value)}, not a power of two")
    return value


def _entry(cursor: _Cursor) -> tuple[TensorInfo, int]:
    """One tensor info: name, rank, dims, type, offset."""
    name, rank = cursor.text(MAX_NAME), cursor.u32()
    if rank > MAX_DIMS:
        raise cursor.refused(f"tensor {shown(name)} has {rank} dimensions, more than {MAX_DIMS}")
    shape = tuple(reversed([cursor.u64() for _ in range(rank)]))
    kind = cursor.u32()
    if kind not in TENSOR_TYPES:
        raise cursor.refused(f"tensor {shown(name)} has the unknown type {kind}")
    where = str(cursor.source.path)
    return check_info(name, TENSOR_TYPES[kind], shape, where), cursor.u64()


def _check_end(source: ByteSource, exact: int, with_padding: int) -> None:
    """The file ends with the last tensor, or with its padding; nothing hides behind it."""
    size, where = source.nbytes, str(source.path)
    if size < exact:
        raise TruncatedFile(
            f"expected {exact} bytes, got {size}", where=where, hint="fetch or copy the file again"
        )
    if size > max(exact, with_padding):
        raise BadHeader(f"{size - exact} bytes lie behind the last tensor", where=where)


def check_split(catalogs: Sequence[Catalog], where: str) -> None:
    """Refuse files that are not all parts of one split, in order.

    Source: ggml-org/llama.cpp: src/llama-model-loader.cpp.

    Raises:
        BadHeader: split.no, split.count or split.tensors.count say otherwise.
    """
    total = sum(len(catalog.tensors) for catalog in catalogs)
    for number, catalog in enumerate(catalogs):
        expected = {"split.no": number, "split.count": len(catalogs), "split.tensors.count": total}
        for key, value in expected.items():
            found = catalog.metadata.get(key)
            if found != value:
                raise BadHeader(
                    f"part {number + 1} of {len(catalogs)} has {key} {shown(found)}, "
                    f"expected {value}",
                    where=where,
                    hint="put all parts of one upload, and only those, into one folder",
                )
