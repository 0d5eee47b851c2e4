"""The zip container: what torch writes is read, what two readers could read differently is not."""

from __future__ import annotations

import zipfile

import pytest

from moetool.errors import BadHeader, FormatError
from moetool.extents import LocalFile
from moetool.formats.zip64 import read_members


def members_of(path):
    with LocalFile(path) as file:
        return read_members(file)


def write(path, *members, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def test_members_are_found_below_their_root(tmp_path):
    """Root, names, offsets and sizes."""
    path = write(tmp_path / "x", ("r/a", b"one"), ("r/data/0", b"two!"))
    root, members = members_of(path)
    raw = path.read_bytes()
    assert root == "r"
    assert {n: raw[m.offset : m.offset + m.nbytes] for n, m in members.items()} == {
        "a": b"one",
        "data/0": b"two!",
    }


def test_descriptors_behind_the_data_are_read(tmp_path):
    """A writer that cannot seek puts size and CRC behind the data."""

    class Pipe:
        def __init__(self, file):
            self.write, self.flush = file.write, file.flush

    path = tmp_path / "x"
    with path.open("wb") as out, zipfile.ZipFile(Pipe(out), "w") as file:
        file.writestr("r/a", b"one")
        file.writestr("r/b", b"three")
    assert {m.nbytes for m in members_of(path)[1].values()} == {3, 5}


def test_a_zip64_member_is_read(tmp_path):
    """A local header with 64-bit sizes."""
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w") as file, file.open("r/a", "w", force_zip64=True) as member:
        member.write(b"one")
    assert members_of(path)[1]["a"].nbytes == 3


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["r/data/0", "r/DATA/0"], "doubled"),
        (["r/a", "s/a"], "2 folders"),
        (["a"], "no folder"),
        (["r/../../x"], "hostile name"),
        (["/r/a"], "hostile name"),
        (["r//a"], "hostile name"),
        (["r/."], "hostile name"),
        (["r/a/"], "hostile name"),
        (["r/a\\b"], "hostile name"),
        (["r/a\x1b[31m"], "hostile name"),
        (["r/\u202egpj"], "hostile name"),
    ],
)
def test_names_that_deceive_are_refused(tmp_path, names, what):
    """No doubles when case is ignored, one folder, no way out of it, nothing unprintable."""
    path = write(tmp_path / "x", *((name, b"1") for name in names))
    with pytest.raises(BadHeader, match=what):
        members_of(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_doubled_name_is_refused(tmp_path):
    """torch takes one, Python the other."""
    path = write(tmp_path / "x", ("r/a", b"1"), ("r/a", b"2"))
    with pytest.raises(BadHeader, match="doubled"):
        members_of(path)


def test_compressed_members_are_refused(tmp_path):
    """200 kB of deflate can be 200 MB of zeros."""
    path = write(tmp_path / "x", ("r/a", bytes(1000)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadHeader, match=r"compressed \(method 8\)"):
        members_of(path)


def test_a_link_is_refused(tmp_path):
    """A symbolic link, as Info-ZIP would unpack it."""
    info = zipfile.ZipInfo("r/a")
    info.external_attr = 0o120777 << 16
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, b"/etc/passwd")
    with pytest.raises(BadHeader, match="contradictory"):
        members_of(path)


@pytest.mark.parametrize(
    "surround", [lambda b: b"x" + b, lambda b: b + b"x", lambda b: b + bytes(9)]
)
def test_bytes_around_the_archive_are_refused(tmp_path, surround):
    """Nothing before the first member, nothing behind the end record."""
    path = write(tmp_path / "x", ("r/a", b"1"))
    path.write_bytes(surround(path.read_bytes()))
    with pytest.raises(FormatError):
        members_of(path)


def test_a_comment_is_refused(tmp_path):
    """A comment can hold another archive."""
    path = write(tmp_path / "x", ("r/a", b"1"))
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"PK"
    with pytest.raises(FormatError):
        members_of(path)


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        pytest.param(("start", 30), b"R", "in its local header", id="local name"),
        pytest.param(("start", 6), b"\x01", "in its local header", id="local flags"),
        pytest.param(("start", 8), b"\x08", "in its local header", id="local method"),
        pytest.param(("start", 14), b"\xff", "contradicts", id="local CRC"),
        pytest.param(("start", 18), b"\x09", "contradicts", id="local packed size"),
        pytest.param(("start", 22), b"\x09", "contradicts", id="local size"),
        pytest.param(
            ("start", 28), b"\x09", "overlaps|strange extra|contradicts", id="local extra"
        ),
        pytest.param(("start", 0), b"X", "no local header", id="local signature"),
        pytest.param(("central", 8), b"\x01", "flags 0x0001", id="encrypted"),
        pytest.param(("central", 8), b"\x20", "flags 0x0020", id="patched data"),
        pytest.param(("central", 16), b"\xff", "contradicts", id="CRC"),
        pytest.param(("central", 20), b"\x01", "contradictory sizes", id="packed size"),
        pytest.param(("central", 42), b"\x01", "before the first", id="offset"),
        pytest.param(("central", 46), b"R", "folder|local header", id="name"),
        pytest.param(("end", -12), b"\x03", "fewer|contradict|directory", id="count"),
        pytest.param(("end", -18), b"\x01", "contradict", id="disk"),
        pytest.param(("end", -6), b"\x01", "does not end", id="directory offset"),
    ],
)
def test_every_field_that_is_doubled_must_agree(tmp_path, place, value, what):
    """One byte changed in a local header, the directory or the end record is refused."""
    path = write(tmp_path / "x", ("r/a", b"content"), ("r/b", b"more"))
    raw = bytearray(path.read_bytes())
    anchor, offset = place
    at = {"start": 0, "central": raw.index(b"PK\x01\x02"), "end": len(raw)}[anchor] + offset
    assert raw[at : at + 1] != value
    raw[at : at + 1] = value
    path.write_bytes(raw)
    with pytest.raises(BadHeader, match=what):
        members_of(path)


def test_bytes_hidden_between_members_are_refused(tmp_path):
    """The members tile the file; a gap could hold anything."""
    path = write(tmp_path / "x", ("r/a", b"1"), ("r/b", b"22"))
    with zipfile.ZipFile(path, "a") as file:
        file.fp.seek(file.start_dir)
        file.fp.write(b"hidden")
        file.start_dir += 6
        file.writestr("r/c", b"3")
    with pytest.raises(BadHeader, match="hidden"):
        members_of(path)
