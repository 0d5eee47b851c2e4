"""Converted tensors against formulas that others published, written again here, and strict names.

Nothing of moetool's tables is used: the expected tensors come from torch.load of the release and
the few lines that transformers', llama.cpp's and megablocks' own code has for each layout.
"""

import json
import re
from pathlib import Path

import pytest
import torch

from moetool.convert.job import open_source, prepare
from moetool.convert.synthetic import GEOMETRIES, random_source
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def raw(tiny_release):
    """The release as torch reads it."""
    return torch.load(tiny_release / "consolidated.00.pth", weights_only=True, mmap=True)


@pytest.fixture(scope="module")
def params(tiny_release):
    """Its published hyperparameters."""
    return json.loads((tiny_release / "params.json").read_text())


@pytest.fixture(scope="module")
def converted(tiny_release, tmp_path_factory):
    """Convert the release to a target, in one file."""
    folder = tmp_path_factory.mktemp("converted")

    def make(file_format, layout) -> Path:
        out = folder / f"{file_format}-{layout}"
        if not out.exists():
            with open_checkpoint(tiny_release) as checkpoint:
                target = find_target(file_format, layout)
                prepare(open_source(checkpoint), target, out, 10**9).run()
        return out

    return make


def same(found, expected):
    """Equal names, types, shapes and bits."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def experts(raw, layer, matrix, n_experts):
    """The matrices of a layer's experts, in order."""
    name = "layers.{}.feed_forward.experts.{}.{}.weight"
    return [raw[name.format(layer, expert, matrix)] for expert in range(n_experts)]


ATTENTION = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"}


RENAMED = (("attention_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"),
           ("feed_forward", "block_sparse_moe"), ("tok_embeddings", "model.embed_tokens"),
           ("output.weight", "lm_head.weight"))  # fmt: skip


def in_hf(raw, params):
    """What transformers 4.36's conversion makes: permuted q and k, everything else renamed."""
    sizes = {"wq": params["n_heads"], "wk": params["n_kv_heads"]}
    made = {}
    for name, tensor in raw.items():
        new = re.sub(r"^(layers|norm)\.", r"model.\1.", name)
        new = re.sub(r"attention\.(w.)", lambda m: "self_attn." + ATTENTION[m[1]], new)
        for old, words in RENAMED:
            new = new.replace(old, words)
        kind = re.search(r"attention\.(wq|wk)\.", name)
        made[new] = permuted(tensor, sizes[kind[1]], params["head_dim"]) if kind else tensor
    return made


def permuted(w, n_heads, head_dim):
    """convert_mixtral_weights_to_hf.py's permute."""
    return w.view(n_heads, head_dim // 2, 2, -1).transpose(1, 2).reshape(w.shape)


def test_hf_is_the_published_conversion(raw, params, converted):
    """Names by replacement, q and k by the published permute."""
    load_file = pytest.importorskip("safetensors.torch", reason="it reads the file").load_file
    found = load_file(converted("safetensors", "hf") / "model.safetensors")
    same(found, in_hf(raw, params))


def test_packed_is_the_megablocks_form(raw, params, tiny_release, tmp_path):
    """Experts as rows; h @ w2 wants w2 transposed: undoing both gives the linear form.

    Read as transformers 4.36's convert_mixtral_weights_to_hf.py does: eight files, their keys
    merged.
    """
    with open_checkpoint(tiny_release) as checkpoint:
        target = find_target(None, "mistral-packed")
        prepare(open_source(checkpoint), target, tmp_path / "packed").run()
    found = {}
    for number in range(8):
        path = tmp_path / "packed" / f"consolidated.{number:02d}.pt"
        part = torch.load(path, weights_only=True, mmap=True)
        assert not set(part) & set(found)
        found.update(part)
    n_experts, dim = params["moe"]["num_experts"], params["dim"]
    for layer in range(params["n_layers"]):
        for matrix in ("w1", "w2", "w3"):
            packed = found.pop(f"layers.{layer}.block_sparse_moe.{matrix}")
            blocks = packed.reshape(n_experts, params["hidden_dim"], dim)
            blocks = blocks.permute(0, 2, 1) if matrix == "w2" else blocks
            expected = experts(raw, layer, matrix, n_experts)
            assert torch.equal(blocks, torch.stack(expected)), (layer, matrix)
        gate = found.pop(f"layers.{layer}.block_sparse_moe.gate.weight")
        assert torch.equal(gate, raw[f"layers.{layer}.feed_forward.gate.weight"])
    same(found, {name: tensor for name, tensor in raw.items() if "feed_forward" not in name})


GGUF_NAMES = {
    "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "attention.wq": "attn_q",
    "attention.wk": "attn_k", "attention.wv": "attn_v", "attention.wo": "attn_output",
    "feed_forward.gate": "ffn_gate_inp",
}  # fmt: skip


def in_gguf(raw, params):
    """llama.cpp's rules: no permute from raw, experts stacked, norms and router in f32."""
    made = {"token_embd.weight": raw["tok_embeddings.weight"],
            "output_norm.weight": raw["norm.weight"].float(),
            "output.weight": raw["output.weight"]}  # fmt: skip
    for layer in range(params["n_layers"]):
        for old, new in GGUF_NAMES.items():
            tensor = raw[f"layers.{layer}.{old}.weight"]
            plain = tensor.float() if tensor.ndim == 1 or old.endswith("gate") else tensor
            made[f"blk.{layer}.{new}.weight"] = plain
        for matrix, new in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            stack = torch.stack(experts(raw, layer, matrix, params["moe"]["num_experts"]))
            made[f"blk.{layer}.ffn_{new}_exps.weight"] = stack
    return made


def test_gguf_is_what_llama_cpps_rules_give(raw, params, converted):
    """Read by the gguf package: values, types, and every key that a loader would guess."""
    gguf = pytest.importorskip("gguf", reason="it reads the file")
    (path,) = converted("gguf", "gguf").glob("*.gguf")
    reader = gguf.GGUFReader(path)
    expected = in_gguf(raw, params)
    assert {tensor.name for tensor in reader.tensors} == set(expected)
    for tensor in reader.tensors:
        wanted = expected[tensor.name]
        kind = {torch.float32: "F32", torch.bfloat16: "BF16"}[wanted.dtype]
        assert (tensor.tensor_type.name, tensor.name) == (kind, tensor.name)
        assert [int(n) for n in reversed(tensor.shape)] == list(wanted.shape)
        found = torch.frombuffer(bytearray(tensor.data.tobytes()), dtype=wanted.dtype)
        assert torch.equal(found.view(wanted.shape), wanted), tensor.name
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert keys["llama.rope.freq_base"] == 1e6
    assert keys["llama.expert_count"] == 8
    assert keys["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert len(set(keys["tokenizer.ggml.scores"])) > 400
    assert keys["tokenizer.ggml.token_type"].count(int(gguf.TokenType.BYTE)) == 256


def strict_names(n_layers, n_experts):
    """mistral-inference's state dict: strict=True refuses one name more or less."""
    yield from ("tok_embeddings.weight", "norm.weight", "output.weight")
    for layer in range(n_layers):
        for part in ("attention.wq", "attention.wk", "attention.wv", "attention.wo",
                     "attention_norm", "ffn_norm", "feed_forward.gate"):  # fmt: skip
            yield f"layers.{layer}.{part}.weight"
        for expert in range(n_experts):
            for matrix in ("w1", "w2", "w3"):
                yield f"layers.{layer}.feed_forward.experts.{expert}.{matrix}.weight"


def test_raw_outputs_have_mistral_inferences_strict_names(raw, params, converted, tmp_path):
    """consolidated.safetensors, and a .pth made from hf: torch.load maps it, weights only."""
    load_file = pytest.importorskip("safetensors.torch", reason="it reads the file").load_file
    published = set(strict_names(params["n_layers"], params["moe"]["num_experts"]))
    single = load_file(converted("safetensors", "mistral") / "consolidated.safetensors")
    assert set(single) == published
    same(single, raw)
    with open_checkpoint(converted("safetensors", "hf")) as checkpoint:
        prepare(open_source(checkpoint), find_target("pth", None), tmp_path / "pth").run()
    again = torch.load(tmp_path / "pth" / "consolidated.00.pth", weights_only=True, mmap=True)
    assert set(again) == published
    same(again, raw)


def test_a_dense_pth_has_mistral_inferences_strict_names(tmp_path):
    """Without `moe` in params.json its layers have one feed_forward with w1, w2, w3."""
    args = GEOMETRIES["tiny-dense"]
    prepare(random_source(args, 0, None), find_target("safetensors", "hf"), tmp_path / "hf").run()
    with open_checkpoint(tmp_path / "hf") as checkpoint:
        prepare(open_source(checkpoint), find_target("pth", None), tmp_path / "pth").run()
    found = torch.load(tmp_path / "pth" / "consolidated.00.pth", weights_only=True, mmap=True)
    parts = ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "attention_norm",
             "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")  # fmt: skip
    assert set(found) == {"tok_embeddings.weight", "norm.weight", "output.weight"} | {
        f"layers.{layer}.{part}.weight" for layer in range(args.n_layers) for part in parts
    }
    params = json.loads((tmp_path / "pth" / "params.json").read_text())
    assert params["sliding_window"] == 4096
    assert not {"moe", "rope_theta"} & set(params)


@pytest.mark.parametrize("name", ["f16", "f32"])
def test_a_cast_is_torchs_cast(name, raw, params, tiny_release, tmp_path):
    """Asked for another type, the values are what torch makes of them, and so are the counts."""
    from moetool.convert.targets import find_dtype

    kind = {"f16": torch.float16, "f32": torch.float32}[name]
    load_file = pytest.importorskip("safetensors.torch", reason="it reads the file").load_file
    with open_checkpoint(tiny_release) as checkpoint:
        target = find_target("safetensors", "hf")
        report = prepare(
            open_source(checkpoint), target, tmp_path / "out", dtype=find_dtype(name)
        ).run()
    expected = {key: tensor.to(kind) for key, tensor in in_hf(raw, params).items()}
    same(load_file(tmp_path / "out" / "model.safetensors"), expected)
    changed = sum(int((tensor.to(kind).float() != tensor.float()).sum()) for tensor in raw.values())
    assert report.casts.total.changed == changed
    assert (changed > 0) == (name == "f16")
    assert report.casts.total.numel == sum(tensor.numel() for tensor in raw.values())
