"""Write a torch.save file tensor by tensor, as torch's own writer lays it out.

Every member is stored, its data begin at a multiple of 64 (an FB extra field pads the local
header), and size and CRC-32 follow the data in a descriptor, so nothing is known beforehand and
nothing is patched afterwards. Layout: see zip64.py; the members: see pth.py.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from zlib_ng import zlib_ng

from moetool.errors import MoetoolError
from moetool.formats import zip_records
from moetool.formats.output import Output
from moetool.formats.unpickler import STORAGE_DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from moetool.formats.output import OutputFile
    from moetool.tensors import Buffer, TensorInfo

_ALIGNMENT: Final = 64
_FLAGS: Final = zip_records.FLAG_DESCRIPTOR | zip_records.FLAG_UTF8
_STORAGE_NAMES: Final = {dtype: name for name, dtype in STORAGE_DTYPES.items()}
# pytorch/pytorch: torch/serialization.py writes these before the storages.
_SMALL_MEMBERS: Final = ((".format_version", b"1"), (".storage_alignment", b"64"))


class PthSink:
    """A .pth file being written: ``root`` is the folder in the zip, by custom the file's stem."""

    def __init__(
        self,
        path: Path,
        infos: Sequence[TensorInfo],
        root: str = "consolidated.00",
        into: OutputFile | None = None,
    ) -> None:
        self._keys = {info.name: str(index) for index, info in enumerate(infos)}
        if len(self._keys) != len(infos):
            raise MoetoolError("a tensor was announced twice", where=str(path))
        pickle = write_state_dict(infos)
        self._output = Output(path, infos, into)
        self._archive = _Archive(self._output, root)
        small = (*_SMALL_MEMBERS, ("byteorder", b"little"))
        for name, content in (("data.pkl", pickle), *small):
            self._archive.add(name, content)

    def write(self, name: str, chunks: Iterable[Buffer]) -> None:
        """Write the bytes of one tensor, in the announced order."""
        info = self._output.next_tensor(name)
        self._archive.begin(f"data/{self._keys[name]}", info.nbytes)
        crc = 0

        def checked() -> Iterator[Buffer]:
            nonlocal crc
            for chunk in chunks:
                crc = zlib_ng.crc32(chunk, crc)
                yield chunk

        self._output.copy(info, checked())
        self._archive.end(crc)

    def write_hole(self, name: str) -> None:
        """Write a tensor of zeros that takes no room on disk, with the CRC-32 of those zeros."""
        info = self._output.next_tensor(name)
        self._archive.begin(f"data/{self._keys[name]}", info.nbytes)
        self._output.skip(info.nbytes)
        self._archive.end(crc32_of_zeros(info.nbytes))

    def close(self) -> None:
        """Write the directory; flush and sync."""
        self._archive.add("version", b"3\n")
        self._archive.close()
        self._output.finish()


def write_state_dict(infos: Sequence[TensorInfo]) -> bytes:
    """Write the pickle (protocol 2) of a dict of tensors, each on a storage of its own.

    Storage i is data/i. Written by hand, since the pickle module pickles only what it can import.
    """
    recall = _Memo()
    parts = [b"\x80\x02}"]
    for key, info in enumerate(infos):
        if info.dtype not in _STORAGE_NAMES:
            raise MoetoolError(f"torch has no storage type for {info.dtype.label}")
        strides = accumulate(reversed(info.shape[1:]), lambda a, b: a * max(b, 1), initial=1)
        stride = tuple(reversed(tuple(strides))) if info.shape else ()
        parts += [
            _text(info.name),
            recall(b"ctorch._utils\n_rebuild_tensor_v2\n"),
            b"((" + recall(_text("storage")),
            recall(f"ctorch\n{_STORAGE_NAMES[info.dtype]}\n".encode()),
            _text(str(key)) + recall(_text("cpu")) + _int(info.numel) + b"tQ",
            b"K\x00" + _tuple(info.shape) + _tuple(stride) + b"\x89",
            recall(b"ccollections\nOrderedDict\n") + b")RtRs",
        ]
    return b"".join((*parts, b"."))


class _Memo:
    """What was pushed once is put into the pickle's memo and recalled from there."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def __call__(self, push: bytes) -> bytes:
        if push in self._known:
            return b"h" + bytes([self._known[push]])
        index = self._known[push] = len(self._known)
        return push + b"q" + bytes([index])


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_int, values)) + b"t"


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _int(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


class _Archive:
    """A zip being appended to an `Output`; one member at a time is open."""

    def __init__(self, output: Output, root: str) -> None:
        self._output = output
        self._root = root
        self._directory: list[bytes] = []
        self._member = (b"", 0, 0)  # name, offset of its header, bytes of its data

    def add(self, name: str, content: bytes) -> None:
        """Add a whole member."""
        self.begin(name, len(content))
        self._output.append(content)
        self.end(zlib_ng.crc32(content))

    def begin(self, name: str, nbytes: int) -> None:
        """Write the local header of a member, so padded that its data are aligned."""
        raw, start = f"{self._root}/{name}".encode(), self._output.position
        self._member = (raw, start, nbytes)
        wide = self._wide()
        padding = -(start + zip_records.LOCAL.size + len(raw) + len(wide) + 4) % _ALIGNMENT
        extra = wide + struct.pack("<2H", zip_records.PADDING_EXTRA, padding) + b"Z" * padding
        header = zip_records.LOCAL.pack(
            *(zip_records.LOCAL_SIG, 0, _FLAGS, 0, 0, 0, 0, 0, 0, len(raw), len(extra))
        )
        self._output.append(header + raw + extra)

    def end(self, crc: int) -> None:
        """Write the descriptor behind a member's data and remember its line in the directory."""
        raw, start, nbytes = self._member
        wide = self._wide()
        layout = zip_records.DESCRIPTOR64 if wide else zip_records.DESCRIPTOR
        self._output.append(layout.pack(zip_records.DESCRIPTOR_SIG, crc, nbytes, nbytes))
        size, offset = min(nbytes, zip_records.FULL32), min(start, zip_records.FULL32)
        self._directory.append(
            zip_records.CENTRAL.pack(
                *(zip_records.CENTRAL_SIG, 0, 0, _FLAGS, 0, 0, 0, crc, size, size),
                *(len(raw), len(wide), 0, 0, 0, 0, offset),
            )
            + raw
            + wide
        )

    def close(self) -> None:
        """Write the central directory and the end records."""
        directory, start = b"".join(self._directory), self._output.position
        count, nbytes = len(self._directory), len(directory)
        few, small = min(count, zip_records.FULL16), min(nbytes, zip_records.FULL32)
        end64 = zip_records.END64.pack(
            *(zip_records.END64_SIG, zip_records.END64.size - 12, 0x031E, 45, 0, 0),
            *(count, count, nbytes, start),
        )
        locator = zip_records.LOCATOR.pack(zip_records.LOCATOR_SIG, 0, start + nbytes, 1)
        end = zip_records.END.pack(
            *(zip_records.END_SIG, 0, 0, few, few, small, min(start, zip_records.FULL32), 0),
        )
        self._output.append(directory + end64 + locator + end)

    def _wide(self) -> bytes:
        """The zip64 field of the open member: those of size, size, offset that need 64 bits."""
        _, start, nbytes = self._member
        values = [nbytes, nbytes] if nbytes >= zip_records.FULL32 else []
        values += [start] if start >= zip_records.FULL32 else []
        block = struct.pack(f"<{len(values)}Q", *values)
        return struct.pack("<2H", zip_records.ZIP64_EXTRA, len(block)) + block if values else b""


# zlib's CRC-32 in its usual bit-reversed form: bit 31 is x^0.
_POLYNOMIAL: Final = 0xEDB88320


def crc32_of_zeros(nbytes: int) -> int:
    """The CRC-32 of that many zero bytes, in a time that grows with the number's length only.

    A zero byte multiplies the register by x^8 modulo the polynomial, so n of them by x^(8n).
    Source: madler/zlib: crc32.c (multmodp, x2nmodp).
    """
    return _shift(0xFFFFFFFF, nbytes) ^ 0xFFFFFFFF


def crc32_combine(first: int, second: int, nbytes: int) -> int:
    """The CRC-32 of two runs of bytes from that of each; ``nbytes`` is the second's length.

    Source: madler/zlib: crc32.c (crc32_combine_).
    """
    return _shift(first, nbytes) ^ second


def _shift(register: int, nbytes: int) -> int:
    """Multiply by x^(8 nbytes), by squaring."""
    power, exponent = 1 << 23, nbytes  # bit 23 is x^8
    while exponent:
        if exponent & 1:
            register = _multiply(register, power)
        power = _multiply(power, power)
        exponent >>= 1
    return register


def _multiply(a: int, b: int) -> int:
    """Multiply two polynomials over GF(2) modulo the CRC-32 polynomial."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
