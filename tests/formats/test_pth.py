"""Reading torch.save files: views of storages become ranges of the file."""

from __future__ import annotations

import zipfile
import zlib

import pytest

from moetool.errors import BadHeader, DigestMismatch, TruncatedFile, UnsafePickle
from moetool.extents import LocalFile
from moetool.formats.pth import read_catalog
from moetool.tensors import DType, TensorInfo

FLOATS = bytes(range(96))  # 24 f32


def tensor_pickle(tensors: dict[str, tuple[str, int, tuple, tuple, int]]) -> bytes:
    """A state dict as torch pickles it: name -> (key, offset, shape, stride, numel), all f32."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return b"X" + len(raw).to_bytes(4, "little") + raw

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    parts = [b"\x80\x02}"]
    for name, (key, offset, shape, stride, numel) in tensors.items():
        parts += [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", text("storage")]
        parts += [b"ctorch\nFloatStorage\n", text(key), text("cpu"), number(numel), b"tQ"]
        parts += [number(offset), b"(", *map(number, shape), b"t(", *map(number, stride)]
        parts += [b"t\x89ccollections\nOrderedDict\n)RtRs"]
    return b"".join(parts) + b"."


def archive(path, pickle: bytes, storages: dict[str, bytes], **members: bytes):
    """A torch.save file written by Python's zipfile."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("root/data.pkl", pickle)
        for name, content in {"byteorder": b"little", "version": b"3\n", **members}.items():
            file.writestr(f"root/{name}", content)
        for key, content in storages.items():
            file.writestr(f"root/data/{key}", content)
    return path


def catalog_of(path):
    with LocalFile(path) as file:
        return read_catalog(file)


def test_tensors_are_ranges_of_the_file(tmp_path):
    """Name, dtype, shape and bytes come out as they were put in."""
    pickle = tensor_pickle({"a": ("0", 0, (4, 6), (6, 1), 24)})
    path = archive(tmp_path / "x.pth", pickle, {"0": FLOATS})
    catalog = catalog_of(path)
    extent = catalog.extents["a"]
    assert catalog.format == "pth"
    assert catalog.tensors == {"a": TensorInfo("a", DType.F32, (4, 6))}
    assert path.read_bytes()[extent.offset : extent.end] == FLOATS
    assert catalog.metadata == {"torch.byteorder": "little", "torch.version": "3"}


def test_slices_of_one_storage_keep_their_places(tmp_path):
    """Two tensors on one storage are two ranges of one member."""
    pickle = tensor_pickle(
        {"a": ("0", 0, (2, 6), (6, 1), 24), "b": ("0", 12, (12,), (1,), 24)},
    )
    path = archive(tmp_path / "x.pth", pickle, {"0": FLOATS})
    catalog = catalog_of(path)
    raw = path.read_bytes()
    assert [raw[e.offset : e.end] for e in catalog.extents.values()] == [FLOATS[:48], FLOATS[48:]]


def test_every_member_carries_its_crc_as_a_claim(tmp_path):
    """The claims of the zip are true of the bytes they point at."""
    pickle = tensor_pickle({"a": ("0", 0, (24,), (1,), 24)})
    path = archive(tmp_path / "x.pth", pickle, {"0": FLOATS})
    raw, claims = path.read_bytes(), catalog_of(path).claims
    assert "zip CRC-32#data/0" in {claim.reference for claim in claims}
    for claim in claims:
        (extent,) = claim.extents
        assert claim.digest.hex == f"{zlib.crc32(raw[extent.offset : extent.end]):08x}"


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((), ()), ((1, 24), (5, 1)), ((24, 1), (1, 9)), ((0, 7), (1, 1)), ((2, 3, 4), (12, 4, 1))],
)
def test_row_major_shapes_are_taken(tmp_path, shape, stride):
    """The stride of a dimension of one, or of an empty tensor, does not matter."""
    pickle = tensor_pickle({"a": ("0", 0, shape, stride, 24)})
    path = archive(tmp_path / "x.pth", pickle, {"0": FLOATS})
    assert catalog_of(path).tensors["a"].shape == shape


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (("0", 0, (6, 4), (1, 6), 24), "not stored row by row"),
        (("0", 0, (6, 4), (0, 0), 24), "not stored row by row"),
        (("0", 1, (24,), (1,), 24), "beyond its storage"),
        (("0", 0, (25,), (1,), 24), "beyond its storage"),
        (("0", 0, (1,), (1,), 23), "needs data/'0' of 92 bytes"),
        (("0", 0, (1,), (1,), 25), "needs data/'0' of 100 bytes"),
        (("7", 0, (1,), (1,), 24), "no such member"),
        (("../0", 0, (1,), (1,), 24), "no such member"),
    ],
)
def test_impossible_views_are_refused(tmp_path, tensor, what):
    """A view must be row by row, within its storage, and the storage of the size it is said."""
    path = archive(tmp_path / "x.pth", tensor_pickle({"a": tensor}), {"0": FLOATS})
    with pytest.raises(BadHeader, match=what):
        catalog_of(path)


def test_a_big_endian_file_is_refused(tmp_path):
    """torch would swap the bytes silently."""
    pickle = tensor_pickle({})
    with pytest.raises(BadHeader, match="byteorder is 'big'"):
        catalog_of(archive(tmp_path / "x.pth", pickle, {}, byteorder=b"big"))


def test_damage_in_the_pickle_is_found_before_it_is_interpreted(tmp_path):
    """A flipped bit in data.pkl is a digest that differs, not a strange opcode."""
    pickle = tensor_pickle({"a": ("0", 0, (24,), (1,), 24)})
    path = archive(tmp_path / "x.pth", pickle, {"0": FLOATS})
    raw = bytearray(path.read_bytes())
    raw[raw.index(pickle) + 5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DigestMismatch, match=r"'data\.pkl' has CRC-32"):
        catalog_of(path)


def test_the_form_before_torch_1_6_is_named(tmp_path):
    """A bare pickle is refused with what it is and what to do."""
    path = tmp_path / "old.pth"
    path.write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    with pytest.raises(UnsafePickle, match=r"before torch 1\.6"):
        catalog_of(path)


@pytest.mark.parametrize("cut", [0, 10, 100, -1])
def test_a_cut_file_is_called_cut(tmp_path, cut):
    """A file without its end record is truncated."""
    pickle = tensor_pickle({"a": ("0", 0, (24,), (1,), 24)})
    path = archive(tmp_path / "x.pth", pickle, {"0": FLOATS})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TruncatedFile, match="cut short"):
        catalog_of(path)
