"""A safetensors file: a JSON header, then the tensors without a gap.

    u64 n | n bytes of JSON, padded with spaces | data
    {"__metadata__": {text: text}, NAME: {"dtype": "BF16", "shape": [..], "data_offsets": [a, b]}}

Offsets count from the first byte of data. What the library lets pass and is refused here: doubled
keys, unknown fields, a header that does not begin with "{", absurd shapes beside a zero.
Source: huggingface/safetensors: README.md, safetensors/src/tensor.rs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from moetool.errors import BadHeader, MoetoolError, TruncatedFile
from moetool.extents import Extent
from moetool.formats import strict_json
from moetool.formats.output import Output
from moetool.formats.rules import check_count, check_info, check_name, check_tiling, shown
from moetool.tensors import Catalog, DType, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from moetool.extents import ByteSource
    from moetool.formats.output import OutputFile
    from moetool.tensors import Buffer

_PREFIX: Final = 8
LABELS: Final = {
    "F64": DType.F64,
    "F32": DType.F32,
    "F16": DType.F16,
    "BF16": DType.BF16,
    "F8_E4M3": DType.F8_E4M3,
    "F8_E5M2": DType.F8_E5M2,
    "I64": DType.I64,
    "I32": DType.I32,
    "I16": DType.I16,
    "I8": DType.I8,
    "U8": DType.U8,
    "BOOL": DType.BOOL,
}
_NAMES: Final = {dtype: label for label, dtype in LABELS.items()}


def read_catalog(source: ByteSource) -> Catalog:
    """Read which tensors a safetensors file holds and where; no weight is read.

    Raises:
        TruncatedFile: the file is shorter than its header says.
        BadHeader: the header contradicts the format, itself or the file's size.
    """
    catalog, end = read_part(source)
    where = str(source.path)
    if end > source.nbytes:
        raise TruncatedFile(
            f"expected {end} bytes, got {source.nbytes}",
            where=where,
            hint="fetch or copy the file again",
        )
    if end < source.nbytes:
        raise BadHeader(f"tensors end at byte {end}, the file at {source.nbytes}", where=where)
    return catalog


def read_part(source: ByteSource) -> tuple[Catalog, int]:
    """Read the header of a file whose data may not be here yet; give also where they will end.

    Raises:
        TruncatedFile: not even the header is here.
        BadHeader: the header contradicts the format or itself.
    """
    where = str(source.path)
    header, start = _read_header(source)
    metadata = _metadata(header.pop("__metadata__", {}), where)
    check_count(len(header), "tensors", where)
    tensors: dict[str, TensorInfo] = {}
    extents: dict[str, Extent] = {}
    for name, fields in header.items():
        info, (begin, end) = _entry(name, fields, where)
        if end - begin != info.nbytes:
            raise BadHeader(
                f"tensor {shown(name)} has {end - begin} bytes of data, its shape and type need "
                f"{info.nbytes}",
                where=where,
            )
        tensors[name] = info
        extents[name] = Extent(source.path, start + begin, end - begin)
    end = max((extent.end for extent in extents.values()), default=start)
    check_tiling(extents.items(), start, end, where)
    return Catalog("safetensors", tensors, extents, metadata), end


def read_index(raw: bytes, where: str) -> dict[str, str]:
    """Read ``weight_map`` of a model.safetensors.index.json: tensor name to file name.

    Raises:
        BadHeader: not such an index, or a file name that is a path.
    """
    weight_map = strict_json.read_object(raw, where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadHeader("has no weight_map", where=where)
    for name, file_name in weight_map.items():
        check_name(name, where)
        if not isinstance(file_name, str) or not _is_plain_file_name(file_name):
            raise BadHeader(
                f"puts tensor {shown(name)} in {shown(file_name)}, which is not a plain file name",
                where=where,
            )
    return weight_map


def _is_plain_file_name(name: str) -> bool:
    return (
        name.endswith(".safetensors")
        and name.isprintable()
        and len(name.encode()) <= 255  # noqa: PLR2004  # NAME_MAX of every file system here
        and not set(name) & set("/\\:")
    )


def _read_header(source: ByteSource) -> tuple[dict[str, Any], int]:
    where = str(source.path)
    if source.nbytes < _PREFIX:
        raise TruncatedFile(f"{source.nbytes} bytes are no safetensors file", where=where)
    nbytes = int.from_bytes(source.pread(0, _PREFIX), "little")
    check_count(nbytes, "bytes of header", where, strict_json.MAX_NBYTES)
    start = _PREFIX + nbytes
    if start > source.nbytes:
        raise TruncatedFile(
            f"a header of {nbytes} bytes in a file of {source.nbytes}",
            where=where,
            hint="fetch or copy the file again",
        )
    raw = source.pread(_PREFIX, nbytes)
    if not raw.startswith(b"{") or not raw.rstrip(b" ").endswith(b"}"):
        raise BadHeader("the header is not a JSON object padded with spaces", where=where)
    return strict_json.read_object(raw, where), start


def _metadata(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadHeader("__metadata__ is not an object of texts", where=where)
    return value


def _entry(name: str, fields: object, where: str) -> tuple[TensorInfo, tuple[int, int]]:
    match fields:
        case {"dtype": str(label), "shape": list(shape), "data_offsets": [begin, end], **rest}:
            numbers = (*shape, begin, end)
            if rest or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
                raise BadHeader(f"tensor {shown(name)} has odd fields or numbers", where=where)
        case _:
            raise BadHeader(f"tensor {shown(name)} lacks dtype, shape or data_offsets", where=where)
    if label not in LABELS:
        raise BadHeader(f"tensor {shown(name)} has the type {shown(label)}", where=where)
    if begin > end:
        raise BadHeader(f"tensor {shown(name)} ends before it begins", where=where)
    return check_info(name, LABELS[label], tuple(shape), where), (begin, end)


class SafetensorsSink:
    """A safetensors file being written: the header first, since every shape is known."""

    def __init__(
        self,
        path: Path,
        infos: Sequence[TensorInfo],
        metadata: Mapping[str, object],
        into: OutputFile | None = None,
    ) -> None:
        header = _write_header(infos, metadata)
        self._output = Output(path, infos, into)
        self._output.append(header)

    def write(self, name: str, chunks: Iterable[Buffer]) -> None:
        """Write the bytes of one tensor, in the announced order."""
        self._output.copy(self._output.next_tensor(name), chunks)

    def close(self) -> None:
        """Flush and sync."""
        self._output.finish()


def _write_header(infos: Sequence[TensorInfo], metadata: Mapping[str, object]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for info in infos:
        if info.name in header or info.dtype not in _NAMES:
            raise MoetoolError(f"{info.name} comes twice, or as {info.dtype.label}")
        end = position + info.nbytes
        header[info.name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _PREFIX)
    return len(raw).to_bytes(_PREFIX, "little") + raw
