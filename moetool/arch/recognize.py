"""Catalog -> (Architecture, Convention, ModelArgs), or a refusal that says what was recognised.

Names alone do not make a model: Phi-3.5-MoE uses Mixtral's tensor names with another router. So
the declared model type must agree, every tensor must have its place, and every shape must follow
from the hyperparameters. All findings are listed before anything is read or written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moetool.arch import spelling
from moetool.arch.families import by_names, by_type
from moetool.arch.mistral import DENSE
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.schema import Architecture, Convention, StoredTensor, expand
from moetool.arch.vocabulary import check_vocabulary
from moetool.errors import BadHeader, InconsistentCheckpoint, ReadFailed, UnknownConvention

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.arch.args import ModelArgs
    from moetool.tensors import Catalog

ARCHITECTURES = (MIXTRAL, DENSE)
LARGEST_JSON = 4 << 20  # bytes; a params.json has a few hundred


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
    _refuse_declared(catalog, directory)
    found = _recognize(catalog, directory, match_names(catalog.tensors))
    missing = [f"missing {name}" for name in found.layout if name not in catalog.tensors]
    _refuse_findings([*missing, *_misfits(catalog, found.layout)])
    return found


def recognize_part(
    catalog: Catalog, directory: Path, names: Iterable[str], usual: str
) -> Recognized:
    """Say what a checkpoint will be of which only a part of the headers is here.

    ``names`` are all that are known, those that an index lists among them; where there are none,
    ``usual`` is the convention. Tensors that are not here yet are no fault.

    Raises:
        UnknownConvention, InconsistentCheckpoint, BadHeader: as `recognize`.
    """
    _refuse_declared(catalog, directory)
    known = set(names)
    if known:
        kind = match_names(known)
    else:
        args = read_args(catalog, directory, raw=usual.startswith("mistral"))
        architecture = MIXTRAL if args.n_experts else DENSE
        kind = (architecture, architecture.convention(usual))
    found = _recognize(catalog, directory, kind)
    foreign = known - set(found.layout) - set(catalog.tensors)
    unexpected = [f"unexpected {name}" for name in sorted(foreign)]
    _refuse_findings([*unexpected, *_misfits(catalog, found.layout)])
    return found


def _recognize(
    catalog: Catalog, directory: Path, kind: tuple[Architecture, Convention]
) -> Recognized:
    architecture, convention = kind
    raw = convention.name.startswith("mistral")
    args = read_args(catalog, directory, raw=raw)
    _agree(architecture, args)
    return Recognized(architecture, convention, args, expand(convention, args))


def match_names(names: Iterable[str]) -> tuple[Architecture, Convention]:
    """Find the convention whose patterns cover all names.

    Raises:
        UnknownConvention: none does; the message names the closest and what does not fit.
    """
    skeletons = _skeletons(names)
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
    family = by_names(skeletons)
    if family is not None:
        raise UnknownConvention(
            f"the tensor names are those of {family}", hint=f"supported: {_supported()}"
        )
    n_names = sum(map(len, skeletons.values()))
    known = n_names - n_strangers
    raise UnknownConvention(
        f"{n_strangers} of {n_names} tensor names are not known"
        + (f" (closest: {convention.name}, {known} fit)" if known else ""),
        findings=tuple(f"unknown name {name!r}" for name in strangers[:10]),
    )


def read_args(catalog: Catalog, directory: Path, *, raw: bool) -> ModelArgs:
    """Read the hyperparameters from GGUF keys, params.json or config.json.

    ``raw``: the tensors have the raw release's names, so params.json is looked for first.

    Raises:
        InconsistentCheckpoint: no side file, or one that cannot describe a model, or a GGUF whose
            vocabulary would tokenise wrongly.
    """
    if catalog.format == "gguf":
        args = spelling.from_gguf(catalog.metadata)
        check_vocabulary(catalog.metadata, args.vocab_size)
        return args
    readers = {"config.json": spelling.from_config_json, "params.json": spelling.from_params_json}
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
        ReadFailed: the machine could not read.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise BadHeader(f"larger than {LARGEST_JSON} bytes", where=str(path))
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReadFailed(error.strerror or "cannot be read", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise BadHeader(f"not text: {error}", where=str(path)) from error
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadHeader(f"not JSON: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise BadHeader("not a JSON object", where=str(path))
    return data


def _skeletons(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by what they are without indices: layers and experts repeat, and are matched once."""
    skeletons: dict[str, list[str]] = {}
    for name in names:
        skeletons.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "0", name), []).append(name)
    return skeletons


def _refuse_declared(catalog: Catalog, directory: Path) -> None:
    """Refuse a family that says itself what it is, before its names are looked at.

    Raises:
        UnknownConvention: it is known, and not supported.
    """
    if catalog.format == "gguf":
        where, declared = "GGUF", catalog.metadata.get("general.architecture")
    else:
        config = read_json(directory / "config.json") or {}
        where, declared = "config.json", config.get("model_type")
        _refuse_class(config.get("architectures"), declared)
    # To GGUF every model of that shape is a llama; the key-values say more (see spelling).
    family = None if (where, declared) == ("GGUF", "llama") else by_type(str(declared))
    if family is not None:
        # MiniMax-M2 was first published as "minimax", MiniMax-Text-01's type: the names tell.
        family = by_names(_skeletons(catalog.tensors)) or family
        raise UnknownConvention(
            f"declared as {str(declared)!r}, which is {family}",
            where=where,
            hint=f"supported: {_supported()}",
        )


def _refuse_class(classes: object, declared: object) -> None:
    """Refuse a config.json that has no model_type and names a class of another family.

    Raises:
        UnknownConvention: with the class.
    """
    names = classes if isinstance(classes, list) else []
    foreign = [name for name in names if not re.match(r"(Mixtral|Mistral)[A-Z]", str(name))]
    if declared is None and foreign:
        raise UnknownConvention(
            f"no model_type, and the class {str(foreign[0])[:60]!r} is neither Mixtral's nor "
            "Mistral's",
            where="config.json",
            hint=f"supported: {_supported()}",
        )


def _agree(architecture: Architecture, args: ModelArgs) -> None:
    """Refuse names of a mixture with hyperparameters of a dense model, and the reverse.

    Raises:
        InconsistentCheckpoint: the side file is another model's.
    """
    if (architecture is DENSE) != (args.n_experts == 0):
        found = f"{args.n_experts} experts" if args.n_experts else "no experts"
        raise InconsistentCheckpoint(
            f"the tensor names are those of {architecture.title}, the hyperparameters have {found}",
            hint="is this the params.json or config.json of another model?",
        )


def _supported() -> str:
    return ", ".join(architecture.title for architecture in ARCHITECTURES)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key appears twice")
    return data


def _misfits(catalog: Catalog, layout: Mapping[str, StoredTensor]) -> list[str]:
    """The tensors that are not of this model, or not of its shapes."""
    findings = []
    for name, info in catalog.tensors.items():
        if name not in layout:
            findings.append(f"unexpected {name}")
        elif info.shape != layout[name].shape:
            expected = list(layout[name].shape)
            findings.append(f"{name}: expected shape {expected}, got {list(info.shape)}")
    return findings


def _refuse_findings(findings: Sequence[str]) -> None:
    if findings:
        raise InconsistentCheckpoint(
            f"{len(findings)} tensors do not fit the declared hyperparameters",
            findings=tuple(findings),
            hint="is this the params.json or config.json of another model, or a file missing?",
        )
