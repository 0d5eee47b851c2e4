r"""Arrays of floats in .npy files, read and written by hand: numpy need not be installed.

    b"\x93NUMPY"  version, 2 bytes   length of the header, 2 bytes, 4 from version 2 on
    {'descr': '<f4', 'fortran_order': False, 'shape': (910, 32000), }      the values

numpy/numpy: numpy/lib/format.py. Arrays of Python objects would be pickles: they are refused, as
is everything else but three types of floats, little end first, row-major.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moetool.convert.stream import to_bytes
from moetool.errors import BadHeader, ReadFailed, TruncatedFile
from moetool.formats.rules import shown

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 4096
LARGEST = 4 << 30  # bytes of values: 32 k tokens of a vocabulary of 32 k, in float32
TYPES = {"<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64}
INTEGERS = {"|i1": torch.int8, "<i2": torch.int16, "<i4": torch.int32}  # written only
_ITEM = re.compile(
    r"\s*'(descr|fortran_order|shape)'\s*:\s*('[^']{0,16}'|True|False|\([\d, ]{0,64}\))\s*,?"
)


def read_floats(path: Path) -> Tensor:
    """Read an array, as float32.

    Raises:
        ReadFailed: the file cannot be read.
        BadHeader: it is no .npy file, or one of another kind.
        TruncatedFile: it holds fewer or more values than its header says.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC) + 2)
            wide = len(head) == len(MAGIC) + 2 and head[len(MAGIC)] > 1
            length = file.read(4 if wide else 2)
            if not head.startswith(MAGIC) or len(length) < (4 if wide else 2):
                raise BadHeader("no .npy file", where=where)
            (size,) = struct.unpack("<I" if wide else "<H", length)
            dtype, shape = _parse(file.read(min(size, LONGEST_HEADER + 1)), where)
            nbytes = torch.Size(shape).numel() * dtype.itemsize
            values = bytearray(file.read(min(nbytes, LARGEST) + 1))
    except OSError as error:
        raise ReadFailed(error.strerror or "cannot be read", where=where) from error
    if len(values) != nbytes:
        less = "fewer" if len(values) < nbytes else "more"
        raise TruncatedFile(f"{less} values than shape {shape} has", where=where)
    return torch.frombuffer(values, dtype=dtype).view(shape).float()


def _parse(header: bytes, where: str) -> tuple[torch.dtype, tuple[int, ...]]:
    """Type and shape, of a header that names each of its three items once and nothing else."""
    text = header.decode("latin-1").strip()
    items = _ITEM.findall(text[1:-1])
    found = dict(items)
    if (
        len(header) > LONGEST_HEADER
        or text[:1] + text[-1:] != "{}"
        or _ITEM.sub("", text[1:-1]).strip()
        or not len(items) == len(found) == 3  # noqa: PLR2004  # descr, fortran_order, shape
        or not re.fullmatch(r"\((\d{1,15}, ?)*\d{0,15}\)", found["shape"])
    ):
        raise BadHeader(f"a .npy header that is not numpy's: {shown(text)[:80]}", where=where)
    kind = found["descr"].strip("'")
    if kind not in TYPES or found["fortran_order"] != "False":
        order = "column-major" if found["fortran_order"] == "True" else "row-major"
        raise BadHeader(
            f"values of type {shown(kind)}, {order}; expected row-major {', '.join(TYPES)}",
            where=where,
            hint="numpy.save(path, numpy.ascontiguousarray(logits, dtype='<f4'))",
        )
    shape = tuple(int(n) for n in re.findall(r"\d+", found["shape"]))
    if 0 in shape or not shape:
        raise BadHeader(f"shape {shape} holds no logits", where=where)
    return TYPES[kind], shape


def write_floats(path: Path, values: Tensor) -> None:
    """Write an array as float32."""
    path.write_bytes(to_npy(values.float()))


def to_npy(values: Tensor) -> bytes:
    """The bytes of a .npy file with an array of small integers or floats."""
    kinds = {made: kind for kind, made in (INTEGERS | TYPES).items()}
    shape = ", ".join(map(str, values.shape)) + ("," if values.dim() == 1 else "")
    text = f"{{'descr': '{kinds[values.dtype]}', 'fortran_order': False, 'shape': ({shape}), }}"
    text += " " * (-(len(MAGIC) + 4 + len(text) + 1) % 64) + "\n"  # numpy aligns the values so
    head = MAGIC + bytes([1, 0]) + struct.pack("<H", len(text)) + text.encode()
    return head + bytes(to_bytes(values))
