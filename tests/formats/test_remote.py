"""Headers of what is elsewhere: the same catalog, from few bytes, in every form of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moetool.errors import BadHeader, Refused, TruncatedFile
from moetool.extents import LocalFile
from moetool.formats import create, open_checkpoint
from moetool.formats.remote import read_remote
from moetool.tensors import DType, TensorInfo

INFOS = [TensorInfo(f"layers.{n}.weight", DType.F32, (64, 1000)) for n in range(6)]


class Counted:
    """A local file that counts what is read of it."""

    def __init__(self, path: Path) -> None:
        self.file, self.path, self.nbytes = LocalFile(path), Path(path.name), path.stat().st_size
        self.reads: list[tuple[int, int]] = []

    def pread(self, offset, nbytes):
        self.reads.append((offset, nbytes))
        return self.file.pread(offset, nbytes)


class Folder:
    """A folder as if it were far away."""

    def __init__(self, path: Path) -> None:
        self.sources = {p.name: Counted(p) for p in path.iterdir()}
        self.names = self.sources.keys()
        self.told: list[tuple[str, slice]] = []

    def open(self, name):
        return self.sources.get(name)

    def expect(self, ranges):
        self.told += ranges

    @property
    def n_read(self):
        return sum(nbytes for source in self.sources.values() for _, nbytes in source.reads)


def write(path, infos):
    sink = create(path, infos, {})
    for info in infos:
        sink.write(info.name, [bytes([7]) * info.nbytes])
    sink.close()


def raw(folder):
    write(folder / "consolidated.00.pth", INFOS[:3])
    write(folder / "consolidated.01.pth", INFOS[3:])
    (folder / "params.json").write_text("{}")


def hf(folder):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    write(folder / names[0], INFOS[:3])
    write(folder / names[1], INFOS[3:])
    weight_map = {info.name: names[n // 3] for n, info in enumerate(INFOS)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")


def gguf(folder):
    write(folder / "model.gguf", INFOS)


@pytest.fixture
def far(tmp_path):
    def make(fill):
        folder, copies = tmp_path / "far", tmp_path / "copies"
        for made in (folder, copies):
            made.mkdir()
        fill(folder)
        return folder, copies

    return make


def parts(folder):
    """The raw form with its first file cut in parts, as some mirrors have it."""
    raw(folder)
    content = (folder / "consolidated.00.pth").read_bytes()
    (folder / "consolidated.00.pth").unlink()
    for number in range(12):
        start, stop = (len(content) * n // 12 for n in (number, number + 1))
        (folder / f"consolidated.00.pth-split{number}").write_bytes(content[start:stop])


@pytest.mark.parametrize("fill", [raw, hf, gguf])
def test_the_catalog_is_the_local_one(fill, far):
    folder, copies = far(fill)
    remote = Folder(folder)
    found = read_remote(remote, copies)
    with open_checkpoint(folder) as local:
        assert dict(found.catalog.tensors) == dict(local.catalog.tensors)
        assert found.files == {file.name: file.stat().st_size for file in local.files}
        for name, extent in local.catalog.extents.items():
            there = found.catalog.extents[name]
            assert (there.path.name, there.offset) == (extent.path.name, extent.offset)
    assert remote.n_read < found.catalog.nbytes / 4 or fill is gguf  # its window is 256 KiB
    beside = {"raw": {"params.json"}, "gguf": set()}.get(
        fill.__name__, {"config.json", "model.safetensors.index.json"}
    )
    assert {path.name for path in copies.iterdir()} == beside
    told = {name for name, _ in remote.told}
    assert {*found.files, *(beside - {"model.safetensors.index.json"})} == told


def test_the_catalog_of_parts_is_that_of_the_whole(far):
    folder, copies = far(parts)
    remote = Folder(folder)
    found = read_remote(remote, copies)
    with open_checkpoint(folder) as local:
        assert dict(found.catalog.tensors) == dict(local.catalog.tensors)
        there, here = (
            {name: (place.path.name, place.offset) for name, place in catalog.extents.items()}
            for catalog in (found.catalog, local.catalog)
        )
        assert there == here
    read = {name for name, source in remote.sources.items() if source.reads}
    assert "consolidated.00.pth-split4" not in read  # weights and nothing else
    del remote.sources["consolidated.00.pth-split5"]
    with pytest.raises(BadHeader) as caught:
        read_remote(remote, copies)
    assert caught.value.findings == ("missing: consolidated.00.pth-split5",)


@pytest.mark.parametrize(
    ("fill", "name"),
    [(raw, "consolidated.01.pth"), (hf, "model.safetensors.index.json"), (gguf, "model.gguf")],
)
def test_one_file_can_be_named(fill, name, far):
    folder, copies = far(fill)
    found = read_remote(Folder(folder), copies, name)
    with open_checkpoint(folder / name) as local:
        assert dict(found.catalog.tensors) == dict(local.catalog.tensors)


def test_between_the_weights_nothing_is_read(far):
    """Local headers there would cost a piece or a request each; nothing is claimed of them."""
    folder, copies = far(raw)
    remote = Folder(folder)
    found = read_remote(remote, copies)
    weights = [e for e in found.catalog.extents.values() if e.path.name == "consolidated.00.pth"]
    first, last = min(e.offset for e in weights), max(e.end for e in weights)
    for offset, nbytes in remote.sources["consolidated.00.pth"].reads:
        assert offset + nbytes <= first + 64 or offset >= last
    assert found.catalog.claims == ()


def test_a_directory_that_cannot_be_is_refused(far):
    """The sizes in the central directory must leave room for what they say."""
    folder, copies = far(raw)
    path = folder / "consolidated.00.pth"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/1"))
    for field in (20, 24):  # packed and plain size
        nbytes = int.from_bytes(data[at + field : at + field + 4], "little")
        data[at + field : at + field + 4] = (nbytes + 4096).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(BadHeader, match="overlaps"):
        read_remote(Folder(folder), copies)


def test_too_long_a_directory_is_refused_before_it_is_read(far):
    folder, copies = far(raw)
    path = folder / "consolidated.00.pth"
    with path.open("r+b") as file:
        file.truncate(64 << 20)
        file.seek(0, 2)
        end = b"PK\x05\x06" + bytes(4) + (9).to_bytes(2, "little") * 2
        file.write(
            end + (60 << 20).to_bytes(4, "little") + (4 << 20).to_bytes(4, "little") + b"\0\0"
        )
    remote = Folder(folder)
    with pytest.raises(BadHeader, match="bytes of zip directory"):
        read_remote(remote, copies)
    assert remote.n_read < 1000


def test_a_file_cut_short_and_a_missing_one_are_refused(far):
    folder, copies = far(raw)
    with (folder / "consolidated.01.pth").open("r+b") as file:
        file.truncate(500_000)
    with pytest.raises(TruncatedFile):
        read_remote(Folder(folder), copies)
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(BadHeader, match="missing"):
        read_remote(Folder(folder), copies)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(Refused, match="no checkpoint"):
        read_remote(Folder(folder), copies)


def test_a_side_file_beyond_measure_is_not_copied(far):
    folder, copies = far(raw)
    with (folder / "params.json").open("r+b") as file:
        file.truncate(5 << 20)
    with pytest.raises(BadHeader, match="bytes of JSON"):
        read_remote(Folder(folder), copies)
    assert list(copies.iterdir()) == []
