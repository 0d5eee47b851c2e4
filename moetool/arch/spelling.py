"""`ModelArgs` in the four spellings in which hyperparameters are published.

    here / params.json   packed params.json, config.json   GGUF key-value
    dim                  hidden_size                       llama.embedding_length
    n_layers             num_hidden_layers                 llama.block_count
    head_dim             head_dim                          llama.attention.key_length
    hidden_dim           intermediate_size                 llama.feed_forward_length
    n_heads              num_attention_heads               llama.attention.head_count
    n_kv_heads           num_key_value_heads               llama.attention.head_count_kv
    norm_eps             rms_norm_eps                      llama.attention.layer_norm_rms_epsilon
    vocab_size           vocab_size                        llama.vocab_size
    n_experts            num_local_experts                 llama.expert_count
    n_experts_per_tok    num_experts_per_tok               llama.expert_used_count
    rope_theta           rope_theta                        llama.rope.freq_base
    max_seq_len          max_position_embeddings           llama.context_length

The torrent's params.json says nothing of rope_theta and context: what is supplied by rule is named
in ``assumed``, so that a report can tell read from assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moetool.arch import maths
from moetool.arch.args import ModelArgs, validate
from moetool.arch.families import by_type
from moetool.arch.fields import Fields, refuse_partial_rotation, short_decimal
from moetool.errors import InconsistentCheckpoint, UnknownConvention

# mistralai/mistral-inference @b818190: theta is 1e6 where params.json has none, and 1e4 where a
# sliding window is given (Mistral-7B-v0.1). Later code dropped the second half, wrongly.
THETA, THETA_SLIDING = 1e6, 1e4
# huggingface/transformers: models/mistral/configuration_mistral.py fills these in where a dense
# config.json has no such field; a window of null is said, not left out.
HF_DENSE_THETA, HF_DENSE_WINDOW = 1e4, 4096
# Posts and documentation: 32k for 8x7B, 64k for 8x22B (the only one with dim 6144).
CONTEXT, CONTEXT_8X22B = 32768, 65536


def from_params_json(data: Mapping[str, Any]) -> ModelArgs:
    """Read params.json: the raw spelling, or the packed upload's with Hugging Face names.

    Raises:
        InconsistentCheckpoint: a field is missing, of a wrong type or out of range.
        UnknownConvention: the fields belong to another family (shared experts, MLA, ...).
    """
    if "hidden_size" in data:
        return from_config_json(data, where="params.json")
    maths.refuse_other_maths(data, maths.PARAMS_JSON, "params.json")
    fields = Fields(data, "params.json")
    n_experts, n_experts_per_tok = _experts_of_params(data)
    sliding = fields.window()
    dim = fields.integer("dim")
    return validate(
        ModelArgs(
            dim=dim,
            n_layers=fields.integer("n_layers"),
            head_dim=fields.integer("head_dim"),
            hidden_dim=fields.integer("hidden_dim"),
            n_heads=fields.integer("n_heads"),
            n_kv_heads=fields.integer("n_kv_heads"),
            norm_eps=fields.number("norm_eps"),
            vocab_size=fields.integer("vocab_size"),
            n_experts=n_experts,
            n_experts_per_tok=n_experts_per_tok,
            rope_theta=fields.number_or(
                "rope_theta", "rope_theta", THETA if sliding is None else THETA_SLIDING
            ),
            max_seq_len=fields.integer_or("max_seq_len", "max_seq_len", _context(dim)),
            sliding_window=sliding,
            assumed=tuple(fields.assumed),
        )
    )


def from_config_json(data: Mapping[str, Any], where: str = "config.json") -> ModelArgs:
    """Read transformers' config.json; rope_theta at the top (v4) or in rope_parameters (v5).

    The packed upload's params.json has the same names and declares no model type.

    Raises:
        InconsistentCheckpoint: a field is missing, of a wrong type or out of range.
        UnknownConvention: the model type is another family's, whatever its tensors are called, or
            router, rotary angles, activation … are not those of Mistral.
    """
    dense = _is_dense(data, where)
    _refuse_scaled_angles(data, where)
    rope = data.get("rope_parameters")
    merged = {**data, **(rope if isinstance(rope, Mapping) else {})}
    maths.refuse_other_maths(merged, maths.CONFIG_JSON, where)
    fields = Fields(merged, where)
    n_heads, dim = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    refuse_partial_rotation(merged.get("rotary_dim"), merged.get("head_dim"), where)
    return validate(
        ModelArgs(
            dim=dim,
            n_layers=fields.integer("num_hidden_layers"),
            head_dim=fields.integer_or("head_dim", "head_dim", dim // max(n_heads, 1)),
            hidden_dim=fields.integer("intermediate_size"),
            n_heads=n_heads,
            n_kv_heads=fields.integer("num_key_value_heads"),
            norm_eps=fields.number("rms_norm_eps"),
            vocab_size=fields.integer("vocab_size"),
            n_experts=0 if dense else fields.integer("num_local_experts"),
            n_experts_per_tok=0 if dense else fields.integer("num_experts_per_tok"),
            rope_theta=fields.number_or(
                "rope_theta", "rope_theta", HF_DENSE_THETA if dense else THETA
            ),
            max_seq_len=fields.integer_or("max_position_embeddings", "max_seq_len", _context(dim)),
            sliding_window=_hf_sliding_window(fields, dense=dense),
            assumed=tuple(fields.assumed),
        )
    )


def from_gguf(metadata: Mapping[str, Any]) -> ModelArgs:
    """Read GGUF key-values of the llama architecture, with experts or without.

    llama.cpp fills a missing rope.freq_base with 10000 and talks nonsense; here it is refused.

    Raises:
        InconsistentCheckpoint: a key is missing, of a wrong type or out of range.
        UnknownConvention: another architecture, or settings that Mistral's maths does not have.
    """
    arch = metadata.get("general.architecture")
    if arch != "llama":
        raise _another_family(arch, "GGUF architecture", "GGUF")
    dense = not metadata.get("llama.expert_count")
    values = {key.removeprefix("llama."): metadata[key] for key in metadata}
    maths.refuse_other_maths(values, maths.GGUF, "GGUF")
    fields = Fields(values, "GGUF")
    n_heads, dim = fields.integer("attention.head_count"), fields.integer("embedding_length")
    head_dim = fields.integer_or("attention.key_length", "head_dim", dim // max(n_heads, 1))
    for key in ("rope.dimension_count", "attention.value_length"):
        refuse_partial_rotation(values.get(key), head_dim, "GGUF", key)
    tokens = metadata.get("tokenizer.ggml.tokens")
    n_tokens = len(tokens) if isinstance(tokens, list) else 0
    return validate(
        ModelArgs(
            dim=dim,
            n_layers=fields.integer("block_count"),
            head_dim=head_dim,
            hidden_dim=fields.integer("feed_forward_length"),
            n_heads=n_heads,
            n_kv_heads=fields.integer("attention.head_count_kv"),
            norm_eps=short_decimal(fields.number("attention.layer_norm_rms_epsilon")),
            vocab_size=fields.integer_or("vocab_size", "vocab_size", n_tokens),
            n_experts=0 if dense else fields.integer("expert_count"),
            n_experts_per_tok=0 if dense else fields.integer("expert_used_count"),
            rope_theta=fields.number("rope.freq_base"),
            max_seq_len=fields.integer("context_length"),
            sliding_window=fields.window("attention.sliding_window"),
            assumed=tuple(fields.assumed),
        )
    )


def to_params_json(args: ModelArgs) -> dict[str, Any]:
    """Spell as the torrent does; what it leaves to a rule is written only if it differs."""
    data: dict[str, Any] = {
        key: getattr(args, key)
        for key in ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads",
                    "norm_eps", "vocab_size")
    }  # fmt: skip
    if args.sliding_window is not None:
        data["sliding_window"] = args.sliding_window
    if args.rope_theta != (THETA if args.sliding_window is None else THETA_SLIDING):
        data["rope_theta"] = args.rope_theta
    if args.max_seq_len != _context(args.dim):
        data["max_seq_len"] = args.max_seq_len
    if args.n_experts:
        data["moe"] = {"num_experts_per_tok": args.n_experts_per_tok, "num_experts": args.n_experts}
    return data


def to_config_json(args: ModelArgs, dtype: str) -> dict[str, Any]:
    """Spell as transformers does, every field explicit.

    Class defaults differ between versions (4.36: sliding_window 4096, max_position_embeddings
    131072), and 4.x reads rope_theta at the top only, which 5.x accepts too.
    """
    return {
        "architectures": ["MixtralForCausalLM" if args.n_experts else "MistralForCausalLM"],
        "model_type": "mixtral" if args.n_experts else "mistral",
        "hidden_size": args.dim,
        "intermediate_size": args.hidden_dim,
        "num_hidden_layers": args.n_layers,
        "num_attention_heads": args.n_heads,
        "num_key_value_heads": args.n_kv_heads,
        "head_dim": args.head_dim,
        **(_mixture(args) if args.n_experts else {}),
        "vocab_size": args.vocab_size,
        "max_position_embeddings": args.max_seq_len,
        "rope_theta": args.rope_theta,
        "sliding_window": args.sliding_window,
        "rms_norm_eps": args.norm_eps,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
    }


def to_packed_params_json(args: ModelArgs) -> dict[str, Any]:
    """Spell as the hub's packed upload does: params.json with Hugging Face names."""
    return {
        "hidden_size": args.dim,
        "num_hidden_layers": args.n_layers,
        "head_dim": args.head_dim,
        "intermediate_size": args.hidden_dim,
        "num_attention_heads": args.n_heads,
        "num_key_value_heads": args.n_kv_heads,
        "rms_norm_eps": args.norm_eps,
        "vocab_size": args.vocab_size,
        "num_local_experts": args.n_experts,
        "num_experts_per_tok": args.n_experts_per_tok,
        "rope_theta": args.rope_theta,
        "max_position_embeddings": args.max_seq_len,
        **({} if args.sliding_window is None else {"sliding_window": args.sliding_window}),
    }


def to_gguf(args: ModelArgs) -> dict[str, tuple[str, object]]:
    """Spell as llama.cpp does, each value with its GGUF type; all keys its loader trusts."""
    values: dict[str, tuple[str, object]] = {
        "llama.context_length": ("u32", args.max_seq_len),
        "llama.embedding_length": ("u32", args.dim),
        "llama.block_count": ("u32", args.n_layers),
        "llama.feed_forward_length": ("u32", args.hidden_dim),
        "llama.attention.head_count": ("u32", args.n_heads),
        "llama.attention.head_count_kv": ("u32", args.n_kv_heads),
        "llama.attention.layer_norm_rms_epsilon": ("f32", args.norm_eps),
        "llama.attention.key_length": ("u32", args.head_dim),
        "llama.attention.value_length": ("u32", args.head_dim),
        "llama.rope.freq_base": ("f32", args.rope_theta),
        "llama.rope.dimension_count": ("u32", args.head_dim),
        "llama.vocab_size": ("u32", args.vocab_size),
    }
    if args.n_experts:
        values["llama.expert_count"] = ("u32", args.n_experts)
        values["llama.expert_used_count"] = ("u32", args.n_experts_per_tok)
    if args.sliding_window is not None:  # llama.cpp attends to everything; the way back needs it
        values["llama.attention.sliding_window"] = ("u32", args.sliding_window)
    return values


def _mixture(args: ModelArgs) -> dict[str, Any]:
    """What config.json says of experts; 8x7B's loss coefficient, which inference never reads."""
    return {
        "num_local_experts": args.n_experts,
        "num_experts_per_tok": args.n_experts_per_tok,
        "router_jitter_noise": 0.0,
        "router_aux_loss_coef": 0.02,
        "output_router_logits": False,
    }


def _experts_of_params(data: Mapping[str, Any]) -> tuple[int, int]:
    """Experts and experts of one token; 0 and 0 where there is no `moe`, a dense model."""
    moe = data.get("moe")
    if moe is None:
        return 0, 0
    if not isinstance(moe, Mapping):
        raise InconsistentCheckpoint("moe: expected an object", where="params.json")
    strange = sorted(set(moe) - {"num_experts", "num_experts_per_tok"})
    if strange:
        raise UnknownConvention(
            f"moe.{strange[0]}: a mixture of another kind than Mixtral's, such as Mistral Large 3",
            where="params.json",
        )
    fields = Fields(moe, "params.json: moe")
    return fields.integer("num_experts"), fields.integer("num_experts_per_tok")


def _is_dense(data: Mapping[str, Any], where: str) -> bool:
    """Whether a config.json declares a dense Mistral; another family is refused by its name."""
    model_type = data.get("model_type", "mixtral" if "num_local_experts" in data else "mistral")
    if model_type not in {"mixtral", "mistral"}:
        raise _another_family(model_type, "model_type", where)
    return bool(model_type == "mistral")


def _another_family(declared: object, field: str, where: str) -> UnknownConvention:
    known = by_type(str(declared))
    what = f", {known}" if known else ""
    return UnknownConvention(
        f"{field} {str(declared)[:40]!r}{what}; it is neither Mixtral nor Mistral, though tensor "
        "names may be the same",
        where=where,
    )


def _refuse_scaled_angles(data: Mapping[str, Any], where: str) -> None:
    """Refuse rotary angles that are scaled: `rope_scaling` of version 4, `rope_parameters` of 5."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else rope
    if kind != "default":
        raise UnknownConvention(f"rotary angles of type {str(kind)[:40]!r}", where=where)


def _hf_sliding_window(fields: Fields, *, dense: bool) -> int | None:
    if dense and "sliding_window" not in fields.data:
        fields.assumed.append("sliding_window")
        return HF_DENSE_WINDOW
    return fields.window()


def _context(dim: int) -> int:
    return CONTEXT_8X22B if dim == 6144 else CONTEXT  # noqa: PLR2004  # 8x22B's dim, see above
