"""Raw releases of a small random model, with any tensor changed."""

from __future__ import annotations

import json

import pytest
import torch

from moetool.arch.spelling import to_params_json
from moetool.convert.stream import to_torch


@pytest.fixture
def small_tensors(random_checkpoint):
    """The bf16 tensors of a small model under their raw names, open to any change."""
    source = random_checkpoint()
    return {
        name: to_torch(bytes(source.read(name)), info.dtype, info.shape).clone()
        for name, info in source.catalog.tensors.items()
    }


@pytest.fixture
def write_release(tmp_path, small_args):
    """Write tensors as a raw release, by torch itself."""

    def write(name, tensors, args=small_args):
        folder = tmp_path / name
        folder.mkdir()
        torch.save(tensors, folder / "consolidated.00.pth")
        (folder / "params.json").write_text(json.dumps(to_params_json(args)))
        return folder

    return write


@pytest.fixture
def with_blocks(tiny_release, moetool, tmp_path):
    """The tiny release as a GGUF with one matrix in a block type, written by the gguf package."""
    gguf = pytest.importorskip("gguf", reason="writes the quantised file")
    numpy = pytest.importorskip("numpy", reason="the gguf package works on its arrays")

    def blocks_of(values, kind):
        if kind is gguf.GGMLQuantizationType.IQ4_NL:  # which the package cannot write
            return numpy.zeros((len(values), values.shape[1] // 32 * 18), dtype=numpy.uint8)
        return gguf.quantize(values, kind)

    def make(name):
        moetool("convert", tiny_release, "--to", "gguf", "--out", tmp_path / "plain", "-q", check=0)
        (path,) = (tmp_path / "plain").glob("*.gguf")
        reader = gguf.GGUFReader(path)
        writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
        for key, field in reader.fields.items():
            if not key.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(
                    key, field.contents(), field.types[0],
                    sub_type=field.types[1] if len(field.types) > 1 else None,
                )  # fmt: skip
        for tensor in reader.tensors:
            data, kind = tensor.data, tensor.tensor_type
            if tensor.name == "blk.0.attn_q.weight":
                values = gguf.dequantize(data, kind).astype(numpy.float32)
                kind = gguf.GGMLQuantizationType[name]
                data = blocks_of(values, kind)
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "small.gguf"

    return make


@pytest.fixture
def quantised(with_blocks):
    """With a matrix in Q8_0, which is decoded."""
    return with_blocks("Q8_0")


@pytest.fixture
def strangely_quantised(with_blocks):
    """With a matrix in a type that is not decoded."""
    return with_blocks("IQ4_NL")
