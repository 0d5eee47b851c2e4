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

    ``types``: what config.json or a GGUF declares. ``marks``: pieces of tensor names; a family is
    recognised where each of them is found in some name.
    """

    name: str
    differs: str
    types: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.differs}"


# The first whose marks are all there is it: those with more or rarer marks come first.
FAMILIES = (
    Family("Phi-3.5-MoE", "a sparsemixer router, LayerNorm and attention with biases",
           ("phimoe",), ("layernorm.bias", "block_sparse_moe.experts.")),
    Family("Phi-3.5-MoE", "a sparsemixer router, LayerNorm and attention with biases",
           (), ("attn_norm.bias", "ffn_gate_inp.")),
    Family("MiniMax-M2", "a sigmoid router with a selection bias, norms of queries and keys",
           ("minimax_m2", "minimax-m2"), ("block_sparse_moe.e_score_correction_bias",)),
    Family("MiniMax-Text-01", "lightning attention in most layers, scaled residuals",
           ("minimax", "minimax_text_01"), ("self_attn.qkv_proj.", "block_sparse_moe.")),
    Family("MiniMax-Text-01", "lightning attention in most layers, scaled residuals",
           (), ("self_attn.output_gate.", "block_sparse_moe.")),
    Family("Granite-MoE", "a packed mixture, scaled embeddings, residuals and logits",
           ("granitemoe", "granitemoeshared", "granitemoehybrid", "granite", "granitehybrid"),
           ("block_sparse_moe.input_linear.",)),
    Family("Mistral Small 4", "latent attention and shared experts",
           ("mistral4",), ("mlp.experts.gate_up_proj", "self_attn.kv_a_proj_with_mqa.")),
    Family("Mistral Large 3", "latent attention and shared experts",
           ("mistral_large_3", "mistral_large4"), ("attention.wkv_a_with_mqa.",)),
    Family("Mistral Large 3", "latent attention and shared experts",
           (), (".shared_experts.w1.",)),
    Family("DeepSeek-V3", "latent attention, shared experts, a sigmoid router with groups",
           ("deepseek_v3", "deepseek_v32", "kimi_k2"),
           ("kv_a_proj_with_mqa.", "mlp.gate.e_score_correction_bias")),
    Family("DeepSeek-V2", "latent attention and shared experts",
           ("deepseek_v2", "deepseek2"), ("kv_a_proj_with_mqa.",)),
    Family("DeepSeek-V2 or V3", "latent attention and shared experts",
           (), ("attn_kv_a_mqa.",)),
    Family("DeepSeekMoE", "shared experts", ("deepseek",), ("mlp.shared_experts.",)),
    Family("Qwen3-Next", "linear attention in most layers, a gated shared expert",
           ("qwen3_next", "qwen3next", "qwen3_5_moe", "qwen35moe"),
           ("linear_attn.", "shared_expert.")),
    Family("Qwen2-MoE", "a gated shared expert, attention with biases",
           ("qwen2_moe", "qwen2moe"), ("mlp.shared_expert_gate.",)),
    Family("Qwen2-MoE", "a gated shared expert, attention with biases",
           (), ("ffn_gate_inp_shexp.",)),
    Family("gpt-oss", "a router and experts with biases, attention sinks",
           ("gpt_oss", "gpt-oss"), ("self_attn.sinks",)),
    Family("Qwen3-MoE or OLMoE", "norms of queries and keys, and more experts of a token",
           ("qwen3_moe", "qwen3moe", "olmoe", "flex_olmo"),
           ("self_attn.q_norm.", "mlp.experts.0.gate_proj.")),
    Family("Qwen3-MoE or OLMoE", "norms of queries and keys, and more experts of a token",
           (), ("attn_q_norm.", "ffn_gate_exps.")),
    Family("DBRX", "one matrix for queries, keys and values, clipped", ("dbrx",),
           ("ffn.experts.mlp.",)),
    Family("Llama 4", "sigmoid routing on the inputs of the experts",
           ("llama4", "llama4_text"), ("feed_forward.shared_expert.",)),
    Family("Grok", "attention with capped logits, a router without renormalisation",
           ("grok-1", "grok", "grok-2"), ("post_moe_norm.",)),
    Family("Jamba", "Mamba layers", ("jamba",), ("mamba.",)),
    Family("Qwen3", "norms of queries and keys",
           ("qwen3",), ("self_attn.q_norm.", "mlp.gate_proj.")),
    Family("Qwen2", "attention with biases", ("qwen2",), ("self_attn.q_proj.bias",)),
    Family("Gemma", "norms behind attention and feed-forward, scaled embeddings",
           ("gemma", "gemma2", "gemma3", "gemma3_text"), ("pre_feedforward_layernorm.",)),
    Family("Phi-3", "fused projections", ("phi3",),
           ("self_attn.qkv_proj.", "mlp.gate_up_proj.")),
    Family("LLaMA in Meta's own release", "tensors cut over several files", (), ("rope.freqs",)),
    Family("Llama 3.1 or later", "scaled rotary angles", (), ("rope_freqs.weight",)),
    Family("Llama", "rotary angles that may be scaled, and tied embeddings", ("llama",)),
    Family("Pixtral or Mistral Small 3", "a vision tower beside the language model",
           ("mistral3", "llava", "pixtral"), ("vision_",)),
    Family("Ministral", "windows that differ between layers", ("ministral", "ministral3")),
)  # fmt: skip


def by_type(declared: str) -> Family | None:
    """The unsupported family that declares itself so."""
    return next((family for family in FAMILIES if declared in family.types), None)


def by_names(names: Iterable[str]) -> Family | None:
    """The unsupported family that has such tensor names."""
    held = tuple(names)
    for family in FAMILIES:
        if family.marks and all(any(mark in name for name in held) for mark in family.marks):
            return family
    return None
