"""The zip container as torch writes it: stored members, one folder, nothing hidden.

    local header 30 | name | extra (zip64, then FB = padding to 64) | data | descriptor 16 or 24
    ... the next member, without a gap ...
    central directory | zip64 end 56 | zip64 locator 20 | end 22

torch reads the central directory and ignores case; Python's zipfile minds case; `unzip` trusts
local headers. A file that means different things to different readers is refused here: every local
header must say what the directory says, and the members must tile the file from byte 0.
Source: pytorch/pytorch: caffe2/serialize/inline_container.cc; PKWARE APPNOTE 4.3.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.errors import BadHeader, NotFetched, TruncatedFile
from moetool.formats.rules import check_count, shown
from moetool.formats.zip_records import (
    CENTRAL,
    CENTRAL_SIG,
    DESCRIPTOR,
    DESCRIPTOR64,
    END,
    END64,
    END64_SIG,
    END_SIG,
    FLAG_DESCRIPTOR,
    FLAG_UTF8,
    FULL16,
    FULL32,
    LOCAL,
    LOCAL_SIG,
    LOCATOR,
    LOCATOR_SIG,
    ZIP64_EXTRA,
    read_descriptor,
    read_extras,
    zip64_values,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from moetool.extents import ByteSource

_MAX_MEMBERS = 80_000
_MAX_DIRECTORY = 32 << 20
_LINK = 0xA  # S_IFLNK: Info-ZIP keeps the Unix mode in the upper half of the attributes
_HEAD_GUESS = 224  # a local header with name and padding; one read for nearly all members
_ALIGNMENT = 64  # torch pads local headers so that data begin at a multiple of it
_MOST_AROUND = 2 * FULL16 + DESCRIPTOR64.size  # name, extra fields and descriptor of one member
BEFORE_NBYTES, BEHIND_NBYTES = 256, DESCRIPTOR64.size
"""The bytes around a member of torch's in which its local header and descriptor lie."""
END_NBYTES = END.size + LOCATOR.size + END64.size
"""The bytes at a file's end that tell where the central directory lies."""


@dataclass(frozen=True, slots=True)
class Member:
    """One stored member: name without the root folder, and where its data lie in the file."""

    name: str
    offset: int
    nbytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the central directory."""

    name: bytes
    flags: int
    crc32: int
    nbytes: int
    header_offset: int


@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the central directory lies and how many entries it has."""

    offset: int
    nbytes: int
    count: int


def read_members(
    source: ByteSource, visited: Container[str] | None = None
) -> tuple[str, dict[str, Member]]:
    """Read the archive's root folder and its members by name below that folder.

    ``visited`` names the members whose local headers are read, by default all of them. For a file
    that is far away, those between the weights would cost a request each; the data of the others
    are then placed by the central directory alone.

    Raises:
        TruncatedFile: there is no end record: the file is cut, or not a zip.
        BadHeader: anything that two zip readers could understand differently.
    """
    where = str(source.path)
    directory = _find_directory(source)
    check_count(directory.count, "zip members", where, _MAX_MEMBERS)
    check_count(directory.nbytes, "bytes of zip directory", where, _MAX_DIRECTORY)
    raw = source.pread(directory.offset, directory.nbytes)
    entries = sorted(_entries(raw, directory.count, where), key=lambda entry: entry.header_offset)
    if not entries or entries[0].header_offset != 0:
        raise BadHeader("there are bytes before the first zip member", where=where)
    root, names = _names_below_root(entries, where)
    ends = [entry.header_offset for entry in entries[1:]] + [directory.offset]
    members = {
        name: Member(
            name,
            _place(source, entry, end, is_visited=visited is None or name in visited),
            entry.nbytes,
            entry.crc32,
        )
        for name, entry, end in zip(names, entries, ends, strict=True)
    }
    return root, members


def _find_directory(source: ByteSource) -> _Directory:
    where, size = str(source.path), source.nbytes
    tail = source.pread(max(0, size - END_NBYTES), min(size, END_NBYTES))
    if len(tail) < END.size or tail[-END.size :][:4] != END_SIG:
        raise TruncatedFile(
            f"no zip end record at byte {size}: cut short, not a zip, or with bytes appended",
            where=where,
            hint="compare its size with the release's; fetch it again, or torch.save it anew",
        )
    _, disk, first_disk, here, count, nbytes, offset, comment = END.unpack(tail[-END.size :])
    end = size - END.size
    if tail[:4] == END64_SIG and tail[END64.size :][:4] == LOCATOR_SIG:
        end = size - END_NBYTES
        directory = _directory64(tail, end, where)
        # Each field of the old record is either full (see the new one) or says the same.
        pairs = ((here, directory.count), (count, directory.count))
        agree = all(old in {FULL16, new} for old, new in pairs) and all(
            old in {FULL32, new}
            for old, new in ((nbytes, directory.nbytes), (offset, directory.offset))
        )
    else:
        directory = _Directory(offset, nbytes, count)
        agree = here == count and FULL32 not in {nbytes, offset} and count != FULL16
    if disk or first_disk or comment or not agree:
        raise BadHeader("the zip end records contradict each other", where=where)
    if directory.offset + directory.nbytes != end:
        raise BadHeader("the zip directory does not end where the end record begins", where=where)
    return directory


def _directory64(tail: bytes, end: int, where: str) -> _Directory:
    _, rest, _, _, disk, first_disk, here, count, nbytes, offset = END64.unpack(tail[: END64.size])
    _, locator_disk, end_offset, disks = LOCATOR.unpack_from(tail, END64.size)
    # torch's writer says 0 or 1 disks of zip64; both mean "this file".
    one_file = not (disk or first_disk or locator_disk) and disks <= 1
    if rest != END64.size - 12 or end_offset != end or here != count or not one_file:
        raise BadHeader("the zip64 end record contradicts its place", where=where)
    return _Directory(offset, nbytes, count)


def _entries(raw: bytes, count: int, where: str) -> Iterator[_Entry]:
    position = 0
    for _ in range(count):
        if position + CENTRAL.size > len(raw):
            raise BadHeader("the zip directory holds fewer members than it says", where=where)
        entry, position = _entry(raw, position, where)
        yield entry
    if position != len(raw):
        raise BadHeader("the zip directory holds more than its members", where=where)


def _entry(raw: bytes, position: int, where: str) -> tuple[_Entry, int]:
    fields = CENTRAL.unpack_from(raw, position)
    signature, _, _, flags, method, _, _, crc, packed, nbytes = fields[:10]
    name_nbytes, extra_nbytes, comment, disk, _, attributes, offset = fields[10:]
    start = position + CENTRAL.size
    name = raw[start : start + name_nbytes]
    extra = raw[start + name_nbytes : start + name_nbytes + extra_nbytes]
    if (
        signature != CENTRAL_SIG
        or comment
        or disk
        or len(name) + len(extra) != (name_nbytes + extra_nbytes)
    ):
        raise BadHeader(f"the zip directory is malformed at its byte {position}", where=where)
    wide = zip64_values(read_extras(extra, where).get(ZIP64_EXTRA, b""))
    nbytes, packed, offset = (
        next(wide, -1) if value == FULL32 else value for value in (nbytes, packed, offset)
    )
    _refuse_unusual(name, flags, method, where)
    is_link = attributes >> 28 == _LINK
    if nbytes != packed or min(nbytes, offset) < 0 or is_link or next(wide, None) is not None:
        raise BadHeader(f"zip member {shown(name)} has contradictory sizes", where=where)
    return _Entry(name, flags, crc, nbytes, offset), start + name_nbytes + extra_nbytes


def _refuse_unusual(name: bytes, flags: int, method: int, where: str) -> None:
    if method != 0:
        raise BadHeader(
            f"zip member {shown(name)} is compressed (method {method})",
            where=where,
            hint="checkpoints are stored; unpack and torch.save it anew if you trust it",
        )
    if flags & ~(FLAG_DESCRIPTOR | FLAG_UTF8):
        raise BadHeader(f"zip member {shown(name)} has flags {flags:#06x}", where=where)


def _names_below_root(entries: list[_Entry], where: str) -> tuple[str, list[str]]:
    roots, names, folded = set(), [], set()
    for entry in entries:
        try:
            full = entry.name.decode("utf-8")
        except UnicodeDecodeError:
            raise BadHeader(f"zip member {shown(entry.name)} is not UTF-8", where=where) from None
        root, _, name = full.partition("/")
        parts = full.split("/")
        if not full.isprintable() or "\\" in full or not {"", ".", ".."}.isdisjoint(parts):
            raise BadHeader(f"zip member {shown(full)} has a hostile name", where=where)
        if not name or full.casefold() in folded:
            # torch finds members without regard to case, so DATA/0 and data/0 are one name.
            raise BadHeader(f"zip member {shown(full)} is doubled or has no folder", where=where)
        folded.add(full.casefold())
        roots.add(root)
        names.append(name)
    if len(roots) != 1:
        found = ", ".join(shown(root) for root in sorted(roots)[:4])
        raise BadHeader(f"the zip holds {len(roots)} folders: {found}", where=where)
    return roots.pop(), names


def _place(source: ByteSource, entry: _Entry, end: int, *, is_visited: bool) -> int:
    """Where a member's data begin: by all headers, or by the directory where one was not fetched.

    Of a partial release, too, no weight is read but those that were fetched and hashed.
    """
    if is_visited:
        with suppress(NotFetched):
            return _data_offset(source, entry, end)
    return _assumed_offset(entry, end, str(source.path))


def _data_offset(source: ByteSource, entry: _Entry, end: int) -> int:
    """Where a member's data begin, once all that surrounds them agrees with the directory.

    ``end`` is where the next member, or the directory, begins.
    """
    local, offset = _local_header(source, entry, end)
    behind = end - offset - entry.nbytes
    promised = (entry.crc32, entry.nbytes, entry.nbytes)
    trailer = b""
    if entry.flags & FLAG_DESCRIPTOR:
        trailer = source.pread(end - behind, min(behind, DESCRIPTOR64.size + 1))
        agrees = local in {(0, 0, 0), promised} and read_descriptor(trailer) == promised
    else:
        agrees = local == promised and behind == 0
    if not agrees:
        raise _contradicted(
            f"zip member {shown(entry.name)}: its local header or descriptor contradicts the "
            "directory, or bytes lie hidden behind it",
            trailer,
            str(source.path),
        )
    return offset


def _contradicted(what: str, found: bytes, where: str) -> BadHeader:
    """The refusal of what surrounds a member; zeros there are what a hole reads as."""
    if not found or any(found):
        return BadHeader(what, where=where)
    return BadHeader(
        f"{what}: zeros lie in its place",
        where=where,
        hint="fetch it again; a part of a release must not be copied without its .moetool",
    )


def _assumed_offset(entry: _Entry, end: int, where: str) -> int:
    """Where a member's data begin, if it is one of torch's: the directory does not say.

    Data end where the next member or the descriptor before it begins; of the two forms of a
    descriptor, that is assumed which lets the data begin at a multiple of 64.
    """
    around = end - entry.header_offset - LOCAL.size - len(entry.name) - entry.nbytes
    if not 0 <= around <= _MOST_AROUND:
        raise BadHeader(
            f"zip member {shown(entry.name)} overlaps what follows, or bytes lie hidden behind it",
            where=where,
        )
    if not entry.flags & FLAG_DESCRIPTOR:
        return end - entry.nbytes
    offsets = [end - layout.size - entry.nbytes for layout in (DESCRIPTOR64, DESCRIPTOR)]
    return next((offset for offset in offsets if offset % _ALIGNMENT == 0), offsets[0])


def _local_header(source: ByteSource, entry: _Entry, end: int) -> tuple[tuple[int, ...], int]:
    """What the local header says of CRC-32 and sizes, and the offset of the data behind it."""
    where, start = str(source.path), entry.header_offset
    room = end - start
    head = source.pread(start, min(_HEAD_GUESS, room)) if room >= LOCAL.size else b""
    if head[:4] != LOCAL_SIG:
        raise _contradicted(f"no local header for zip member {shown(entry.name)}", head, where)
    _, _, flags, method, _, _, crc, *sizes, name_nbytes, extra_nbytes = LOCAL.unpack(
        head[: LOCAL.size]
    )
    nbytes = LOCAL.size + name_nbytes + extra_nbytes
    if start + nbytes + entry.nbytes > end:
        raise BadHeader(f"zip member {shown(entry.name)} overlaps what follows", where=where)
    if nbytes > len(head):
        head = source.pread(start, nbytes)
    name = head[LOCAL.size : LOCAL.size + name_nbytes]
    if (name, flags, method) != (entry.name, entry.flags, 0):
        raise BadHeader(
            f"zip member {shown(entry.name)} is {shown(name)} in its local header, or differs in "
            "flags or method",
            where=where,
        )
    extras = read_extras(head[LOCAL.size + name_nbytes : nbytes], where)
    wide = zip64_values(extras.get(ZIP64_EXTRA, b""))
    return (crc, *(next(wide, -1) if size == FULL32 else size for size in sizes)), start + nbytes
