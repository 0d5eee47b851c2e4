"""Sixteen ways in which a model can be another one and still run: of values, and of settings.

A damage changes tensors in place; each mutation names its first culprit as `lockstep` does.
"""

from __future__ import annotations

import torch

from moetool.convert.ops import Halve


def expert(layer, number, matrix):
    return f"layers.{layer}.feed_forward.experts.{number}.{matrix}.weight"


def flip(name, bit):
    def damage(tensors, _args):
        bits = tensors[name].view(torch.int16).view(-1)
        bits[int(tensors[name].view(-1).float().abs().argmax())] ^= 1 << bit

    return damage


def through(dtype):
    def damage(tensors, _args):
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(dtype).to(tensor.dtype)

    return damage


def zero_expert(tensors, _args):
    for matrix in ("w1", "w2", "w3"):
        tensors[expert(2, 5, matrix)].zero_()


def swap(pairs):
    def damage(tensors, _args):
        for one, other in pairs:
            tensors[one], tensors[other] = tensors[other], tensors[one]

    return damage


def experts_3_and_5(tensors, args):
    swap([(expert(2, 3, w), expert(2, 5, w)) for w in ("w1", "w2", "w3")])(tensors, args)


def gate_and_up(layers):
    def damage(tensors, args):
        swap([(expert(n, e, "w1"), expert(n, e, "w3")) for n in layers
              for e in range(args.n_experts)])(tensors, args)  # fmt: skip

    return damage


def copy_expert(tensors, _args):
    for matrix in ("w1", "w2", "w3"):
        tensors[expert(0, 4, matrix)] = tensors[expert(0, 3, matrix)].clone()


def halves(layers):
    def damage(tensors, args):
        for layer in layers:
            for role, heads in (("wq", args.n_heads), ("wk", args.n_kv_heads)):
                name = f"layers.{layer}.attention.{role}.weight"
                order = Halve(heads).order(args.head_dim)
                shape = tensors[name].shape
                tensors[name] = (
                    tensors[name].view(heads, args.head_dim, -1)[:, order].reshape(shape)
                )

    return damage


def roll_kv_heads(tensors, args):
    for role in ("wk", "wv"):
        name = f"layers.1.attention.{role}.weight"
        tensors[name] = tensors[name].roll(args.head_dim, 0)


def permute_router(tensors, _args):
    name = "layers.1.feed_forward.gate.weight"
    tensors[name] = tensors[name].roll(1, 0)


MUTATIONS = {
    "one mantissa bit": (flip(expert(1, 6, "w3"), 0), {}, "layers.1 expert 6"),
    "through f8": (through(torch.float8_e4m3fn), {}, "embeddings"),
    "a zeroed expert": (zero_expert, {}, "layers.2 expert 5"),
    "norms of a layer swapped": (
        swap([("layers.1.attention_norm.weight", "layers.1.ffn_norm.weight")]), {},
        "layers.1 attention"),
    "two experts swapped": (experts_3_and_5, {}, "layers.2 expert"),
    "w1 and w3 swapped in a layer": (gate_and_up([1]), {}, "layers.1 expert"),
    "an exponent bit": (flip(expert(2, 1, "w2"), 13), {}, "layers.2 expert 1"),
    "w1 and w3 swapped": (gate_and_up(range(3)), {}, "layers.0 expert"),
    "kv heads rolled": (roll_kv_heads, {}, "layers.1 attention"),
    "an expert twice": (copy_expert, {}, "layers.0 expert 4"),
    "the permutation missed in a layer": (halves([2]), {}, "layers.2 attention"),
    "the permutation missed": (halves(range(3)), {}, "layers.0 attention"),
    "router rows permuted": (permute_router, {}, "layers.1 router"),
    "norm_eps": (None, {"norm_eps": 1e-3}, "layers.0 attention"),
    "theta": (None, {"rope_theta": 1e4}, "layers.0 attention"),
    "experts for each token": (None, {"n_experts_per_tok": 1}, "feed forward"),
}  # fmt: skip
