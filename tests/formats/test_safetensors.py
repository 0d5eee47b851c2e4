"""Safetensors headers: what the format means is read, what it only tolerates is refused."""

from __future__ import annotations

import json

import pytest

from moetool.errors import BadHeader, FormatError, MoetoolError, TruncatedFile
from moetool.extents import LocalFile
from moetool.formats.safetensors import SafetensorsSink, read_catalog, read_index
from moetool.tensors import DType, TensorInfo


def file_of(path, header, data=b""):
    """A file with that header (an object, or the very bytes)."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def catalog_of(path):
    with LocalFile(path) as file:
        return read_catalog(file)


def entry(start=0, end=8, dtype="F32", shape=(2,), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end], **more}


def test_what_is_written_is_read(tmp_path):
    """Every type, a scalar, an empty tensor, metadata; data begin at a multiple of 8."""
    plain = [dtype for dtype in DType if dtype.block_size == 1]
    infos = [TensorInfo(f"t.{dtype.label}", dtype, (3, 2)) for dtype in plain]
    infos += [TensorInfo("scalar", DType.BF16, ()), TensorInfo("empty", DType.F32, (4, 0))]
    path = tmp_path / "x.safetensors"
    sink = SafetensorsSink(path, infos, {"format": "pt"})
    for info in infos:
        sink.write(info.name, [bytes([len(info.name)]) * info.nbytes])
    sink.close()
    catalog, raw = catalog_of(path), path.read_bytes()
    assert catalog.format == "safetensors"
    assert catalog.tensors == {info.name: info for info in infos}
    assert catalog.metadata == {"format": "pt"}
    assert min(extent.offset for extent in catalog.extents.values()) % 8 == 0
    for name, extent in catalog.extents.items():
        assert set(raw[extent.offset : extent.end]) <= {len(name)}


def test_any_order_of_entries_is_read(tmp_path):
    """The order of the header need not be the order of the data."""
    header = {"b": entry(8, 16), "a": entry(0, 8)}
    path = file_of(tmp_path / "x", header, b"a" * 8 + b"b" * 8)
    extents = catalog_of(path).extents
    assert extents["b"].offset == extents["a"].end


def test_padding_with_spaces_is_read(tmp_path):
    """Writers pad the header to align the data."""
    header = json.dumps({"a": entry()}).encode() + b" " * 100
    assert catalog_of(file_of(tmp_path / "x", header, bytes(8))).nbytes == 8


@pytest.mark.parametrize(
    ("header", "data", "what"),
    [
        ({"a": entry(4, 12)}, 12, "a hole before tensor 'a'"),
        ({"a": entry(), "b": entry(12, 20)}, 20, "a hole before tensor 'b'"),
        ({"a": entry(), "b": entry(4, 12)}, 12, "an overlap at tensor 'b'"),
        ({"a": entry(), "b": entry()}, 8, "an overlap at tensor 'b'"),
        ({"a": entry()}, 9, "tensors end at byte"),
        ({}, 1, "tensors end at byte"),
        ({"a": entry(shape=(3,))}, 8, "its shape and type need 12"),
        ({"a": entry(8, 0)}, 8, "ends before it begins"),
        ({"a": entry(dtype="F4")}, 8, "type 'F4'"),
        ({"a": entry(dtype="f32")}, 8, "type 'f32'"),
        ({"a": entry(dtype=1)}, 8, "lacks dtype"),
        ({"a": entry(extra=1)}, 8, "odd fields"),
        ({"a": entry(shape=(-1, -2))}, 8, "odd fields or numbers"),
        ({"a": entry(shape=(2.0,))}, 8, "odd fields or numbers"),
        ({"a": entry(shape=(True, 2))}, 8, "odd fields or numbers"),
        ({"a": entry(-8, 0)}, 8, "odd fields or numbers"),
        ({"a": entry(0, 1 << 64)}, 8, "odd fields or numbers"),
        ({"a": entry(0, 0, shape=(0, 1 << 62))}, 0, "impossible shape"),
        ({"a": entry(0, 0, shape=(1 << 40, 1 << 40))}, 0, "impossible shape"),
        ({"a": entry(0, 0, shape=(0,) * 9)}, 0, "9 dimensions"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "lacks dtype, shape or data_offsets"),
        ({"a": []}, 0, "lacks dtype"),
        ({"a": None}, 0, "lacks dtype"),
        ({"": entry()}, 8, "empty"),
        ({"a\0": entry()}, 8, "not printable"),
        ({"\x1b[31mred": entry()}, 8, r"'\\x1b\[31mred'"),
        ({"\u202egpj": entry()}, 8, r"'\\u202egpj'"),
        ({"x" * 513: entry()}, 8, "longer than 512"),
        ({"__metadata__": {"a": 1}}, 0, "not an object of texts"),
        ({"__metadata__": []}, 0, "not an object of texts"),
        (b'{"a":1,"a":1}', 0, "the key 'a' is there twice"),
        (b'{"__metadata__":{"k":"1","k":"2"}}', 0, "the key 'k' is there twice"),
        (b' {"a":1}', 0, "not a JSON object"),
        (b"[]", 0, "not a JSON object"),
        (b"{}\n", 0, "not a JSON object"),
        (b'{"a":\xff}', 0, "not valid JSON"),
        (b'{"a":}', 0, "not valid JSON"),
        (b"{}{}", 0, "not valid JSON"),
        (b"", 0, "not a JSON object"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0, "nested too deep"),
        (b'{"a":' + b"9" * 5000 + b"}", 0, "not valid JSON"),
    ],
)
def test_headers_that_contradict_are_refused(tmp_path, header, data, what):
    """Each with what is wrong, and names spelled harmlessly."""
    with pytest.raises(BadHeader, match=what):
        catalog_of(file_of(tmp_path / "x", header, bytes(data)))


@pytest.mark.parametrize("nbytes", [1 << 63, (1 << 64) - 1, (16 << 20) + 1])
def test_a_header_of_absurd_length_is_refused_unread(tmp_path, nbytes):
    """2**63 bytes are not asked of the machine."""
    path = tmp_path / "x"
    path.write_bytes(nbytes.to_bytes(8, "little") + b"{}")
    with pytest.raises(BadHeader, match="bytes of header"):
        catalog_of(path)


@pytest.mark.parametrize("cut", [0, 7, 8, 20, -1])
def test_a_cut_file_is_called_cut(tmp_path, cut):
    """In the length, in the header, in the data."""
    path = file_of(tmp_path / "x", {"a": entry()}, bytes(8))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TruncatedFile):
        catalog_of(path)


def test_an_index_names_plain_files():
    """Names are file names: nothing is read outside the directory."""
    raw = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).encode()
    assert read_index(raw, "x") == {"a": "m-1.safetensors", "b": "m-2.safetensors"}


@pytest.mark.parametrize(
    "name",
    [
        "../a.safetensors",
        "/a.safetensors",
        "d/a.safetensors",
        "a\\b.safetensors",
        "a.bin",
        1,
        None,
        "\x1b.safetensors",
        "x" * 300 + ".safetensors",
        "a:b.safetensors",
        "",
    ],
)
def test_an_index_that_points_elsewhere_is_refused(name):
    """No separators, nothing unprintable, and only safetensors files."""
    with pytest.raises(BadHeader, match="not a plain file name"):
        read_index(json.dumps({"weight_map": {"a": name}}).encode(), "x")


@pytest.mark.parametrize(
    "raw", [b"{}", b'{"weight_map":{}}', b'{"weight_map":[]}', b"[]", b"x", b""]
)
def test_what_is_no_index_is_refused(raw):
    """An index has a weight_map that is not empty."""
    with pytest.raises(FormatError):
        read_index(raw, "x")


def test_what_the_format_cannot_hold_is_our_bug(tmp_path):
    """Quantised types, and a name twice."""
    for infos in ([TensorInfo("a", DType.Q8_0, (32,))], [TensorInfo("a", DType.U8, (1,))] * 2):
        with pytest.raises(MoetoolError, match="comes twice"):
            SafetensorsSink(tmp_path / "x", infos, {})
    assert not list(tmp_path.iterdir())
