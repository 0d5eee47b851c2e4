"""The tables of Mixtral: six conventions, one of which only old files have.

    mistral         the torrent's own names (consolidated.00.pth, consolidated.safetensors)
    mistral-packed  the hub's first upload (consolidated.00.pt … 07.pt): experts as rows of one
                    matrix for each of w1 w2 w3, and w2 transposed
    hf              transformers' per-expert names: what every client reads
    hf-fused        the parameters as transformers 5 holds them in memory
    gguf            llama.cpp: experts stacked, rotary pairs as in the raw release
    gguf-split      llama.cpp before 2024-04: one tensor for each expert, which no
                    loader of today reads

Sources: dzhulgakov/llama-mistral: llama/model.py; mistralai/mistral-inference:
src/mistral_inference/transformer.py (mistral); huggingface/transformers 4.36:
convert_mixtral_weights_to_hf.py and vllm-project/vllm 0.2.4: models/mixtral.py (mistral-packed);
transformers 5: conversion_mapping.py (hf, hf-fused); ggml-org/llama.cpp: gguf-py/gguf/constants.py
(gguf), pull request 6387 (gguf-split).
"""

from __future__ import annotations

from moetool.arch.mistral import GGUF_COMMON, HF_COMMON, RAW_COMMON
from moetool.arch.schema import Architecture, Convention, ExpertLayout, Role, Stored

_ROUTER_GGUF = Stored("blk.{layer}.ffn_gate_inp.weight", full_precision=True)

MISTRAL = Convention(
    name="mistral",
    title="raw Mistral, one tensor for each expert",
    file_format="pth",
    stored=RAW_COMMON
    | {
        Role.ROUTER: Stored("layers.{layer}.feed_forward.gate.weight"),
        Role.W1: Stored("layers.{layer}.feed_forward.experts.{expert}.w1.weight"),
        Role.W2: Stored("layers.{layer}.feed_forward.experts.{expert}.w2.weight"),
        Role.W3: Stored("layers.{layer}.feed_forward.experts.{expert}.w3.weight"),
    },
)

# megablocks computes (act(x @ w1.T) * (x @ w3.T)) @ w2, so w2 lies transposed among the rows.
MISTRAL_PACKED = Convention(
    name="mistral-packed",
    title="raw Mistral, experts packed as rows, w2 transposed",
    file_format="pt",
    stored=RAW_COMMON
    | {
        Role.ROUTER: Stored("layers.{layer}.block_sparse_moe.gate.weight"),
        Role.W1: Stored("layers.{layer}.block_sparse_moe.w1", experts=ExpertLayout.ROWS),
        Role.W2: Stored(
            "layers.{layer}.block_sparse_moe.w2", experts=ExpertLayout.ROWS, transposed=True
        ),
        Role.W3: Stored("layers.{layer}.block_sparse_moe.w3", experts=ExpertLayout.ROWS),
    },
)

HF = Convention(
    name="hf",
    title="Hugging Face, one tensor for each expert",
    file_format="safetensors",
    stored=HF_COMMON
    | {
        Role.ROUTER: Stored("model.layers.{layer}.block_sparse_moe.gate.weight"),
        Role.W1: Stored("model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"),
        Role.W2: Stored("model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight"),
        Role.W3: Stored("model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight"),
    },
)

_GATE_UP = "model.layers.{layer}.mlp.experts.gate_up_proj"

HF_FUSED = Convention(
    name="hf-fused",
    title="Hugging Face, experts stacked, w1 and w3 fused",
    file_format="safetensors",
    stored=HF_COMMON
    | {
        Role.ROUTER: Stored("model.layers.{layer}.mlp.gate.weight"),
        Role.W1: Stored(_GATE_UP, experts=ExpertLayout.STACKED, part=(0, 2)),
        Role.W2: Stored("model.layers.{layer}.mlp.experts.down_proj", experts=ExpertLayout.STACKED),
        Role.W3: Stored(_GATE_UP, experts=ExpertLayout.STACKED, part=(1, 2)),
    },
)

GGUF = Convention(
    name="gguf",
    title="llama.cpp, experts stacked",
    file_format="gguf",
    stored=GGUF_COMMON
    | {
        Role.ROUTER: _ROUTER_GGUF,
        Role.W1: Stored("blk.{layer}.ffn_gate_exps.weight", experts=ExpertLayout.STACKED),
        Role.W2: Stored("blk.{layer}.ffn_down_exps.weight", experts=ExpertLayout.STACKED),
        Role.W3: Stored("blk.{layer}.ffn_up_exps.weight", experts=ExpertLayout.STACKED),
    },
)

GGUF_SPLIT = Convention(
    name="gguf-split",
    title="llama.cpp before April 2024, one tensor for each expert",
    file_format="gguf",
    stored=GGUF_COMMON
    | {
        Role.ROUTER: _ROUTER_GGUF,
        Role.W1: Stored("blk.{layer}.ffn_gate.{expert}.weight"),
        Role.W2: Stored("blk.{layer}.ffn_down.{expert}.weight"),
        Role.W3: Stored("blk.{layer}.ffn_up.{expert}.weight"),
    },
)

MIXTRAL = Architecture(
    name="mixtral",
    title="Mixtral (sparse mixture of SwiGLU experts, top-k softmax router)",
    conventions=(MISTRAL, MISTRAL_PACKED, HF, HF_FUSED, GGUF, GGUF_SPLIT),
)
