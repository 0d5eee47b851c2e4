"""Models that only look like ours: by what they are recognised, and why they are refused.

Tensor names do not make a model. Phi-3.5-MoE has Mixtral's names and another router; a Llama has
Mistral's names and may scale its rotary angles. A family is told by what a side file or a GGUF
declares (``model_type``, ``general.architecture``), and else by names that only it has.
Sources: huggingface/transformers 5: conversion_mapping.py and models/*; ggml-org/llama.cpp:
gguf-py/gguf/constants.py; vllm-project/vllm: mistral_large_3.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """A family that is known and not supported.

    ``types``: what config.json or a GGUF declares. ``marks``: sets of pieces of tensor names, one
    set for each spelling; a family is recognised where each piece of a set is in some name.
    """

    name: str
    differs: str
    types: tuple[str, ...] = ()
    marks: tuple[frozenset[str], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.differs}"


def _marks(*sets: str) -> tuple[frozenset[str], ...]:
    """Each text is a set of pieces with spaces between them."""
    return tuple(frozenset(text.split()) for text in sets)


# The first of which a set of marks is there is it: those with more or rarer marks come first.
FAMILIES = (
    Family("Phi-3.5-MoE", "a sparsemixer router, LayerNorm and attention with biases",
           ("phimoe",),
           _marks("layernorm.bias block_sparse_moe.experts.", "attn_norm.bias ffn_gate_inp.")),
    Family("MiniMax-M2", "a sigmoid router with a selection bias, norms of queries and keys",
           ("minimax_m2", "minimax-m2"), _marks("block_sparse_moe.e_score_correction_bias")),
    Family("MiniMax-Text-01", "lightning attention in most layers, scaled residuals",
           ("minimax", "minimax_text_01"),
           _marks("self_attn.qkv_proj. block_sparse_moe.",
                  "self_attn.output_gate. block_sparse_moe.")),
    Family("Granite-MoE", "a packed mixture, scaled embeddings, residuals and logits",
           ("granitemoe", "granitemoeshared", "granitemoehybrid", "granite", "granitehybrid"),
           _marks("block_sparse_moe.input_linear.")),
    Family("Mistral Small 4", "latent attention and shared experts",
           ("mistral4",), _marks("mlp.experts.gate_up_proj self_attn.kv_a_proj_with_mqa.")),
    Family("Mistral Large 3", "latent attention and shared experts",
           ("mistral_large_3", "mistral_large4"),
           _marks("attention.wkv_a_with_mqa.", ".shared_experts.w1.")),
    Family("DeepSeek-V3", "latent attention, shared experts, a sigmoid router with groups",
           ("deepseek_v3", "deepseek_v32", "kimi_k2"),
           _marks("kv_a_proj_with_mqa. mlp.gate.e_score_correction_bias")),
    Family("DeepSeek-V2", "latent attention and shared experts",
           ("deepseek_v2", "deepseek2"), _marks("kv_a_proj_with_mqa.")),
    Family("DeepSeek-V2 or V3", "latent attention and shared experts",
           (), _marks("attn_kv_a_mqa.")),
    Family("DeepSeekMoE", "shared experts", ("deepseek",), _marks("mlp.shared_experts.")),
    Family("Qwen3-Next", "linear attention in most layers, a gated shared expert",
           ("qwen3_next", "qwen3next", "qwen3_5_moe", "qwen35moe"),
           _marks("linear_attn. shared_expert.")),
    Family("Qwen2-MoE", "a gated shared expert, attention with biases",
           ("qwen2_moe", "qwen2moe"), _marks("mlp.shared_expert_gate.", "ffn_gate_inp_shexp.")),
    Family("gpt-oss", "a router and experts with biases, attention sinks",
           ("gpt_oss", "gpt-oss"), _marks("self_attn.sinks")),
    Family("Qwen3-MoE or OLMoE", "norms of queries and keys, and more experts of a token",
           ("qwen3_moe", "qwen3moe", "olmoe", "flex_olmo"),
           _marks("self_attn.q_norm. mlp.experts.0.gate_proj.", "attn_q_norm. ffn_gate_exps.")),
    Family("DBRX", "one matrix for queries, keys and values, clipped", ("dbrx",),
           _marks("ffn.experts.mlp.")),
    Family("Llama 4", "sigmoid routing on the inputs of the experts",
           ("llama4", "llama4_text"), _marks("feed_forward.shared_expert.")),
    Family("Grok", "attention with capped logits, a router without renormalisation",
           ("grok-1", "grok", "grok-2"), _marks("post_moe_norm.")),
    Family("Jamba", "Mamba layers", ("jamba",), _marks("mamba.")),
    Family("Qwen3", "norms of queries and keys",
           ("qwen3",), _marks("self_attn.q_norm. mlp.gate_proj.")),
    Family("Qwen2", "attention with biases", ("qwen2",), _marks("self_attn.q_proj.bias")),
    Family("Gemma", "norms behind attention and feed-forward, scaled embeddings",
           ("gemma", "gemma2", "gemma3", "gemma3_text"), _marks("pre_feedforward_layernorm.")),
    Family("Phi-3", "fused projections", ("phi3",),
           _marks("self_attn.qkv_proj. mlp.gate_up_proj.")),
    Family("LLaMA in Meta's own release", "tensors cut over several files", (),
           _marks("rope.freqs")),
    Family("Llama 3.1 or later", "scaled rotary angles", (), _marks("rope_freqs.weight")),
    Family("Llama", "rotary angles that may be scaled, and tied embeddings", ("llama",)),
    Family("Pixtral or Mistral Small 3", "a vision tower beside the language model",
           ("mistral3", "llava", "pixtral"), _marks("vision_")),
    Family("Ministral", "windows that differ between layers", ("ministral", "ministral3")),
)  # fmt: skip


def by_type(declared: str) -> Family | None:
    """The unsupported family that declares itself so."""
    return next((family for family in FAMILIES if declared in family.types), None)


def by_names(names: Iterable[str]) -> Family | None:
    """The unsupported family that has such tensor names."""
    held = tuple(names)

    def are_there(pieces: frozenset[str]) -> bool:
        return all(any(piece in name for name in held) for piece in pieces)

    return next((family for family in FAMILIES if any(map(are_there, family.marks))), None)
