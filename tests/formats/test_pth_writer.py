"""Writing torch.save files: layout, holes, and the CRC-32 of zeros without reading them."""

from __future__ import annotations

import time
import zipfile
import zlib

import pytest

from moetool.errors import MoetoolError
from moetool.extents import LocalFile
from moetool.formats.pth import read_catalog
from moetool.formats.pth_writer import PthSink, crc32_of_zeros
from moetool.formats.unpickler import STORAGE_DTYPES
from moetool.tensors import DType, TensorInfo


def catalog_of(path):
    with LocalFile(path) as file:
        return read_catalog(file)


def content_of(info):
    return bytes((i * 7 + len(info.name)) % 256 for i in range(info.nbytes))


def test_what_is_written_is_read(tmp_path):
    """Every storage type, ranks 0 to 3, an empty tensor, a name that is not ASCII."""
    infos = [TensorInfo(f"t.{d.label}", d, (3, 5)) for d in STORAGE_DTYPES.values()]
    infos += [
        TensorInfo("scalar", DType.F32, ()),
        TensorInfo("empty", DType.F16, (0, 4)),
        TensorInfo("größe", DType.BF16, (2, 3, 4)),
    ]
    path = tmp_path / "x.pth"
    sink = PthSink(path, infos)
    for info in infos:
        content = content_of(info)
        sink.write(info.name, iter([content[:7], memoryview(content)[7:]]))
    sink.close()
    catalog, raw = catalog_of(path), path.read_bytes()
    assert catalog.tensors == {info.name: info for info in infos}
    for info in infos:
        extent = catalog.extents[info.name]
        assert extent.offset % 64 == 0
        assert raw[extent.offset : extent.end] == content_of(info)


def test_pythons_zipfile_finds_every_crc_right(tmp_path):
    """Another reader agrees on names and CRC-32s, of a hole as well."""
    infos = [TensorInfo("a", DType.F32, (5,)), TensorInfo("hole", DType.U8, (100_000,))]
    path = tmp_path / "x.pth"
    sink = PthSink(path, infos, root="stem")
    sink.write("a", [content_of(infos[0])])
    sink.write_hole("hole")
    sink.close()
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert "stem/data/1" in file.namelist()
        assert file.read("stem/data/1") == bytes(100_000)


@pytest.mark.parametrize("nbytes", [0, 1, 2, 3, 64, 255, 4096, 1_000_003])
def test_crc_of_zeros(nbytes):
    """The logarithmic way gives what reading the zeros gives."""
    assert crc32_of_zeros(nbytes) == zlib.crc32(bytes(nbytes))


def test_crc_of_more_zeros_than_a_disk_holds():
    """It is a homomorphism: appending zeros can be done in two steps or in one."""
    step = zlib.crc32(bytes(1 << 20), crc32_of_zeros(1 << 40))
    assert crc32_of_zeros((1 << 40) + (1 << 20)) == step


def test_full_geometry_in_holes(tmp_path):
    """Mixtral 8x7B's 93.4 GB, 995 tensors: written in a second, read in a third of one."""
    infos = [TensorInfo("tok_embeddings.weight", DType.BF16, (32000, 4096))]
    for layer in range(32):
        at = f"layers.{layer}."
        for name, rows in (("wq", 4096), ("wk", 1024), ("wv", 1024), ("wo", 4096)):
            infos.append(TensorInfo(f"{at}attention.{name}.weight", DType.BF16, (rows, 4096)))
        infos.append(TensorInfo(f"{at}feed_forward.gate.weight", DType.BF16, (8, 4096)))
        infos += [
            TensorInfo(f"{at}{n}_norm.weight", DType.BF16, (4096,)) for n in ("attention", "ffn")
        ]
        for expert in range(8):
            prefix = f"{at}feed_forward.experts.{expert}."
            infos.append(TensorInfo(f"{prefix}w1.weight", DType.BF16, (14336, 4096)))
            infos.append(TensorInfo(f"{prefix}w2.weight", DType.BF16, (4096, 14336)))
            infos.append(TensorInfo(f"{prefix}w3.weight", DType.BF16, (14336, 4096)))
    infos.append(TensorInfo("norm.weight", DType.BF16, (4096,)))
    infos.append(TensorInfo("output.weight", DType.BF16, (32000, 4096)))
    path = tmp_path / "consolidated.00.pth"
    started = time.process_time()
    sink = PthSink(path, infos)
    for info in infos:
        sink.write_hole(info.name)
    sink.close()
    assert time.process_time() - started < 2
    took = []
    for _ in range(3):  # a worker that holds much may collect its garbage in one of them
        started = time.process_time()
        catalog = catalog_of(path)
        took.append(time.process_time() - started)
    assert min(took) < 0.35
    assert len(infos) == 995
    assert catalog.tensors == {info.name: info for info in infos}
    assert path.stat().st_size > 93_400_000_000
    assert path.stat().st_blocks * 512 < 20_000_000


def test_a_type_that_torch_cannot_store_is_our_bug(tmp_path):
    """No file is begun for what cannot be written."""
    with pytest.raises(MoetoolError, match="no storage type for q4_k"):
        PthSink(tmp_path / "x.pth", [TensorInfo("a", DType.Q4_K, (256,))])
    assert not list(tmp_path.iterdir())


def test_a_tensor_announced_twice_is_our_bug(tmp_path):
    """Two members cannot have one key."""
    with pytest.raises(MoetoolError, match="twice"):
        PthSink(tmp_path / "x.pth", [TensorInfo("a", DType.F32, (1,))] * 2)
