"""Hostile safetensors headers and indexes."""

from __future__ import annotations

import json

import pytest

from moetool.errors import Refused
from moetool.extents import LocalFile
from moetool.formats import open_checkpoint
from moetool.formats.safetensors import SafetensorsSink, read_catalog, read_index
from moetool.tensors import DType, TensorInfo


def file_of(path, header: bytes, data: bytes = b""):
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def _empties(count):
    return b"{" + b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(count)
    ) + b"}"  # fmt: skip


BOMBS = {
    "tensors without bytes": lambda: _empties(200_000),
    "brackets": lambda: b'{"a":[' + b"[]," * 5_000_000 + b"[]]}",
    "objects": lambda: b'{"a":[' + b'{"":0},' * 2_000_000 + b"{}]}",
    "objects below the count": lambda: b'{"a":[' + b'{"":0},' * 290_000 + b"{}]}",
    "depth": lambda: b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    "a rank of 5000": lambda: (
        b'{"a":{"dtype":"F32","shape":[' + b"1," * 4999 + b'1],"data_offsets":[0,4]}}'
    ),
    "one long name": lambda: b'{"' + b"a" * (15 << 20) + b'":1}',
    "one wide name": lambda: b'{"' + b"a" * (10 << 20) + "\U0001f480".encode() + b'":1}',
    "one long number": lambda: b'{"a":' + b"9" * (15 << 20) + b"}",
    "spaces": lambda: b"{" + b" " * (15 << 20) + b'"a":1}',
    "keys, the last one twice": lambda: (
        b"{" + b",".join(b'"%d":0' % i for i in range(280_000)) + b',"279999":0}'
    ),
    "metadata": lambda: b'{"__metadata__":{' + b'"":"",' * 290_000 + b'"":""}}',
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_time_and_room(tmp_path, judge, name):
    """Within 5 s and 150 MB."""
    judge(file_of(tmp_path / "x.safetensors", BOMBS[name](), bytes(4)))


@pytest.mark.parametrize("name", BOMBS)
def test_an_index_is_no_better_place_for_a_bomb(tmp_path, judge, name):
    """The same texts as model.safetensors.index.json."""
    (tmp_path / "model.safetensors.index.json").write_bytes(BOMBS[name]())
    judge(tmp_path)


def test_a_sparse_header_is_refused_unread(tmp_path, judge):
    """A length of 8 GB, and a file that has them as a hole."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((8 << 30).to_bytes(8, "little") + b"{")
        file.truncate(9 << 30)
    judge(path)


def test_a_polyglot_is_refused(tmp_path):
    """A zip behind the tensors would make the same bytes a .pth for another reader."""
    path = tmp_path / "x.safetensors"
    sink = SafetensorsSink(path, [TensorInfo("a", DType.U8, (4,))], {})
    sink.write("a", [b"PK\x03\x04"])
    sink.close()
    path.write_bytes(path.read_bytes() + b"PK\x05\x06" + bytes(18))
    with pytest.raises(Refused, match="tensors end at byte"):
        open_checkpoint(path)


def test_an_index_cannot_point_out_of_its_directory(tmp_path):
    """Neither by dots nor by a root, nor through a link it brings along."""
    inside = tmp_path / "model"
    inside.mkdir()
    secret = tmp_path / "secret.safetensors"
    SafetensorsSink(secret, [], {}).close()
    for name in ("../secret.safetensors", str(secret), "..\\secret.safetensors"):
        index = {"weight_map": {"a": name}}
        (inside / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(Refused, match="not a plain file name"):
            open_checkpoint(inside)


def _good(path):
    infos = [TensorInfo("a.weight", DType.BF16, (4, 3)), TensorInfo("b", DType.F32, (5,))]
    sink = SafetensorsSink(path, infos, {"format": "pt"})
    for info in infos:
        sink.write(info.name, [bytes(range(info.nbytes))])
    sink.close()
    return path.read_bytes()


def test_mutants_of_a_file_are_read_or_refused(tmp_path, survive):
    """2,000 damaged files; what is read stays within the file."""
    path = tmp_path / "x.safetensors"

    def read(raw):
        path.write_bytes(raw)
        with LocalFile(path) as file:
            catalog = read_catalog(file)
        assert all(e.end <= len(raw) for e in catalog.extents.values())
        assert all(info.nbytes == catalog.extents[n].nbytes for n, info in catalog.tensors.items())

    assert survive(_good(tmp_path / "good.safetensors"), read)["refused"] > 1000


def test_mutants_of_an_index_are_read_or_refused(survive):
    """2,000 damaged indexes; every name that is read is a plain file name."""
    files = {f"layer.{n}": f"model-{n:05d}-of-00003.safetensors" for n in range(1, 4)}
    good = json.dumps({"metadata": {"total_size": 5}, "weight_map": files}).encode()

    def read(raw):
        assert all("/" not in name for name in read_index(raw, "x").values())

    assert survive(good, read)["refused"] > 1000
