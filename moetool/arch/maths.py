"""Settings under which the same weights are another function; a checkpoint that has one is refused.

Names, shapes and even the declared type can be Mixtral's while the router is another one. What a
side file or a GGUF says beside the hyperparameters is held to these rules: a field that is absent
or null means what Mistral's own code computes, any other value than the plain ones does not.
Sources: huggingface/transformers 5: models/{phimoe,minimax,minimax_m2,qwen2_moe,deepseek_v3,
granitemoe}/configuration_*.py (config.json); mistralai/mistral-inference:
src/mistral_inference/args.py and vllm-project/vllm: transformers_utils/configs/mistral.py
(params.json); ggml-org/llama.cpp: src/llama-arch.cpp (GGUF).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moetool.errors import UnknownConvention


@dataclass(frozen=True, slots=True)
class Rule:
    """Fields that must have a plain value, and what any other one means."""

    fields: tuple[str, ...]
    plain: tuple[object, ...]
    means: str


_BIASES = "biases, as Phi-3.5-MoE and Qwen2 have"
_ROUTER = "a router of another kind than softmax, as MiniMax-M2 and DeepSeek-V3 have"
_SHARED = "shared experts, as DeepSeek and Qwen2-MoE have"
_DENSE_LAYERS = "layers without experts among those with, as DeepSeek and Qwen2-MoE have"
_LATENT = "latent attention, as DeepSeek-V2 and Mistral Large 3 have"
_SCALED = "scaled embeddings, residuals or logits, as Granite-MoE and Grok have"

CONFIG_JSON = (
    Rule(("hidden_act",), ("silu",), "another activation than silu"),
    Rule(("tie_word_embeddings",), (False,), "an output matrix that is the embedding's"),
    Rule(("attention_bias", "qkv_bias", "mlp_bias", "lm_head_bias", "use_bias"), (False,), _BIASES),
    Rule(("use_qk_norm", "qk_layernorm"), (False,),
         "norms of queries and keys, as MiniMax-M2 and Qwen3 have"),
    Rule(("scoring_func", "score_func", "score_function", "router_type", "router_score_function",
          "moe_router_score_function"), ("softmax",), _ROUTER),
    Rule(("use_sigmoid", "moe_router_use_sigmoid", "use_routing_bias",
          "moe_router_enable_expert_bias"), (False,), _ROUTER),
    Rule(("topk_method",), ("greedy",), "experts chosen by groups, as DeepSeek does"),
    Rule(("n_group", "topk_group"), (0, 1), "experts chosen by groups, as DeepSeek does"),
    Rule(("norm_topk_prob",), (True,),
         "routing weights that are not renormalised, as Qwen2-MoE and OLMoE have"),
    Rule(("routed_scaling_factor",), (1,), "scaled routing weights, as DeepSeek has"),
    Rule(("n_shared_experts", "num_shared_experts", "shared_intermediate_size",
          "shared_expert_intermediate_size"), (0,), _SHARED),
    Rule(("first_k_dense_replace",), (0,), _DENSE_LAYERS),
    Rule(("decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step"), (1,),
         _DENSE_LAYERS),
    Rule(("mlp_only_layers",), ([],), _DENSE_LAYERS),
    Rule(("q_lora_rank", "kv_lora_rank"), (), _LATENT),
    Rule(("partial_rotary_factor",), (1,), "rotary angles on a part of each head"),
    Rule(("embedding_multiplier", "residual_multiplier", "logits_scaling"), (1,), _SCALED),
    Rule(("attention_multiplier", "attn_logit_softcapping", "final_logit_softcapping"), (),
         _SCALED),
    Rule(("quantization_config",), (), "weights that a quantiser rewrote"),
)  # fmt: skip

PARAMS_JSON = (
    Rule(("model_type",), ("transformer",), "another network, as Codestral Mamba is"),
    Rule(("vision_encoder",), (), "a vision tower beside the language model, as Pixtral has"),
    Rule(("use_scaled_rope",), (False,), "scaled rotary angles, as Llama 3.1 has"),
    Rule(("yarn", "llama_4_scaling"), (), "scaled rotary angles, as Mistral Large 3 has"),
    Rule(("q_lora_rank", "kv_lora_rank"), (), _LATENT),
    Rule(("tied_embeddings",), (False,), "an output matrix that is the embedding's"),
    Rule(("use_biases",), (False,), _BIASES),
    Rule(("lora",), (), "an adapter, not a model"),
    Rule(("quantization",), (), "weights that a quantiser rewrote"),
)

# ggml-org/llama.cpp: src/llama-hparams.h: gating function 0 is "not said", 1 is softmax.
GGUF = (
    Rule(("expert_gating_func",), (0, 1), _ROUTER),
    Rule(("expert_weights_norm",), (True,), "routing weights that are not renormalised"),
    Rule(("expert_weights_scale",), (0, 1), "scaled routing weights, as DeepSeek has"),
    Rule(("expert_shared_count", "expert_shared_feed_forward_length"), (0,), _SHARED),
    Rule(("leading_dense_block_count",), (0,), _DENSE_LAYERS),
    Rule(("rope.scaling.type",), ("none",), "scaled rotary angles, as Llama and others have"),
    Rule(("attention.q_lora_rank", "attention.kv_lora_rank"), (), _LATENT),
    Rule(("logit_scale", "residual_scale", "embedding_scale"), (0, 1), _SCALED),
)


def refuse_other_maths(data: Mapping[str, Any], rules: tuple[Rule, ...], where: str) -> None:
    """Refuse settings under which the same weights are another function, all of them named.

    Raises:
        UnknownConvention: with what each setting means and which families have it.
    """
    found = tuple(_departures(data, rules))
    if found:
        raise UnknownConvention(
            f"it is neither Mixtral nor Mistral: {found[0]}",
            where=where,
            findings=found if len(found) > 1 else (),
        )


def _departures(data: Mapping[str, Any], rules: tuple[Rule, ...]) -> Iterator[str]:
    for rule in rules:
        for name in rule.fields:
            value = data.get(name)
            if value is not None and value not in rule.plain:
                yield f"{name} {str(value)[:40]!r}: {rule.means}"
