"""A torch.save file (.pth, .pt): a zip of storages and a pickle that names views of them.

    <root>/data.pkl     dict: name -> (storage key, offset, shape, stride); see unpickler.py
    <root>/byteorder    "little"
    <root>/data/<key>   one storage: raw little-endian elements
    <root>/version      "3"

One storage may hold several tensors (Mixtral's CI copy does), so a tensor is a range of a member.
torch never checks the zip's CRC-32s; here they are claims, which verify and convert settle, and
those of the small members are settled before a byte of them is interpreted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zlib_ng import zlib_ng

from moetool.errors import BadHeader, DigestMismatch, UnsafePickle
from moetool.extents import Claim, Digest, Extent
from moetool.formats.rules import check_count, check_info, shown
from moetool.formats.unpickler import MAX_PICKLE, StoredTensor, read_state_dict
from moetool.formats.zip64 import read_members
from moetool.tensors import Catalog

if TYPE_CHECKING:
    from moetool.extents import ByteSource
    from moetool.formats.zip64 import Member
    from moetool.tensors import TensorInfo

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_MAX_SMALL = 4096  # bytes of byteorder, version and their like
_SMALL = {"byteorder": frozenset({"little"}), "version": frozenset({"2", "3"})}


def read_catalog(source: ByteSource, *, far: bool = False, claimed: bool = False) -> Catalog:
    """Read which tensors a torch.save file holds and where; no weight is read.

    ``far``: the bytes come over a network, so the local zip headers between the weights are left
    unread. The places of the weights are then assumed, and nothing is claimed of them, unless
    ``claimed``: for who reads the weights as well, and all headers once they are here.

    Raises:
        UnsafePickle: the pickle asks for more than tensors in a dictionary.
        DigestMismatch: the pickle is not the one the zip promises.
        BadHeader, TruncatedFile: the container or a tensor contradicts itself.
    """
    where = str(source.path)
    if source.nbytes >= len(_LEGACY_MAGIC) and source.pread(0, 15) == _LEGACY_MAGIC:
        raise UnsafePickle(
            "a torch.save file of the form before torch 1.6, which is a bare pickle",
            where=where,
            hint="load and torch.save it anew on a machine where you trust it",
        )
    root, members = read_members(source, {"data.pkl", *_SMALL} if far else None)
    metadata = _small_members(source, members)
    if "data.pkl" not in members:
        raise BadHeader(f"the zip has no {shown(root)}/data.pkl", where=where)
    check_count(members["data.pkl"].nbytes, "bytes of pickle", where, MAX_PICKLE)
    stored = read_state_dict(_read_checked(source, members["data.pkl"]), where)
    check_count(len(stored), "tensors", where)
    tensors: dict[str, TensorInfo] = {}
    extents: dict[str, Extent] = {}
    for name, tensor in stored.items():
        tensors[name] = check_info(name, tensor.storage.dtype, tensor.shape, where)
        extents[name] = _extent(source, members, tensors[name], tensor)
    _check_one_dtype_per_storage(stored, where)
    settled = () if far and not claimed else members.values()
    claims = tuple(_claim(source, member) for member in settled if member.nbytes)
    return Catalog("pth", tensors, extents, metadata, claims)


def _small_members(source: ByteSource, members: dict[str, Member]) -> dict[str, object]:
    """Read byteorder and version; a file for big-endian machines would be silently swapped."""
    found: dict[str, object] = {}
    for name, allowed in _SMALL.items():
        member = members.get(name)
        if member is None:
            continue  # torch 1.x wrote no byteorder
        check_count(member.nbytes, f"bytes of {name}", str(source.path), _MAX_SMALL)
        value = _read_checked(source, member).decode("ascii", "replace").strip()
        if value not in allowed:
            raise BadHeader(f"{name} is {shown(value)}, not supported", where=str(source.path))
        found[f"torch.{name}"] = value
    return found


def _read_checked(source: ByteSource, member: Member) -> bytes:
    content = source.pread(member.offset, member.nbytes)
    if zlib_ng.crc32(content) != member.crc32:
        raise DigestMismatch(
            f"{shown(member.name)} has CRC-32 {zlib_ng.crc32(content):08x}, "
            f"the zip promises {member.crc32:08x}",
            where=str(source.path),
            hint="the file is damaged; fetch or copy it again",
        )
    return content


def _extent(
    source: ByteSource, members: dict[str, Member], info: TensorInfo, tensor: StoredTensor
) -> Extent:
    where, storage = str(source.path), tensor.storage
    member = members.get(f"data/{storage.key}")
    itemsize = storage.dtype.type_size
    if member is None or member.nbytes != storage.numel * itemsize:
        raise BadHeader(
            f"tensor {shown(info.name)} needs data/{shown(storage.key)} of "
            f"{storage.numel * itemsize} bytes, the zip has "
            f"{'no such member' if member is None else f'{member.nbytes} bytes'}",
            where=where,
        )
    if not _is_row_major(tensor):
        raise BadHeader(
            f"tensor {shown(info.name)} is not stored row by row: shape {tensor.shape}, "
            f"stride {tensor.stride}",
            where=where,
            hint="call .contiguous() on it and torch.save it anew",
        )
    if (tensor.offset + info.numel) > storage.numel:
        raise BadHeader(f"tensor {shown(info.name)} reaches beyond its storage", where=where)
    return Extent(source.path, member.offset + tensor.offset * itemsize, info.nbytes)


def _is_row_major(tensor: StoredTensor) -> bool:
    """True if elements follow each other; the stride of a dimension of 1 is never used."""
    if 0 in tensor.shape:
        return True
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _check_one_dtype_per_storage(stored: dict[str, StoredTensor], where: str) -> None:
    kinds = {(tensor.storage.key, tensor.storage.dtype) for tensor in stored.values()}
    if len(kinds) != len({key for key, _ in kinds}):
        raise BadHeader("one storage is viewed as two types of number", where=where)


def _claim(source: ByteSource, member: Member) -> Claim:
    extent = Extent(source.path, member.offset, member.nbytes)
    return Claim((extent,), Digest("crc32", f"{member.crc32:08x}"), f"zip CRC-32#{member.name}")
