"""The identity of a model by a stranger: docs/reference/identity.md in numpy, nothing of moetool.

    python tests/proof/independent_identity.py PATH

torch.load, safetensors and gguf only read the files. A tensor is held as its bit pattern, unsigned
integers in the stored shape, so no arithmetic touches a value that is not being rounded on purpose.
Weights are read a file at a time: this is for checkpoints that fit in memory.
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

WORD = {"bf16": "<u2", "f16": "<u2", "f32": "<u4", "f64": "<u8"}
TYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64"}
# Canonical role: what Hugging Face (both), the packed form and GGUF call it. E is the number of an
# expert, * is all experts in one tensor.
SPELLINGS = {
    "tok_embeddings": "model.embed_tokens token_embd",
    "norm": "model.norm output_norm",
    "output": "lm_head",
    "attention_norm": "input_layernorm attn_norm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj attn_q",
    "attention.wk": "self_attn.k_proj attn_k",
    "attention.wv": "self_attn.v_proj attn_v",
    "attention.wo": "self_attn.o_proj attn_output",
    "feed_forward.gate": "block_sparse_moe.gate mlp.gate ffn_gate_inp",
    "feed_forward.w1": "mlp.gate_proj ffn_gate",
    "feed_forward.w2": "mlp.down_proj ffn_down",
    "feed_forward.w3": "mlp.up_proj ffn_up",
    "feed_forward.experts.E.w1": "block_sparse_moe.experts.E.w1 ffn_gate.E",
    "feed_forward.experts.E.w2": "block_sparse_moe.experts.E.w2 ffn_down.E",
    "feed_forward.experts.E.w3": "block_sparse_moe.experts.E.w3 ffn_up.E",
    "feed_forward.experts.*.w1": "block_sparse_moe.w1 ffn_gate_exps",
    "feed_forward.experts.*.w2": "block_sparse_moe.w2 mlp.experts.down_proj ffn_down_exps",
    "feed_forward.experts.*.w3": "block_sparse_moe.w3 ffn_up_exps",
    "feed_forward.experts.*.w1+w3": "mlp.experts.gate_up_proj",
}
ROLES = {word: role for role, words in SPELLINGS.items() for word in (role, *words.split())}
# In params.json, config.json, and after "llama." in a GGUF.
MATHS = {
    "dim": "dim hidden_size embedding_length",
    "head_dim": "head_dim attention.key_length",
    "hidden_dim": "hidden_dim intermediate_size feed_forward_length",
    "n_experts": "num_experts num_local_experts expert_count",
    "n_experts_per_tok": "num_experts_per_tok expert_used_count",
    "n_heads": "n_heads num_attention_heads attention.head_count",
    "n_kv_heads": "n_kv_heads num_key_value_heads attention.head_count_kv",
    "n_layers": "n_layers num_hidden_layers block_count",
    "norm_eps": "norm_eps rms_norm_eps attention.layer_norm_rms_epsilon",
    "rope_theta": "rope_theta rope.freq_base",
    "sliding_window": "sliding_window attention.sliding_window",
    "vocab_size": "vocab_size",
}


class Leaf(NamedTuple):
    """A canonical tensor; ``rows`` are the SHA-256s of a router's rows."""

    name: str
    dtype: str
    shape: tuple
    sha256: str
    xxh3_128: str
    rows: tuple

    def text(self, label="sha256"):
        """The bytes that enter the tree."""
        return leaf_text(self.name, self.dtype, self.shape, f"{label}:{getattr(self, label)}")


class Identity(NamedTuple):
    """Everything that the definition defines."""

    leaves: list
    root: str
    any_order_root: str
    fast_root: str
    expert_order: list
    maths_sha256: str


def files_of(path):
    """The weight files of a folder, or the one file that was named."""
    if path.is_file():
        return [path]
    suffixes = {".pth", ".pt", ".safetensors", ".gguf"}
    found = [file for file in sorted(path.iterdir()) if file.suffix in suffixes]
    assert len({f.suffix for f in found}) == 1, f"{path}: weights in one format are expected"
    return found


def stored(path):
    """Yield name, type and bits of each tensor of a file, as it is stored."""
    if path.suffix == ".gguf":
        from gguf import GGUFReader

        for tensor in GGUFReader(path).tensors:
            dtype = tensor.tensor_type.name.lower()
            bits = np.ascontiguousarray(tensor.data).view(WORD[dtype])
            yield tensor.name, dtype, bits.reshape([int(n) for n in reversed(tensor.shape)])
    elif path.suffix == ".safetensors":
        from safetensors import deserialize

        for name, tensor in deserialize(path.read_bytes()):
            dtype = tensor["dtype"].lower()
            yield name, dtype, np.frombuffer(tensor["data"], WORD[dtype]).reshape(tensor["shape"])
    else:
        import torch

        for name, tensor in torch.load(path, weights_only=True, mmap=True).items():
            dtype = TYPES[str(tensor.dtype).removeprefix("torch.")]
            word = getattr(torch, f"int{8 * tensor.itemsize}")
            yield name, dtype, tensor.contiguous().view(word).numpy().view(WORD[dtype])


def hyperparameters(path):
    """The values of section 7 by their canonical names, as the files give them."""
    first = files_of(path)[0]
    if first.suffix == ".gguf":
        from gguf import GGUFReader

        fields = GGUFReader(first).fields
        given = {key.removeprefix("llama."): field.contents() for key, field in fields.items()}
    else:
        (beside,) = (f for f in first.parent.iterdir() if f.name in {"params.json", "config.json"})
        given = json.loads(beside.read_text())
        given |= (given.get("moe") or {}) | (given.get("rope_parameters") or {})
    found = {name: next((given[w] for w in words.split() if given.get(w) is not None), None)
             for name, words in MATHS.items()}  # fmt: skip
    found["head_dim"] = found["head_dim"] or found["dim"] // found["n_heads"]
    # Not in identity.md: params.json may give no theta; it is 1e4 with a window, 1e6 without.
    found["rope_theta"] = found["rope_theta"] or (1e4 if found["sliding_window"] else 1e6)
    for name in ("n_experts", "n_experts_per_tok", "sliding_window"):
        found[name] = found[name] or 0
    assert None not in found.values(), found
    return found


def canonical(name, bits, maths):
    """Section 1: yield the canonical tensors that a stored one holds, with their bits."""
    layered = r"(?:(?:(?:model\.)?layers|blk)\.(\d+)\.)?(.+?)(?:\.weight)?"
    layer, rest = re.fullmatch(layered, name).groups()
    prefix = "" if layer is None else f"layers.{layer}."
    word = re.sub(r"\.\d+(?=\.|$)", ".E", rest)
    role = prefix + ROLES[word]
    if word in {"self_attn.q_proj", "self_attn.k_proj"}:
        pairs = bits.reshape(-1, 2, maths["head_dim"] // 2, bits.shape[-1]).swapaxes(1, 2)
        bits = pairs.reshape(bits.shape)
    if "*" not in role:
        number = re.search(r"\.(\d+)", rest)
        yield (role.replace("E", number[1]) if number else role) + ".weight", bits
        return
    stack = bits.reshape(maths["n_experts"], -1, bits.shape[-1])
    if word == "block_sparse_moe.w2":
        stack = stack.swapaxes(1, 2)
    role, matrices = role.rsplit(".", 1)
    matrices = matrices.split("+")
    for matrix, part in zip(matrices, np.split(stack, len(matrices), axis=1), strict=True):
        for expert, one in enumerate(part):
            yield f"{role.replace('*', str(expert))}.{matrix}.weight", one


def widened(bits):
    """f16 to f32 by the bits: an arithmetic conversion would make a signalling NaN a quiet one."""
    with np.errstate(invalid="ignore"):
        wide = bits.view("<f2").astype("<f4").view("<u4")
    word = bits.astype("<u4")
    nan = (word & 0x7FFF) > 0x7C00
    return np.where(nan, (word & 0x8000) << 16 | 0x7F800000 | (word & 0x3FF) << 13, wide)


def narrowest(dtype, bits):
    """Section 2: the first type that holds all values, and the values in it."""
    bits = np.ascontiguousarray(bits)
    if dtype == "bf16":
        return "bf16", bits
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "f64":
            single = bits.view("<f8").astype("<f4")
            if (single.astype("<f8").view("<u8") != bits).any():
                return "f64", bits
            f32 = single.view("<u4")
        else:
            f32 = widened(bits) if dtype == "f16" else bits
        if not (f32 & 0xFFFF).any():
            return "bf16", (f32 >> 16).astype("<u2")
        half = f32.view("<f4").astype("<f2")
        same = (half.astype("<f4").view("<u4") == f32) & ~np.isnan(half)
    return ("f16", half.view("<u2")) if same.all() else ("f32", f32)


def sha256(data):
    """SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def leaf_text(name, dtype, shape, digest):
    """Section 3: five lines, no line feed at the end."""
    return "\n".join(["moetool-leaf-1", name, dtype, "x".join(map(str, shape)), digest]).encode()


def leaf_of(name, dtype, bits):
    """A canonical tensor as a leaf."""
    dtype, bits = narrowest(dtype, bits)
    data = bits.tobytes()
    rows = tuple(sha256(row.tobytes()) for row in bits) if name.endswith(".gate.weight") else ()
    return Leaf(name, dtype, bits.shape, sha256(data), xxhash.xxh3_128_hexdigest(data), rows)


def tree_hash(leaves):
    """Section 4: MTH of RFC 6962 over a list of bytes."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


def root_of(leaves, label="sha256"):
    """The root over leaves, sorted by name."""
    by_name = sorted(leaves, key=lambda leaf: leaf.name.encode())
    return tree_hash([leaf.text(label) for leaf in by_name]).hex()


def expert_text(by_name, layer, expert):
    """Section 5: the lines of an expert, whose SHA-256 is its digest."""
    prefix = f"layers.{layer}.feed_forward"
    router = by_name[f"{prefix}.gate.weight"]
    lines = [f"router {router.dtype} {router.rows[expert]}\n"]
    for matrix in ("w1", "w2", "w3"):
        leaf = by_name[f"{prefix}.experts.{expert}.{matrix}.weight"]
        lines.append(f"{matrix} {leaf.dtype} {leaf.sha256}\n")
    return "".join(lines).encode()


def in_any_order(leaves, maths):
    """Section 5: the leaves with each layer's experts by their digests, and the rank of each."""
    by_name, order = {leaf.name: leaf for leaf in leaves}, []
    kept = [leaf for leaf in leaves if not re.search(r"feed_forward\.(gate|experts)\.", leaf.name)]
    for layer in range(maths["n_layers"] if maths["n_experts"] else 0):
        router = by_name[f"layers.{layer}.feed_forward.gate.weight"]
        digests = [sha256(expert_text(by_name, layer, e)) for e in range(maths["n_experts"])]
        by_rank = sorted(range(len(digests)), key=digests.__getitem__)
        order.append([by_rank.index(expert) for expert in range(len(digests))])
        for rank, expert in enumerate(by_rank):
            name = f"layers.{layer}.feed_forward.experts.{rank}"
            kept.append(Leaf(name, router.dtype, router.shape[1:], digests[expert], "", ()))
    return kept, order


def maths_text(maths):
    """Section 7: the lines of the hyperparameters."""
    lines = []
    for name, value in maths.items():
        single = name in {"norm_eps", "rope_theta"}
        word = np.array(value, ">f4").tobytes().hex() if single else value
        lines.append(f"{name}{'_f32' if single else ''}={word}\n")
    return "".join(sorted(lines)).encode()


def identity(path):
    """The identity of a checkpoint: a folder, or a file with its side files beside it."""
    maths, leaves = hyperparameters(path), []
    for file in files_of(path):
        for name, dtype, bits in stored(file):
            leaves += [leaf_of(own, dtype, one) for own, one in canonical(name, bits, maths)]
    parts = 7 + 3 * maths["n_experts"] if maths["n_experts"] else 9
    n_leaves = len({leaf.name for leaf in leaves})
    assert n_leaves == len(leaves) == 3 + maths["n_layers"] * parts, "not each tensor once"
    leaves.sort(key=lambda leaf: leaf.name.encode())
    any_order, order = in_any_order(leaves, maths)
    return Identity(leaves, root_of(leaves), root_of(any_order), root_of(leaves, "xxh3_128"), order,
                    sha256(maths_text(maths)))  # fmt: skip


if __name__ == "__main__":
    for field, value in zip(Identity._fields, identity(Path(sys.argv[1])), strict=True):
        print(f"{field:15}", f"{len(value)} tensors" if field == "leaves" else value)
