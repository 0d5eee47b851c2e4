"""Catalog -> (Architecture, Convention, ModelArgs), or a refusal that says what was recognised.

Names alone do not make a model: Phi-3.5-MoE uses Mixtral's tensor names with another router. So
the declared model type must agree, every tensor must have its place, and every shape must follow
from the hyperparameters. All findings are listed before anything is read or written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moetool.arch import spelling
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.schema import Architecture, Convention, StoredTensor, expand
from moetool.errors import BadHeader, InconsistentCheckpoint, UnknownConvention

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.arch.args import ModelArgs
    from moetool.tensors import Catalog

ARCHITECTURES = (MIXTRAL,)
LARGEST_JSON = 4 << 20  # bytes; a params.json has a few hundred

# Names that give another family away, with what is known of it (facts from transformers 5).
LOOK_ALIKES = (
    ("shared_expert", "a mixture with shared experts (DeepSeek, Qwen2-MoE, Mistral Large 3)"),
    ("e_score_correction_bias", "a sigmoid router with selection bias (DeepSeek-V3, MiniMax-M2)"),
    ("kv_a_proj_with_mqa", "latent attention (DeepSeek)"),
    ("q_norm.weight", "per-head query and key norms (Qwen3-MoE, OLMoE, MiniMax-M2)"),
    ("input_linear.weight", "a packed mixture of another kind (Granite-MoE)"),
    ("_proj.bias", "attention or experts with biases (Phi-3.5-MoE, Qwen2-MoE, gpt-oss)"),
    ("mlp.experts.0.gate_proj", "per-expert gate/up/down projections (OLMoE, Qwen-MoE, DeepSeek)"),
    ("feed_forward.w1.weight", "a dense Mistral model, which is not supported yet"),
    ("mlp.gate_proj.weight", "a dense Llama-like model, which is not supported"),
)


@dataclass(frozen=True, slots=True)
class Recognized:
    """What a checkpoint is: family, convention, hyperparameters, and where every weight lies."""

    architecture: Architecture
    convention: Convention
    args: ModelArgs
    layout: Mapping[str, StoredTensor]


def recognize(catalog: Catalog, directory: Path) -> Recognized:
    """Say what the tensors of a catalog are, with the side files of a directory.

    Raises:
        UnknownConvention: the names or the declared type belong to nothing that is known here.
        InconsistentCheckpoint: tensors are missing, extra or mis-shaped; all are listed.
        BadHeader: a side file is not JSON.
    """
    architecture, convention = match_names(catalog.tensors)
    args = read_args(catalog, directory)
    layout = expand(convention, args)
    _compare(catalog, layout)
    return Recognized(architecture, convention, args, layout)


def match_names(names: Iterable[str]) -> tuple[Architecture, Convention]:
    """Find the convention whose patterns cover all names.

    Raises:
        UnknownConvention: none does; the message names the closest and what does not fit.
    """
    # Layers and experts repeat: names that differ in indices only are matched once.
    skeletons: dict[str, list[str]] = {}
    for name in names:
        skeletons.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "0", name), []).append(name)
    best: tuple[int, Architecture, Convention, list[str]] | None = None
    for architecture in ARCHITECTURES:
        for convention in architecture.conventions:
            patterns = [stored.regex() for stored in convention.stored.values()]
            strangers = [
                name
                for skeleton, alike in skeletons.items()
                if not any(pattern.fullmatch(skeleton) for pattern in patterns)
                for name in alike
            ]
            if best is None or len(strangers) < best[0]:
                best = (len(strangers), architecture, convention, strangers)
    if not skeletons or best is None:
        raise UnknownConvention("no tensors at all")
    n_strangers, architecture, convention, strangers = best
    if n_strangers == 0:
        return architecture, convention
    for mark, family in LOOK_ALIKES:
        if any(mark in name for name in strangers):
            raise UnknownConvention(f"the tensor names are those of {family}, not Mixtral's")
    n_names = sum(map(len, skeletons.values()))
    known = n_names - n_strangers
    raise UnknownConvention(
        f"{n_strangers} of {n_names} tensor names are not known"
        + (f" (closest: {convention.name}, {known} fit)" if known else ""),
        findings=tuple(f"unknown name {name!r}" for name in strangers[:10]),
    )


def read_args(catalog: Catalog, directory: Path) -> ModelArgs:
    """Read the hyperparameters from GGUF keys, params.json or config.json.

    Raises:
        InconsistentCheckpoint: no side file, or one that cannot describe a model.
    """
    if catalog.format == "gguf":
        return spelling.from_gguf(catalog.metadata)
    readers = {"config.json": spelling.from_config_json, "params.json": spelling.from_params_json}
    raw = any(name.startswith(("tok_embeddings", "layers.")) for name in catalog.tensors)
    order = ("params.json", "config.json") if raw else ("config.json", "params.json")
    for file_name in order:
        data = read_json(directory / file_name)
        if data is not None:
            return readers[file_name](data)
    raise InconsistentCheckpoint(
        f"no {order[0]} beside the weights, so heads and experts per token are not known",
        where=str(directory),
        hint=f"put the release's {order[0]} into the same folder",
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a small JSON object; None when there is no such file.

    Raises:
        BadHeader: not a JSON object, too large, or with doubled keys.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise BadHeader(f"larger than {LARGEST_JSON} bytes", where=str(path))
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BadHeader(f"cannot be read: {error}", where=str(path)) from error
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadHeader(f"not JSON: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise BadHeader("not a JSON object", where=str(path))
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key appears twice")
    return data


def _compare(catalog: Catalog, layout: Mapping[str, StoredTensor]) -> None:
    findings = [f"missing {name}" for name in layout if name not in catalog.tensors]
    for name, info in catalog.tensors.items():
        if name not in layout:
            findings.append(f"unexpected {name}")
        elif info.shape != layout[name].shape:
            expected = list(layout[name].shape)
            findings.append(f"{name}: expected shape {expected}, got {list(info.shape)}")
    if findings:
        raise InconsistentCheckpoint(
            f"{len(findings)} tensors do not fit the declared hyperparameters",
            findings=tuple(findings),
            hint="is this the params.json or config.json of another model, or a file missing?",
        )
