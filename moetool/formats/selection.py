"""Which files of a listing elsewhere make one checkpoint, and which say what it means.

A repository often holds the same model in several forms, 93 GB each: then a person must choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from moetool.errors import UsageFault
from moetool.files.joined import whole_name
from moetool.formats.directory import FORMS, INDEX, SHARD, is_hf_shard
from moetool.formats.rules import shown

BESIDE: Final = (
    "RELEASE", "checklist.chk", "params.json", "config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "tekken.json",
    "LICENSE*",
)  # fmt: skip
"""What is taken beside the weights: digests, hyperparameters, tokenizers, the licence."""


def choose(sizes: Mapping[str, int], include: Sequence[str] = ()) -> tuple[str, ...]:
    """Choose what to fetch: one checkpoint, or what ``include`` names, and what lies beside it.

    Args:
        sizes: every path of the listing, with slashes, and its size in bytes.
        include: patterns for whole paths, as of a shell; ``*`` crosses folders.

    Raises:
        UsageFault: no checkpoint, several of them, or a pattern that nothing matches.
    """
    if include:
        chosen = _matching(sizes, include)
    else:
        here = [name for name in sizes if "/" not in name]
        chosen = _only_form(forms_in(here), sizes)
    folders = {name.rpartition("/")[0] for name in chosen}
    beside = [
        name
        for name in sizes
        if name.rpartition("/")[0] in folders | {""} and _any(name.rpartition("/")[2], BESIDE)
    ]
    return tuple(dict.fromkeys([*chosen, *beside]))


def forms_in(names: Iterable[str]) -> dict[str, list[str]]:
    """The checkpoints in one folder, by what tells them apart: the form, for GGUF the file."""
    found: dict[str, list[str]] = {}
    shards = []
    for name in names:
        whole = whole_name(name) or name
        if is_hf_shard(name):
            shards.append(name)
        for form, pattern in FORMS.items():
            if pattern.fullmatch(whole):
                found.setdefault(_label(form, whole), []).append(name)
    if INDEX in found:
        found[INDEX] += shards
    return found


def _label(form: str, whole: str) -> str:
    shard = SHARD.fullmatch(whole)
    if not whole.endswith(".gguf"):
        return form
    return f"{shard['stem']}-*-of-{shard['count']}.gguf" if shard else whole


def _only_form(forms: Mapping[str, list[str]], sizes: Mapping[str, int]) -> list[str]:
    match list(forms.values()):
        case [names]:
            return names
        case []:
            below = sorted({name.rpartition("/")[0] for name in sizes if _is_weight(name)} - {""})
            raise UsageFault(
                "no checkpoint of a known form at the top of the repository",
                hint=f"--include '{below[0]}/*'"
                if below
                else "--include PATTERN takes files anyway",
                findings=tuple(f"weights in {shown(folder)}/" for folder in below[:20]),
            )
    raise UsageFault(
        f"the repository holds {len(forms)} checkpoints; which one?",
        hint=f"--include '{_pattern(next(iter(forms.values())))}'",
        findings=tuple(
            f"{shown(form)}: {len(names)} files, {sum(sizes[n] for n in names) / 1e9:.1f} GB: "
            f"--include '{_pattern(names)}'"
            for form, names in forms.items()
        ),
    )


def _is_weight(name: str) -> bool:
    return bool(forms_in([name.rpartition("/")[2]]))


def _pattern(names: Sequence[str]) -> str:
    """A pattern that matches these names: what they begin with, and end with."""
    first = names[0]
    if len(names) == 1:
        return first
    start = min(
        (i for i in range(len(first)) if any(not n.startswith(first[: i + 1]) for n in names)),
        default=len(first),
    )
    end = "." + first.rpartition(".")[2]
    return (
        f"{first[:start]}*{end}"
        if all(name.endswith(end) for name in names)
        else f"{first[:start]}*"
    )


def _matching(sizes: Mapping[str, int], include: Sequence[str]) -> list[str]:
    idle = [pattern for pattern in include if not any(fnmatchcase(n, pattern) for n in sizes)]
    if idle:
        raise UsageFault(
            f"--include {idle[0]!r} matches nothing",
            hint="write a pattern for whole paths in quotes, as 'consolidated*'",
            findings=tuple(f"there is {shown(name)}" for name in sorted(sizes)[:40]),
        )
    return [name for name in sizes if _any(name, include)]


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
