"""The records of a zip file, byte by byte; zip64.py reads them and pth_writer.py writes them.

Source: PKWARE APPNOTE 4.3 and 4.5; the FB padding field is torch's own
(pytorch/pytorch: caffe2/serialize/inline_container.cc).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from moetool.errors import BadHeader

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL = struct.Struct("<4s5H3I2H")  # sig need flags method time date crc csize usize name extra
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
DESCRIPTOR, DESCRIPTOR64 = struct.Struct("<4s3I"), struct.Struct("<4sI2Q")
LOCAL_SIG, CENTRAL_SIG, DESCRIPTOR_SIG = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
END_SIG, END64_SIG, LOCATOR_SIG = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"

FLAG_DESCRIPTOR, FLAG_UTF8 = 0x0008, 0x0800
ZIP64_EXTRA, PADDING_EXTRA = 0x0001, 0x4246  # "FB"
# Times and owners as Info-ZIP writes them. Unicode path (0x7075) gives a member a second name.
_HARMLESS_EXTRAS = frozenset({ZIP64_EXTRA, PADDING_EXTRA, 0x5455, 0x7875})
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF


def read_extras(raw: bytes, where: str) -> dict[int, bytes]:
    """The extra fields of a member by kind; a second name for it (0x7075) is none we take."""
    blocks: dict[int, bytes] = {}
    position = 0
    while position < len(raw):
        kind = int.from_bytes(raw[position : position + 2], "little")
        nbytes = int.from_bytes(raw[position + 2 : position + 4], "little")
        block = raw[position + 4 : position + 4 + nbytes]
        position += 4 + nbytes
        if position > len(raw) or kind in blocks or kind not in _HARMLESS_EXTRAS:
            raise BadHeader(f"a zip member has a strange extra field {kind:#06x}", where=where)
        blocks[kind] = block
    return blocks


def zip64_values(block: bytes) -> Iterator[int]:
    """The 64-bit values of a zip64 field, in the order of the 32-bit fields they replace."""
    values = struct.unpack(f"<{len(block) // 8}Q", block[: len(block) // 8 * 8])
    return iter(values)


def read_descriptor(raw: bytes) -> tuple[int, ...] | None:
    """CRC-32, packed and plain size; 64-bit wherever the member's header has a zip64 field."""
    for layout in (DESCRIPTOR, DESCRIPTOR64):
        if len(raw) == layout.size and raw[:4] == DESCRIPTOR_SIG:
            return layout.unpack(raw)[1:]
    return None
