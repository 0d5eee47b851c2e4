"""GGUF headers by ggml's own rules, and the writer's way back."""

from __future__ import annotations

import struct

import pytest

from moetool.errors import BadHeader, MoetoolError, TruncatedFile
from moetool.extents import LocalFile
from moetool.formats.gguf import check_split, read_catalog
from moetool.formats.gguf_types import TENSOR_TYPES
from moetool.formats.gguf_writer import GgufSink
from moetool.tensors import Catalog, DType, TensorInfo

METADATA = {
    "general.architecture": ("str", "llama"),
    "n.u8": ("u8", 255),
    "n.i8": ("i8", -128),
    "n.u16": ("u16", 65535),
    "n.i16": ("i16", -1),
    "n.u32": ("u32", 1 << 31),
    "n.i32": ("i32", -5),
    "n.f32": ("f32", 0.5),
    "n.bool": ("bool", True),
    "n.u64": ("u64", 1 << 63),
    "n.i64": ("i64", -(1 << 62)),
    "n.f64": ("f64", 1e-300),
    "a.str": ("arr[str]", ["<unk>", "\u2581t", ""]),
    "a.f32": ("arr[f32]", [0.0, -1.5]),
    "a.i32": ("arr[i32]", [1, 2, 3]),
    "a.bool": ("arr[bool]", [True, False]),
    "a.none": ("arr[u8]", []),
}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def tensor(name="t", dims=(8,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(pairs=(), tensors=(), data=b"", *, version=3, counts=None):
    """The bytes of a GGUF file; ``counts`` overrides those of tensors and key-values."""
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs))))
    raw = head + b"".join(pairs) + b"".join(tensors)
    return raw + bytes(-len(raw) % 32) + data


def catalog_of(path):
    with LocalFile(path) as file:
        return read_catalog(file)


def read(tmp_path, raw):
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    return catalog_of(path)


def test_what_is_written_is_read(tmp_path):
    """Every value type, every tensor type, ranks 0 to 4."""
    infos = [
        TensorInfo(f"t{n}", dtype, (2, 2 * dtype.block_size)) for n, dtype in TENSOR_TYPES.items()
    ]
    infos += [TensorInfo("s", DType.F32, ()), TensorInfo("r4", DType.F16, (2, 3, 4, 5))]
    path = tmp_path / "x.gguf"
    sink = GgufSink(path, infos, METADATA)
    for info in infos:
        sink.write(info.name, [bytes([len(info.name)]) * info.nbytes])
    sink.close()
    catalog, raw = catalog_of(path), path.read_bytes()
    assert catalog.format == "gguf"
    assert catalog.tensors == {info.name: info for info in infos}
    assert catalog.metadata == {key: value for key, (_, value) in METADATA.items()}
    for name, extent in catalog.extents.items():
        assert extent.offset % 32 == 0
        assert set(raw[extent.offset : extent.end]) == {len(name)}


def test_another_alignment_is_kept(tmp_path):
    """general.alignment moves the data."""
    infos = [TensorInfo("a", DType.I8, (3,)), TensorInfo("b", DType.I8, (3,))]
    path = tmp_path / "x.gguf"
    sink = GgufSink(path, infos, {"general.alignment": ("u32", 256)})
    for info in infos:
        sink.write(info.name, [b"abc"])
    sink.close()
    assert all(extent.offset % 256 == 0 for extent in catalog_of(path).extents.values())


def test_dims_are_reversed_and_the_last_padding_may_lack(tmp_path):
    """ne0 is the innermost; some writers do not pad the last tensor."""
    catalog = read(tmp_path, gguf(tensors=[tensor(dims=(3, 2))], data=bytes(24)))
    assert catalog.tensors["t"].shape == (2, 3)


def test_version_2_is_read(tmp_path):
    """Its layout is that of version 3."""
    assert read(tmp_path, gguf(version=2)).tensors == {}


U32 = struct.pack("<I", 4)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"GGML" + bytes(60), "does not begin with GGUF"),
        (gguf(version=1), "version 1"),
        (gguf(version=4), "version 4"),
        (gguf(version=0x03000000), "big-endian"),
        (gguf(counts=(1 << 63, 0)), "tensors, more than"),
        (gguf(counts=(0, 1 << 63)), "key-values, more than"),
        (gguf([text("") + U32 + bytes(4)]), "key '' is empty"),
        (gguf([text("k") + U32 + bytes(4)] * 2), "key 'k' is empty or there twice"),
        (gguf([text("k" * 70_000) + U32 + bytes(4)]), "a text of 70000 bytes"),
        (gguf([text("k") + struct.pack("<I", 13)]), "value of type 13"),
        (gguf([text("k") + struct.pack("<IB", 7, 2)]), "bool of 2"),
        (gguf([text("k") + struct.pack("<I", 8) + text(b"\xff")]), "not UTF-8"),
        (gguf([text("k") + struct.pack("<IQ", 8, 1 << 63)]), "a text of 9223372036854775808"),
        (gguf([text("k") + struct.pack("<IIQ", 9, 9, 1)]), "array of type 9"),
        (gguf([text("k") + struct.pack("<IIQ", 9, 99, 1)]), "array of type 99"),
        (gguf([text("k") + struct.pack("<IIQ", 9, 0, 1 << 63)]), "array items"),
        (gguf([text("k") + struct.pack("<IIQ", 9, 0, 1 << 40)]), "array items"),
        (gguf([text("general.alignment") + U32 + struct.pack("<I", 3)]), "power of two"),
        (gguf([text("general.alignment") + U32 + struct.pack("<I", 0)]), "power of two"),
        (gguf([text("general.alignment") + struct.pack("<I", 8) + text("32")]), "power of two"),
        (gguf(tensors=[tensor("")], data=bytes(32)), "empty"),
        (gguf(tensors=[tensor("n" * 64)], data=bytes(32)), "a text of 64 bytes"),
        (gguf(tensors=[tensor("\x1b[2J")], data=bytes(32)), r"'\\x1b\[2J'"),
        (gguf(tensors=[tensor(dims=(1,) * 5)], data=bytes(32)), "5 dimensions"),
        (gguf(tensors=[tensor(kind=4)], data=bytes(32)), "unknown type 4"),
        (gguf(tensors=[tensor(kind=1 << 31)], data=bytes(32)), "unknown type"),
        (gguf(tensors=[tensor(dims=(33,), kind=8)], data=bytes(64)), "do not fill q8_0 blocks"),
        (gguf(tensors=[tensor(dims=(1 << 63, 2))]), "impossible shape"),
        (gguf(tensors=[tensor(dims=(1 << 32, 1 << 32))]), "impossible shape"),
        (gguf(tensors=[tensor(dims=(0, 1 << 62))]), "impossible shape"),
        (gguf(tensors=[tensor(offset=32)], data=bytes(64)), "at 32 instead of 0"),
        (gguf(tensors=[tensor(), tensor("u")], data=bytes(64)), "at 0 instead of 32"),
        (gguf(tensors=[tensor(), tensor("u", offset=64)], data=bytes(96)), "at 64 instead of 32"),
        (gguf(tensors=[tensor(), tensor(offset=32)], data=bytes(64)), "'t' is there twice"),
        (gguf(tensors=[tensor()], data=bytes(64)), "behind the last tensor"),
        (gguf(data=bytes(1)), "behind the last tensor"),
    ],
)
def test_headers_that_contradict_are_refused(tmp_path, raw, what):
    """What gguf-py lets pass, or hangs on, is refused with the reason."""
    with pytest.raises(BadHeader, match=what):
        read(tmp_path, raw)


def test_every_cut_of_a_file_is_called_cut(tmp_path):
    """From no byte to all but one, TruncatedFile and nothing else."""
    pairs = [text("k") + struct.pack("<I", 8) + text("value")]
    pairs += [text("a") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3)]
    whole = gguf(pairs, [tensor(dims=(8, 2))], bytes(64))
    assert read(tmp_path, whole).nbytes == 64
    for end in range(len(whole)):
        with pytest.raises(TruncatedFile):
            read(tmp_path, whole[:end])


def part(number, count, total, tensors):
    infos = {name: TensorInfo(name, DType.F32, (1,)) for name in tensors}
    keys = {"split.no": number, "split.count": count, "split.tensors.count": total}
    return Catalog("gguf", infos, {}, keys)


def test_a_complete_split_passes():
    """Numbers from zero, their count, and all tensors together."""
    check_split([part(0, 2, 3, "ab"), part(1, 2, 3, "c")], "x")


@pytest.mark.parametrize(
    "parts",
    [
        [part(1, 2, 3, "ab"), part(0, 2, 3, "c")],
        [part(0, 2, 3, "ab")],
        [part(0, 2, 4, "ab"), part(1, 2, 4, "c")],
        [part(0, 2, 3, "ab"), part(1, 3, 3, "c")],
        [part(0, 2, 3, "ab"), Catalog("gguf", {}, {}, {})],
    ],
)
def test_parts_of_different_splits_are_refused(parts):
    """Order, count and sum must be right in every part."""
    with pytest.raises(BadHeader, match="part"):
        check_split(parts, "x")


@pytest.mark.parametrize(
    "value",
    [
        ("u8", 256),
        ("u32", -1),
        ("i32", "x"),
        ("str", 1),
        ("arr[str]", [1]),
        ("arr[f32]", 1.0),
        ("u128", 1),
        ("arr[arr]", []),
        5,
        ("u32",),
    ],
)
def test_a_value_that_does_not_fit_its_label_is_our_bug(tmp_path, value):
    """No file is begun for it."""
    with pytest.raises(MoetoolError):
        GgufSink(tmp_path / "x", [], {"k": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "infos",
    [
        [TensorInfo("n" * 64, DType.F32, (1,))],
        [TensorInfo("n", DType.F32, (1,) * 5)],
        [TensorInfo("n", DType.F32, (1,))] * 2,
        [TensorInfo("n", DType.BOOL, (1,))],
    ],
)
def test_a_tensor_that_gguf_cannot_hold_is_our_bug(tmp_path, infos):
    """Names below 64 bytes, four dimensions, a type that ggml knows."""
    with pytest.raises(MoetoolError):
        GgufSink(tmp_path / "x", infos, {})
