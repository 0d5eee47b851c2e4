"""Settings of other models under Mixtral's names: refused, with what they mean and who has them."""

import pytest

from moetool.arch import maths, spelling
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import recognize
from moetool.arch.schema import expand
from moetool.convert.synthetic import GEOMETRIES
from moetool.errors import UnknownConvention
from moetool.tensors import Catalog, DType, TensorInfo

CONFIG = spelling.to_config_json(GEOMETRIES["8x7b"], "bfloat16")
PARAMS = spelling.to_params_json(GEOMETRIES["8x7b"])
KEYS = {"general.architecture": "llama"} | {
    key: value for key, (_, value) in spelling.to_gguf(GEOMETRIES["8x7b"]).items()
}

# The routers and attentions that published config.json files declare.
ROUTERS = [
    ({"scoring_func": "sigmoid"}, "MiniMax-M2"),
    ({"router_type": "sparsemixer"}, "a router of another kind"),
    ({"moe_router_score_function": "sigmoid"}, "a router of another kind"),
    ({"use_sigmoid": True}, "a router of another kind"),
    ({"use_routing_bias": True}, "a router of another kind"),
    ({"norm_topk_prob": False}, "not renormalised, as Qwen2-MoE"),
    ({"n_shared_experts": 1}, "shared experts, as DeepSeek"),
    ({"shared_intermediate_size": 1024}, "shared experts"),
    ({"n_group": 8}, "chosen by groups"),
    ({"topk_method": "noaux_tc"}, "chosen by groups"),
    ({"routed_scaling_factor": 2.5}, "scaled routing weights"),
    ({"first_k_dense_replace": 3}, "layers without experts"),
    ({"mlp_only_layers": [0]}, "layers without experts"),
    ({"attention_bias": True}, "biases, as Phi-3.5-MoE"),
    ({"lm_head_bias": True}, "biases, as Phi-3.5-MoE"),
    ({"use_qk_norm": True}, "norms of queries and keys, as MiniMax-M2"),
    ({"kv_lora_rank": 512}, "latent attention"),
    ({"rotary_dim": 64}, "rotates whole heads"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "a part of each"),
    ({"logits_scaling": 6.0}, "Granite-MoE"),
    ({"tie_word_embeddings": True}, "is the embedding's"),
    ({"quantization_config": {"quant_method": "awq"}}, "a quantiser rewrote"),
    ({"hidden_act": "gelu"}, "another activation"),
]


@pytest.mark.parametrize(("change", "said"), ROUTERS, ids=lambda value: str(value)[:40])
def test_a_setting_of_another_model_is_refused_by_what_it_means(change, said):
    """Mixtral's type, names and shapes, and yet another function."""
    with pytest.raises(UnknownConvention, match=said) as caught:
        spelling.from_config_json(CONFIG | change)
    assert next(iter(change)) in str(caught.value) or "partial_rotary_factor" in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("field", sorted({f for rule in maths.CONFIG_JSON for f in rule.fields}))
def test_absent_null_and_plain_values_are_mistrals(field):
    """Fine-tuning tools write such fields with the values that change nothing."""
    assert spelling.from_config_json(CONFIG | {field: None}).dim == 4096
    for value in next(rule for rule in maths.CONFIG_JSON if field in rule.fields).plain:
        assert spelling.from_config_json(CONFIG | {field: value}).dim == 4096


def test_all_settings_are_named_at_once():
    """MiniMax-M2's own config.json under Mixtral's type: everything that differs is listed."""
    minimax = {"scoring_func": "sigmoid", "use_routing_bias": True, "use_qk_norm": True}
    with pytest.raises(UnknownConvention) as caught:
        spelling.from_config_json(CONFIG | minimax)
    assert [finding.split()[0] for finding in caught.value.findings] == [
        "use_qk_norm", "scoring_func", "use_routing_bias",
    ]  # fmt: skip


def test_a_whole_checkpoint_with_another_router_is_refused(small_args, tmp_path):
    """Every name and shape is Mixtral's; only config.json tells."""
    import json

    config = spelling.to_config_json(small_args, "bfloat16") | {"scoring_func": "sigmoid"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    layout = expand(MIXTRAL.convention("hf"), small_args)
    infos = {name: TensorInfo(name, DType.BF16, stored.shape) for name, stored in layout.items()}
    with pytest.raises(UnknownConvention, match="scoring_func 'sigmoid': a router of another kind"):
        recognize(Catalog("safetensors", infos, {}), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "Codestral Mamba"),
        ({"vision_encoder": {"hidden_size": 1024}}, "Pixtral"),
        ({"use_scaled_rope": True}, "Llama 3.1"),
        ({"yarn": {"factor": 64}}, "Mistral Large 3"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"lora": {"rank": 64}}, "an adapter"),
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "a quantiser rewrote"),
        ({"sliding_window": [4096, None]}, "differ between layers"),
        ({"moe": {**PARAMS["moe"], "num_shared_experts": 1}}, "num_shared_experts"),
    ],
)
def test_a_params_json_of_another_release_is_refused(change, said):
    """The raw spelling has its own look-alikes."""
    with pytest.raises(UnknownConvention, match=said):
        spelling.from_params_json(PARAMS | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"llama.expert_gating_func": 2}, "a router of another kind"),
        ({"llama.expert_weights_norm": False}, "not renormalised"),
        ({"llama.expert_shared_count": 1}, "shared experts"),
        ({"llama.rope.scaling.type": "yarn"}, "scaled rotary angles"),
        ({"llama.rope.dimension_count": 64}, "rotates whole heads"),
        ({"llama.attention.value_length": 64}, "rotates whole heads"),
        ({"general.architecture": "minimax-m2"}, "MiniMax-M2: a sigmoid router"),
        ({"general.architecture": "phimoe"}, r"Phi-3\.5-MoE: a sparsemixer router"),
    ],
)
def test_a_gguf_of_another_model_is_refused(change, said):
    """To llama.cpp many models are a llama; their key-values tell them apart."""
    with pytest.raises(UnknownConvention, match=said):
        spelling.from_gguf(KEYS | change)


def test_what_llama_cpp_writes_of_a_mixtral_is_plain():
    """The keys that newer converters add with Mixtral's own values."""
    plain = {"llama.expert_gating_func": 1, "llama.expert_weights_norm": True,
             "llama.rope.scaling.type": "none"}  # fmt: skip
    assert spelling.from_gguf(KEYS | plain).n_experts == 8
