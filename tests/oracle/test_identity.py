"""What other programs write of a model has the root of the raw release.

transformers saves it, the gguf package writes it, and llama.cpp writes it anew; their files go
through our identity. Nothing of moetool's tables made the tensors that gguf writes.
"""

import pytest
import torch

from moetool.convert.job import open_source, prepare
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint
from moetool.proof.canonical import open_weights
from moetool.proof.identity import identify

from .test_conversions import in_gguf, params, raw  # noqa: F401  # two fixtures of the release

pytestmark = pytest.mark.oracle


def identity(path):
    """All digests of a checkpoint that a layout must not change."""
    with open_weights(path) as weights:
        found = identify(weights)
    return (found.root, found.any_order_root, found.fast_root, found.expert_order,
            found.maths_sha256)  # fmt: skip


@pytest.fixture(scope="module")
def published(tiny_release):
    """The identity of the release as it was published."""
    return identity(tiny_release)


@pytest.fixture(scope="module")
def converted(tiny_release, tmp_path_factory):
    """The release in a format and layout of ours."""
    folder = tmp_path_factory.mktemp("converted")

    def make(file_format, layout):
        out = folder / f"{file_format}-{layout}"
        if not out.exists():
            with open_checkpoint(tiny_release) as checkpoint:
                prepare(open_source(checkpoint), find_target(file_format, layout), out).run()
        return out

    return make


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("original", [True, False], ids=["per expert", "as in memory"])
@pytest.mark.parametrize("layout", ["hf", "hf-fused"])
def test_what_transformers_saves(layout, original, kind, converted, published, tmp_path):
    """Loaded from either of our layouts, saved in either of its own, in bf16 and widened."""
    transformers = pytest.importorskip("transformers", reason="the clients extra is not installed")
    model = transformers.MixtralForCausalLM.from_pretrained(
        converted("safetensors", layout), dtype=kind
    )
    names = set(model.state_dict())
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    model.save_pretrained(tmp_path / "saved", save_original_format=original)
    with open_checkpoint(tmp_path / "saved") as checkpoint:
        as_in_memory = set(checkpoint.catalog.tensors) == names
    # What was loaded fused was not renamed, so there is no other original format.
    assert as_in_memory is (layout == "hf-fused" or not original)
    assert identity(tmp_path / "saved") == published


def test_what_transformers_changes_is_another_model(converted, published, tmp_path):
    """One value by one bit: the root says so; the hyperparameters are the same."""
    transformers = pytest.importorskip("transformers", reason="the clients extra is not installed")
    model = transformers.MixtralForCausalLM.from_pretrained(
        converted("safetensors", "hf"), dtype=torch.bfloat16
    )
    experts = model.model.layers[3].mlp.experts
    experts.down_proj.data.view(torch.int16)[7, 0, 0] ^= 1
    model.save_pretrained(tmp_path / "saved")
    root, any_order, fast, _, maths = identity(tmp_path / "saved")
    assert maths == published[4]
    assert not {root, any_order, fast} & set(published[:3])


def write_gguf(path, tensors, params, kind):  # noqa: F811  # the fixture's value
    """A Mixtral by the gguf package's writer: matrices in ``kind``, norms and router in f32."""
    gguf = pytest.importorskip("gguf", reason="it writes the file")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32768)
    writer.add_embedding_length(params["dim"])
    writer.add_block_count(params["n_layers"])
    writer.add_feed_forward_length(params["hidden_dim"])
    writer.add_head_count(params["n_heads"])
    writer.add_head_count_kv(params["n_kv_heads"])
    writer.add_key_length(params["head_dim"])
    writer.add_value_length(params["head_dim"])
    writer.add_layer_norm_rms_eps(params["norm_eps"])
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(params["vocab_size"])
    writer.add_expert_count(params["moe"]["num_experts"])
    writer.add_expert_used_count(params["moe"]["num_experts_per_tok"])
    for name, tensor in tensors.items():
        wanted = gguf.GGMLQuantizationType.F32 if tensor.dtype is torch.float32 else kind
        data = gguf.quants.quantize(tensor.float().numpy(), wanted)
        writer.add_tensor(name, data, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_what_the_gguf_package_writes(kind, raw, params, published, tmp_path):  # noqa: F811
    """By hand in llama.cpp's form: q and k as they are, experts stacked, norms in f32."""
    gguf = pytest.importorskip("gguf", reason="it writes the file")
    path = tmp_path / "theirs.gguf"
    write_gguf(path, in_gguf(raw, params), params, gguf.GGMLQuantizationType[kind])
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert types == {"F32", kind}
    assert identity(path) == published


def test_a_gguf_with_permuted_heads_is_another_model(raw, params, published, tmp_path):  # noqa: F811
    """The classic mistake, which every loader takes without a word."""
    gguf = pytest.importorskip("gguf", reason="it writes the file")
    tensors = in_gguf(raw, params)
    name = "blk.0.attn_q.weight"
    halves = tensors[name].view(params["n_heads"], -1, 2, params["dim"]).transpose(1, 2)
    tensors[name] = halves.reshape(tensors[name].shape)
    path = tmp_path / "theirs.gguf"
    write_gguf(path, tensors, params, gguf.GGMLQuantizationType.BF16)
    assert not set(identity(path)[:3]) & set(published[:3])


@pytest.mark.parametrize("kind", ["ALL_F32", "MOSTLY_BF16"])
def test_what_llama_cpp_writes(kind, converted, published, tmp_path):
    """llama.cpp's own quantize, asked for a type that loses nothing, writes our GGUF anew."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the llama extra is not installed")
    gguf = pytest.importorskip("gguf", reason="it tells what was written")
    (source,) = converted("gguf", "gguf").glob("*.gguf")
    path = tmp_path / "theirs.gguf"
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}")
    done = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), settings)
    assert done == 0
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert types == {"F32", kind.rpartition("_")[2]}
    assert identity(path) == published
