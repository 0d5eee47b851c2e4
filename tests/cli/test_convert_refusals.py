"""What is refused, by name and with exit 4, before anything is written."""

import json

import pytest

from moetool.arch.mixtral import HF
from moetool.arch.schema import expand
from moetool.arch.spelling import to_config_json
from moetool.cli.app import run
from moetool.convert.synthetic import GEOMETRIES
from moetool.formats import create, open_checkpoint
from moetool.tensors import DType, TensorInfo

TINY = GEOMETRIES["tiny"]


@pytest.fixture
def refused(capsys, tmp_path):
    """Convert a folder and give what was said; nothing may be left beside it."""

    def check(folder):
        before = sorted(tmp_path.iterdir())
        capsys.readouterr()
        assert run(["convert", str(folder), "--json"]) == 4
        document = json.loads(capsys.readouterr().out)
        assert run(["convert", str(folder), "--dry-run"]) == 4
        assert sorted(tmp_path.iterdir()) == before
        assert document["ok"] is False
        return " ".join([document["error"], *document["findings"]])

    return check


@pytest.fixture
def look_alike(tmp_path):
    """Mixtral's names and shapes on disk, with other tensors beside them and another config."""

    def make(tensors, config):
        folder = tmp_path / "look-alike"
        folder.mkdir()
        shapes = {name: stored.shape for name, stored in expand(HF, TINY).items()} | tensors
        infos = [TensorInfo(name, DType.BF16, shape) for name, shape in shapes.items()]
        sink = create(folder / "model.safetensors", infos, {})
        for info in infos:
            sink.write(info.name, [bytes(info.nbytes)])
        sink.close()
        data = to_config_json(TINY, "bfloat16") | config
        plain = {key: value for key, value in data.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(plain))
        return folder

    return make


LAYERS = [f"model.layers.{n}." for n in range(TINY.n_layers)]
PHI = {
    **{f"{layer}self_attn.{p}_proj.bias": (256,) for layer in LAYERS for p in "qkvo"},
    **{f"{layer}{norm}.bias": (256,) for layer in LAYERS
       for norm in ("input_layernorm", "post_attention_layernorm")},
    "model.norm.bias": (256,), "lm_head.bias": (768,),
}  # fmt: skip
MINIMAX = {
    **{f"{layer}block_sparse_moe.e_score_correction_bias": (8,) for layer in LAYERS},
    **{f"{layer}self_attn.{p}_norm.weight": (256,) for layer in LAYERS for p in "qk"},
}
CASES = {
    "Phi-3.5-MoE as it declares itself": (PHI, {"model_type": "phimoe"}, "Phi-3.5-MoE"),
    "Phi-3.5-MoE by its names alone": (PHI, {}, "those of Phi-3.5-MoE: a sparsemixer router"),
    "its type over Mixtral's very names": ({}, {"model_type": "phimoe"}, "Phi-3.5-MoE"),
    "MiniMax-M2 as it declares itself": (MINIMAX, {"model_type": "minimax_m2"}, "MiniMax-M2"),
    "MiniMax-M2 as it was first published": (
        MINIMAX, {"model_type": "minimax"}, "MiniMax-M2: a sigmoid router"),
    "MiniMax-M2 by its names alone": (MINIMAX, {}, "those of MiniMax-M2: a sigmoid router"),
    "a class without a type": (
        {}, {"model_type": ..., "architectures": ["PhiMoEForCausalLM"]}, "PhiMoEForCausalLM"),
    "a sigmoid router": ({}, {"scoring_func": "sigmoid"}, "scoring_func 'sigmoid': a router"),
    "weights that are not renormalised": ({}, {"norm_topk_prob": False}, "not renormalised"),
    "shared experts": ({}, {"n_shared_experts": 1}, "shared experts, as DeepSeek"),
    "scaled angles": ({}, {"rope_scaling": {"type": "yarn"}}, "rotary angles of type 'yarn'"),
    "a type of tomorrow": ({}, {"model_type": "mixtral_next"}, "neither Mixtral nor Mistral"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_only_looks_like_mixtral_is_refused_by_name(case, look_alike, refused):
    """The message says what was recognised."""
    tensors, config, said = CASES[case]
    assert said in refused(look_alike(tensors, config))


@pytest.fixture
def gguf(tmp_path):
    """Write our own GGUF again with some key-values changed (None: left out) or tensors dropped."""

    def make(changes, without=""):
        assert run(["tiny", str(tmp_path / "good"), "--layout", "gguf", "--quiet"]) == 0
        with open_checkpoint(tmp_path / "good") as source:
            values = {key: (label(key, value), value)
                      for key, value in source.catalog.metadata.items()}  # fmt: skip
            values = {key: pair for key, pair in (values | changes).items() if pair is not None}
            infos = [i for i in source.catalog.tensors.values() if i.name != without]
            (tmp_path / "bad").mkdir()
            sink = create(tmp_path / "bad" / "bad.gguf", infos, values)
            for info in infos:
                sink.write(info.name, [source.read(info.name)])
            sink.close()
        return tmp_path / "bad"

    return make


def label(key, value):
    """The type of a key-value as it was written."""
    match value:
        case bool():
            return "bool"
        case list():
            return {"scores": "arr[f32]", "token_type": "arr[i32]"}.get(key.split(".")[-1],
                                                                       "arr[str]")  # fmt: skip
        case float():
            return "f32"
        case int():
            return "u32"
    return "str"


VOCABULARY = "tokenizer.ggml."
STRICT = {
    "no freq_base": ({"llama.rope.freq_base": None}, "rope.freq_base"),
    "no scores": ({VOCABULARY + "scores": None}, "0 entries of tokenizer.ggml.scores"),
    "scores all alike": (
        {VOCABULARY + "scores": ("arr[f32]", [-1000.0] * 768)}, "all scores are alike"),
    "no types": ({VOCABULARY + "token_type": None}, "0 entries of tokenizer.ggml.token_type"),
    "bytes as normal tokens": (
        {VOCABULARY + "token_type": ("arr[i32]", [1] * 768)}, "0 marked as such"),
    "no tokens": ({VOCABULARY + "tokens": None}, "0 tokens for a vocabulary of 768"),
    "an end that is no token": ({VOCABULARY + "eos_token_id": ("u32", 9999)}, "eos_token_id"),
    "no experts used": ({"llama.expert_used_count": None}, "expert_used_count"),
    "no key heads": ({"llama.attention.head_count_kv": None}, "head_count_kv"),
    "another gating": ({"llama.expert_gating_func": ("u32", 2)}, "a router of another kind"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRICT)
def test_a_gguf_that_llama_cpp_loads_or_dies_of_is_refused(case, gguf, refused):
    """Rules that its loader does not have: it fills in, tokenises wrongly, or aborts."""
    changes, said = STRICT[case]
    assert said in refused(gguf(changes))


@pytest.mark.parametrize(
    "name", ["blk.1.ffn_gate_exps.weight", "output.weight", "blk.0.attn_norm.weight"]
)
def test_a_gguf_that_lacks_a_tensor_is_refused_by_it(name, gguf, refused):
    """llama.cpp loads it and talks nonsense, or ties the output to the embedding."""
    assert f"missing {name}" in refused(gguf({}, without=name))


def test_our_own_gguf_passes(gguf):
    """Written again unchanged it converts: each refusal above is for the change alone."""
    assert run(["convert", str(gguf({}))]) == 0
