"""Look-alikes are refused by name, declared or shown by their tensors alone."""

import pytest

from moetool.arch.families import FAMILIES, by_type
from moetool.arch.mistral import DENSE
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import match_names, recognize
from moetool.arch.schema import expand
from moetool.errors import UnknownConvention
from moetool.tensors import Catalog, DType, TensorInfo


def hf(*tails, common=("input_layernorm.weight", "post_attention_layernorm.weight")):
    """The names of a two-layer model in transformers' spelling."""
    layers = [f"model.layers.{n}.{tail}" for n in range(2) for tail in (*common, *tails)]
    return ["model.embed_tokens.weight", *layers, "model.norm.weight", "lm_head.weight"]


ATTENTION = [f"self_attn.{p}_proj.weight" for p in "qkvo"]
BIASES = [f"self_attn.{p}_proj.bias" for p in "qkv"]
QK_NORMS = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
DENSE_MLP = [f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
MIXTRAL_EXPERTS = [
    "block_sparse_moe.gate.weight",
    *(f"block_sparse_moe.experts.{e}.w{w}.weight" for e in range(4) for w in (1, 2, 3)),
]
EXPERTS = [
    "mlp.gate.weight",
    *(f"mlp.experts.{e}.{p}_proj.weight" for e in range(4) for p in ("gate", "up", "down")),
]
SHARED = [f"mlp.shared_experts.{p}_proj.weight" for p in ("gate", "up", "down")]
GATED_SHARED = [
    "mlp.shared_expert_gate.weight",
    *(f"mlp.shared_expert.{p}_proj.weight" for p in ("gate", "up", "down")),
]
LATENT = [f"self_attn.{n}.weight" for n in
          ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")]  # fmt: skip

LOOK_ALIKES = {
    "Phi-3.5-MoE": [
        *hf(*ATTENTION, *BIASES, "self_attn.o_proj.bias", *MIXTRAL_EXPERTS,
            "input_layernorm.bias", "post_attention_layernorm.bias"),
        "model.norm.bias", "lm_head.bias",
    ],
    "MiniMax-M2": hf(*ATTENTION, *QK_NORMS, *MIXTRAL_EXPERTS,
                     "block_sparse_moe.e_score_correction_bias"),
    "MiniMax-Text-01": hf("self_attn.qkv_proj.weight", "self_attn.out_proj.weight",
                          "self_attn.output_gate.weight", "self_attn.norm.weight",
                          *MIXTRAL_EXPERTS),
    "Qwen2-MoE": hf(*ATTENTION, *BIASES, *EXPERTS, *GATED_SHARED),
    "Qwen3-MoE or OLMoE": hf(*ATTENTION, *QK_NORMS, *EXPERTS),
    "Qwen3-Next": hf(*ATTENTION, *QK_NORMS, *EXPERTS, *GATED_SHARED,
                     "linear_attn.in_proj_qkvz.weight"),
    "Qwen3": hf(*ATTENTION, *QK_NORMS, *DENSE_MLP),
    "Qwen2": hf(*ATTENTION, *BIASES, *DENSE_MLP),
    "DeepSeek-V2": hf(*LATENT, *EXPERTS, *SHARED),
    "DeepSeek-V3": hf(*LATENT, *EXPERTS, *SHARED, "mlp.gate.e_score_correction_bias"),
    "DeepSeekMoE": hf(*ATTENTION, *EXPERTS, *SHARED),
    "Mistral Small 4": hf(*LATENT, "mlp.gate.weight", "mlp.experts.gate_up_proj",
                          "mlp.experts.down_proj", *SHARED),
    "gpt-oss": hf(*ATTENTION, *BIASES, "self_attn.sinks", "mlp.router.weight", "mlp.router.bias",
                  "mlp.experts.gate_up_proj_blocks", "mlp.experts.gate_up_proj_scales"),
    "Granite-MoE": hf(*ATTENTION, "block_sparse_moe.input_linear.weight",
                      "block_sparse_moe.output_linear.weight",
                      "block_sparse_moe.router.layer.weight"),
    "Gemma": hf(*ATTENTION, *DENSE_MLP, "pre_feedforward_layernorm.weight"),
    "Phi-3": hf("self_attn.qkv_proj.weight", "self_attn.o_proj.weight", "mlp.gate_up_proj.weight",
                "mlp.down_proj.weight"),
    "Mistral Large 3": [
        "tok_embeddings.weight", "norm.weight", "output.weight",
        *(f"layers.{n}.{tail}.weight" for n in range(2) for tail in
          ("attention.wq_a", "attention.wkv_a_with_mqa", "gate", "experts.0.w1",
           "shared_experts.w1")),
    ],
    "LLaMA in Meta's own release": [
        "tok_embeddings.weight", "norm.weight", "output.weight", "rope.freqs",
        *(f"layers.{n}.attention.wq.weight" for n in range(2)),
    ],
    "Llama 3.1 or later": [
        "token_embd.weight", "output_norm.weight", "rope_freqs.weight", "blk.0.attn_q.weight",
    ],
    "DeepSeek-V2 or V3": ["token_embd.weight", "blk.0.attn_kv_a_mqa.weight",
                          "blk.0.ffn_gate_exps.weight"],
}  # fmt: skip


@pytest.mark.parametrize("family", LOOK_ALIKES)
def test_a_look_alike_is_refused_by_its_name(family):
    """Real names of a family lead to that family, not to its neighbours."""
    with pytest.raises(UnknownConvention) as caught:
        match_names(LOOK_ALIKES[family])
    assert f"those of {family}: " in str(caught.value)
    assert "Mixtral" in caught.value.hint


@pytest.mark.parametrize(
    ("declared", "family"),
    [("phimoe", "Phi-3.5-MoE"), ("minimax_m2", "MiniMax-M2"), ("minimax", "MiniMax-Text-01"),
     ("qwen3_moe", "Qwen3-MoE or OLMoE"), ("deepseek_v3", "DeepSeek-V3"), ("llama", "Llama")],
)  # fmt: skip
def test_a_declared_family_is_refused_before_its_names(declared, family, small_args, tmp_path):
    """The side file is believed: the same names under another type are another function."""
    (tmp_path / "config.json").write_text(f'{{"model_type": "{declared}"}}')
    infos = {name: TensorInfo(name, DType.BF16, stored.shape)
             for name, stored in expand(MIXTRAL.convention("hf"), small_args).items()}  # fmt: skip
    with pytest.raises(UnknownConvention, match=family) as caught:
        recognize(Catalog("safetensors", infos, {}), tmp_path)
    assert declared in str(caught.value)


def test_a_type_that_two_models_share_is_told_apart_by_names(tmp_path):
    """MiniMax-M2 was first published under MiniMax-Text-01's type."""
    (tmp_path / "config.json").write_text('{"model_type": "minimax"}')
    infos = {name: TensorInfo(name, DType.BF16, (1,)) for name in LOOK_ALIKES["MiniMax-M2"]}
    with pytest.raises(UnknownConvention, match="'minimax', which is MiniMax-M2: a sigmoid router"):
        recognize(Catalog("safetensors", infos, {}), tmp_path)


def test_a_class_is_a_declaration_where_no_type_is(small_args, tmp_path):
    """config.json without model_type still names what would load it."""
    (tmp_path / "config.json").write_text('{"architectures": ["PhiMoEForCausalLM"]}')
    infos = {name: TensorInfo(name, DType.BF16, stored.shape)
             for name, stored in expand(MIXTRAL.convention("hf"), small_args).items()}  # fmt: skip
    with pytest.raises(UnknownConvention, match="'PhiMoEForCausalLM' is neither"):
        recognize(Catalog("safetensors", infos, {}), tmp_path)


def test_a_gguf_of_another_architecture_is_refused_by_name(tmp_path):
    """general.architecture says what llama.cpp would compute."""
    catalog = Catalog("gguf", {}, {}, {"general.architecture": "phimoe"})
    with pytest.raises(UnknownConvention, match=r"Phi-3\.5-MoE"):
        recognize(catalog, tmp_path)


def test_names_that_belong_to_nothing_are_listed():
    """Where no family is recognised, the closest layout and the strangers are said."""
    with pytest.raises(UnknownConvention, match="closest: mistral") as caught:
        match_names(["tok_embeddings.weight", "norm.weight", "a.b.c"])
    assert caught.value.findings == ("unknown name 'a.b.c'",)


@pytest.mark.parametrize("architecture", [MIXTRAL, DENSE], ids=lambda a: a.name)
def test_no_mark_is_found_in_our_own_names(architecture, small_args, dense_args):
    """A supported checkpoint with one stray tensor must not be taken for another family."""
    args = dense_args if architecture is DENSE else small_args
    for convention in architecture.conventions:
        names = [*expand(convention, args), "stray.tensor"]
        with pytest.raises(UnknownConvention, match="1 of"):
            match_names(names)


def test_no_type_is_claimed_twice():
    """A declared type leads to one family."""
    types = [name for family in FAMILIES for name in family.types]
    assert len(types) == len(set(types))
    assert by_type("mixtral") is by_type("mistral") is None
