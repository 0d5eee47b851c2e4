"""The tables of dense Mistral-7B, and the part of them that Mixtral shares: all but feed-forward.

    mistral   the torrent's own names (consolidated.00.pth), as mistral-inference reads them
    hf        transformers' MistralForCausalLM
    gguf      llama.cpp: rotary pairs as in the raw release

A dense layer has one SwiGLU and no router: w1 w2 w3 of every layer, without an expert index.
Sources: mistralai/mistral-inference: src/mistral_inference/transformer.py (mistral);
huggingface/transformers: models/mistral/modeling_mistral.py (hf); ggml-org/llama.cpp:
gguf-py/gguf/constants.py and conversion/base.py (gguf).
"""

from __future__ import annotations

from moetool.arch.schema import Architecture, Convention, Role, RopeLayout, Stored

PAIRS, HALVES = RopeLayout.INTERLEAVED, RopeLayout.HALVES

RAW_COMMON = {
    Role.TOK_EMBEDDINGS: Stored("tok_embeddings.weight"),
    Role.ATTENTION_NORM: Stored("layers.{layer}.attention_norm.weight"),
    Role.WQ: Stored("layers.{layer}.attention.wq.weight", rope=PAIRS),
    Role.WK: Stored("layers.{layer}.attention.wk.weight", rope=PAIRS),
    Role.WV: Stored("layers.{layer}.attention.wv.weight"),
    Role.WO: Stored("layers.{layer}.attention.wo.weight"),
    Role.FFN_NORM: Stored("layers.{layer}.ffn_norm.weight"),
    Role.NORM: Stored("norm.weight"),
    Role.OUTPUT: Stored("output.weight"),
}

HF_COMMON = {
    Role.TOK_EMBEDDINGS: Stored("model.embed_tokens.weight"),
    Role.ATTENTION_NORM: Stored("model.layers.{layer}.input_layernorm.weight"),
    Role.WQ: Stored("model.layers.{layer}.self_attn.q_proj.weight", rope=HALVES),
    Role.WK: Stored("model.layers.{layer}.self_attn.k_proj.weight", rope=HALVES),
    Role.WV: Stored("model.layers.{layer}.self_attn.v_proj.weight"),
    Role.WO: Stored("model.layers.{layer}.self_attn.o_proj.weight"),
    Role.FFN_NORM: Stored("model.layers.{layer}.post_attention_layernorm.weight"),
    Role.NORM: Stored("model.norm.weight"),
    Role.OUTPUT: Stored("lm_head.weight"),
}

# ggml-org/llama.cpp: conversion/base.py keeps one-dimensional tensors and the router in f32.
GGUF_COMMON = {
    Role.TOK_EMBEDDINGS: Stored("token_embd.weight"),
    Role.ATTENTION_NORM: Stored("blk.{layer}.attn_norm.weight", full_precision=True),
    Role.WQ: Stored("blk.{layer}.attn_q.weight", rope=PAIRS),
    Role.WK: Stored("blk.{layer}.attn_k.weight", rope=PAIRS),
    Role.WV: Stored("blk.{layer}.attn_v.weight"),
    Role.WO: Stored("blk.{layer}.attn_output.weight"),
    Role.FFN_NORM: Stored("blk.{layer}.ffn_norm.weight", full_precision=True),
    Role.NORM: Stored("output_norm.weight", full_precision=True),
    Role.OUTPUT: Stored("output.weight"),
}

DENSE_RAW = Convention(
    name="mistral",
    title="raw Mistral",
    file_format="pth",
    stored=RAW_COMMON
    | {
        Role.W1: Stored("layers.{layer}.feed_forward.w1.weight"),
        Role.W2: Stored("layers.{layer}.feed_forward.w2.weight"),
        Role.W3: Stored("layers.{layer}.feed_forward.w3.weight"),
    },
)

DENSE_HF = Convention(
    name="hf",
    title="Hugging Face",
    file_format="safetensors",
    stored=HF_COMMON
    | {
        Role.W1: Stored("model.layers.{layer}.mlp.gate_proj.weight"),
        Role.W2: Stored("model.layers.{layer}.mlp.down_proj.weight"),
        Role.W3: Stored("model.layers.{layer}.mlp.up_proj.weight"),
    },
)

DENSE_GGUF = Convention(
    name="gguf",
    title="llama.cpp",
    file_format="gguf",
    stored=GGUF_COMMON
    | {
        Role.W1: Stored("blk.{layer}.ffn_gate.weight"),
        Role.W2: Stored("blk.{layer}.ffn_down.weight"),
        Role.W3: Stored("blk.{layer}.ffn_up.weight"),
    },
)

DENSE = Architecture(
    name="mistral",
    title="Mistral (dense SwiGLU feed-forward)",
    conventions=(DENSE_RAW, DENSE_HF, DENSE_GGUF),
)
