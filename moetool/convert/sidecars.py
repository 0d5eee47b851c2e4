"""The files beside the weights that a target's loaders need, as bytes by file name.

hf       config.json generation_config.json tokenizer.model tokenizer.json
         tokenizer_config.json model.safetensors.index.json
mistral  params.json tokenizer.model
packed   params.json (Hugging Face names) tokenizer.model
none     everything is in the GGUF's key-values
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from moetool import __version__
from moetool.arch import spelling
from moetool.arch.vocabulary import check_vocabulary
from moetool.convert.tokenizer_json import tokenizer_config, tokenizer_json
from moetool.formats.sentencepiece import read_vocabulary
from moetool.tensors import DType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moetool.arch.args import ModelArgs
    from moetool.convert.plan import Plan
    from moetool.formats.sentencepiece import Vocabulary

LARGEST_TOKENIZER = 64 << 20  # bytes

# ggml-org/llama.cpp: include/llama.h, enum llama_ftype.
_FILE_TYPES = {DType.F32: 0, DType.F16: 1, DType.Q8_0: 7, DType.BF16: 32}
# ggml-org/llama.cpp: include/llama.h, enum llama_token_type.
_TOKEN_TYPES = {
    "normal": 1, "unknown": 2, "control": 3, "user_defined": 4, "unused": 5, "byte": 6,
}  # fmt: skip


def read_tokenizer(directory: Path) -> bytes | None:
    """The bytes of tokenizer.model beside a checkpoint; None where there is none."""
    path = directory / "tokenizer.model"
    if not path.is_file() or path.stat().st_size > LARGEST_TOKENIZER:
        return None
    return path.read_bytes()


def missing_vocabulary(
    kind: str, tokenizer: bytes | None, carried: Mapping[str, object]
) -> str | None:
    """What to tell where the output has no vocabulary; None where it has one."""
    if tokenizer is not None or (kind == "none" and "tokenizer.ggml.tokens" in carried):
        return None
    if kind == "none":
        return "no tokenizer.model beside the source: llama.cpp will not load a GGUF without one"
    return "no tokenizer.model beside the source, and so none beside the output"


def sidecars(
    kind: str,
    args: ModelArgs,
    plan: Plan,
    tokenizer: bytes | None,
    chat_template: str | None = None,
) -> dict[str, bytes]:
    """All side files of a target, ready to be written."""
    files: dict[str, bytes] = {}
    if kind == "mistral":
        files["params.json"] = _json(spelling.to_params_json(args))
    elif kind == "packed":
        files["params.json"] = _json(spelling.to_packed_params_json(args))
    elif kind == "hf":
        files["config.json"] = _json(spelling.to_config_json(args, torch_name(plan)))
        files["generation_config.json"] = _json(
            {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
        )
    if tokenizer is not None and kind != "none":
        files["tokenizer.model"] = tokenizer
    if tokenizer is not None and kind == "hf":
        vocabulary = read_vocabulary(tokenizer)
        files["tokenizer.json"] = _json(tokenizer_json(vocabulary), indent=None)
        files["tokenizer_config.json"] = _json(
            tokenizer_config(vocabulary, args.max_seq_len, chat_template)
        )
    index = shard_index(plan)
    if index is not None:
        files[index[0]] = _json(index[1])
    return files


def shard_index(plan: Plan) -> tuple[str, dict[str, Any]] | None:
    """The index that transformers reads where model weights are in several files.

    ``total_size`` counts tensor bytes, not file bytes (huggingface/transformers).
    """
    if len(plan.shards) == 1 or not plan.shards[0].file_name.startswith("model-"):
        return None
    weight_map = {
        step.target.name: shard.file_name for shard in plan.shards for step in shard.steps
    }
    metadata = {"total_size": plan.nbytes}
    return "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map}


def headers(
    file_format: str,
    args: ModelArgs,
    plan: Plan,
    name: str,
    tokenizer: bytes | None,
    carried: Mapping[str, object] | None = None,
    more: Mapping[str, tuple[str, object]] | None = None,
) -> list[Mapping[str, object]]:
    """What each file of a plan carries in its own header beside the tensors.

    ``carried``: the key-values of a GGUF that is the source; its vocabulary goes on where no
    tokenizer.model lies beside it. ``more``: key-values beside those of the model, with types.
    What a GGUF will carry is held to the rules for one that is
    read, here, before its first byte is written.

    Raises:
        InconsistentCheckpoint: the tokenizer.model is another model's, or would tokenise wrongly.
    """
    if file_format != "gguf":
        own: Mapping[str, object] = {"format": "pt"} if file_format == "safetensors" else {}
        return [own] * len(plan.shards)
    vocabulary = read_vocabulary(tokenizer) if tokenizer is not None else None
    values = _carried_tokenizer(carried or {}) | gguf_metadata(args, plan, name, vocabulary)
    values |= _carried_file_type(carried or {}, plan) | dict(more or {})
    plain = {key: value for key, (_, value) in values.items()}
    hint = "is the tokenizer.model beside the source this model's?"
    check_vocabulary(plain, spelling.from_gguf(plain).vocab_size, hint)
    count = len(plan.shards)
    if count == 1:
        return [values]
    # ggml-org/llama.cpp: src/llama-model-loader.cpp reads all key-values from the first file.
    return [
        (values if number == 0 else {})
        | {
            "split.no": ("u16", number),
            "split.count": ("u16", count),
            "split.tensors.count": ("i32", len(plan.steps)),
        }
        for number in range(count)
    ]


def torch_name(plan: Plan) -> str:
    """The dtype that most bytes are stored in, as config.json spells it."""
    names = {DType.BF16: "bfloat16", DType.F16: "float16", DType.F32: "float32"}
    return names.get(plan.main_dtype, "bfloat16")


def gguf_metadata(
    args: ModelArgs, plan: Plan, name: str, vocabulary: Vocabulary | None
) -> dict[str, tuple[str, object]]:
    """All key-values of a GGUF, each with its type; none is left to a loader's default.

    llama.cpp loads a file without freq_base, scores or token types, and talks nonsense.
    """
    values: dict[str, tuple[str, object]] = {
        "general.architecture": ("str", "llama"),
        "general.type": ("str", "model"),
        "general.name": ("str", name),
        "general.size_label": ("str", _size_label(args)),
        "general.file_type": ("u32", _FILE_TYPES.get(plan.main_dtype, 0)),
        "general.quantization_version": ("u32", 2),
        "general.source.tool": ("str", f"moetool {__version__}"),
        **spelling.to_gguf(args),
    }
    return values | (_gguf_tokenizer(vocabulary, args.vocab_size) if vocabulary else {})


def _gguf_tokenizer(vocabulary: Vocabulary, vocab_size: int) -> dict[str, tuple[str, object]]:
    """The vocabulary; ids beyond it are padded as llama.cpp does (conversion/base.py)."""
    missing = range(len(vocabulary.pieces), vocab_size)
    return {
        "tokenizer.ggml.model": ("str", "llama"),
        "tokenizer.ggml.pre": ("str", "default"),
        "tokenizer.ggml.tokens": (
            "arr[str]",
            [*vocabulary.pieces, *(f"[PAD{i}]" for i in missing)],
        ),
        "tokenizer.ggml.scores": ("arr[f32]", [*vocabulary.scores, *(-10000.0 for _ in missing)]),
        "tokenizer.ggml.token_type": (
            "arr[i32]",
            [*(_TOKEN_TYPES[kind] for kind in vocabulary.types), *(5 for _ in missing)],
        ),
        "tokenizer.ggml.bos_token_id": ("u32", vocabulary.bos_id),
        "tokenizer.ggml.eos_token_id": ("u32", vocabulary.eos_id),
        "tokenizer.ggml.unknown_token_id": ("u32", vocabulary.unk_id),
        "tokenizer.ggml.add_bos_token": ("bool", True),
        "tokenizer.ggml.add_eos_token": ("bool", False),
        "tokenizer.ggml.add_space_prefix": ("bool", vocabulary.add_dummy_prefix),
    }


def _carried_tokenizer(metadata: Mapping[str, object]) -> dict[str, tuple[str, object]]:
    """The tokenizer.* keys of a GGUF with their types, which a read value does not show."""
    found: dict[str, tuple[str, object]] = {}
    for key, value in metadata.items():
        name = key.removeprefix("tokenizer.")
        match value:
            case _ if name == key:
                continue
            case bool():
                found[key] = ("bool", value)
            case int():
                found[key] = ("u32", value)
            case str():
                found[key] = ("str", value)
            case list():
                kind = {"ggml.scores": "f32", "ggml.token_type": "i32"}.get(name, "str")
                found[key] = (f"arr[{kind}]", value)
    return found


def _carried_file_type(metadata: Mapping[str, object], plan: Plan) -> dict[str, tuple[str, object]]:
    """The mix that a quantised source says it is; what its blocks alone do not tell."""
    found = metadata.get("general.file_type")
    kept = plan.main_dtype not in _FILE_TYPES and type(found) is int
    return {"general.file_type": ("u32", found)} if kept else {}


def _size_label(args: ModelArgs) -> str:
    """8x6B or 7B: what one expert's share of all parameters is, as names of releases have it."""
    if not args.n_experts:
        return _short(args.n_params)
    return f"{args.n_experts}x{_short(args.n_params // args.n_experts)}"


def _short(n_params: int) -> str:
    return f"{n_params / 1e9:.0f}B" if n_params >= 10**9 else f"{max(n_params // 10**6, 1)}M"


def _json(data: Mapping[str, Any], indent: int | None = 2) -> bytes:
    return (json.dumps(data, indent=indent, ensure_ascii=False) + "\n").encode()
