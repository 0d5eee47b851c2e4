"""Words for parts of a model -> ranges of bytes of its stored tensors, in any layout.

    layers.0-3   layers.7          everything in these layers
    experts.2    experts.0-1       experts of every layer, without the router
    layers.0-3.experts.2           those of some layers
    router  attention  norms       a kind of weight in every layer; layers.0-3.attention in some
    embeddings  output             the tables that no layer has
    wq … w3                        a role by its name
    tokenizer                      the small files only, which always come
    model.layers.0.*               else: a pattern of the names as they are stored

Words are of roles, layers and experts, so they mean the same weights in a .pth, in shards and in a
GGUF. Where experts are stacked in one tensor, an expert is a range of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from moetool.arch.recognize import recognize
from moetool.arch.schema import Role, Slot
from moetool.errors import ArchError, FormatError, UsageFault
from moetool.extents import Range, union

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.arch.recognize import Recognized
    from moetool.tensors import Catalog, TensorInfo

TOKENIZER = "tokenizer"
KINDS = {
    "router": frozenset({Role.ROUTER}),
    "attention": frozenset({Role.WQ, Role.WK, Role.WV, Role.WO}),
    "norms": frozenset({Role.ATTENTION_NORM, Role.FFN_NORM, Role.NORM}),
    "embeddings": frozenset({Role.TOK_EMBEDDINGS}),
    "output": frozenset({Role.OUTPUT}),
    "experts": frozenset({Role.W1, Role.W2, Role.W3}),
} | {role.value: frozenset({role}) for role in Role if role not in {Role.ROUTER, Role.OUTPUT}}

_NUMBERS = r"\d{1,4}(?:-\d{1,4})?"
_WORDS = re.compile(
    rf"(?:layers\.(?P<layers>{_NUMBERS}))?"
    rf"(?:(?:^|(?<=\d)\.)(?:experts\.(?P<experts>{_NUMBERS})|(?P<kind>[a-z][a-z0-9_]*)))?"
)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``start:stop`` of the stored form of a tensor."""

    name: str
    start: int
    stop: int


def split_selectors(texts: Iterable[str]) -> tuple[str, ...]:
    """The selectors of a command line, each once: an option may be repeated, or have commas.

    Raises:
        UsageFault: there is none in one of them.
    """
    found = [part.strip() for text in texts for part in text.split(",")]
    if not all(found):
        raise UsageFault(
            "--only wants what to fetch", hint="--only layers.0-3, --only experts.2 or tokenizer"
        )
    return tuple(dict.fromkeys(found))


def select(catalog: Catalog, directory: Path, selectors: Sequence[str]) -> tuple[Span, ...]:
    """What selectors name, in the order of the checkpoint; neighbours are one span.

    Raises:
        UsageFault: one of them names nothing; the message says what there is.
    """
    recognized, reason = _recognized(catalog, directory)
    found: dict[str, list[Range]] = {}
    for text in selectors:
        spans = list(_named(catalog, recognized, text))
        if not spans and text != TOKENIZER:
            raise _nothing(text, catalog, recognized, reason)
        for span in spans:
            found.setdefault(span.name, []).append((span.start, span.stop))
    return tuple(
        Span(name, start, stop)
        for name in catalog.tensors
        for start, stop in union(found.get(name, []))
    )


def _recognized(catalog: Catalog, directory: Path) -> tuple[Recognized | None, str]:
    try:
        return recognize(catalog, directory), ""
    except (ArchError, FormatError) as error:
        return None, str(error)


def _named(catalog: Catalog, recognized: Recognized | None, text: str) -> Iterator[Span]:
    """What one selector names: by its words where it has some that are known, else by names."""
    match = _WORDS.fullmatch(text)
    if match is None or (match["kind"] and match["kind"] not in KINDS):
        for name, info in catalog.tensors.items():
            if fnmatchcase(name, text):
                yield Span(name, 0, info.nbytes)
        return
    if recognized is None:
        return
    fits = _fitting(match, recognized)
    for name, stored in recognized.layout.items():
        for cell in stored.cells:
            if fits(cell.slot):
                yield _rows(catalog.tensors[name], cell.start, cell.stop)


def _fitting(match: re.Match[str], recognized: Recognized) -> Callable[[Slot], bool]:
    """Whether a weight is meant; none is where a number is beyond the last layer or expert."""
    layers = _range(match["layers"], recognized.args.n_layers)
    experts = _range(match["experts"], recognized.args.n_experts)
    roles = KINDS[match["kind"]] if match["kind"] else frozenset(Role)
    of_experts = match["experts"] is not None or match["kind"] == "experts"

    def fits(slot: Slot) -> bool:
        in_layers = match["layers"] is None or slot.layer in layers
        in_experts = match["experts"] is None or slot.expert in experts
        is_meant = in_experts and not (of_experts and slot.expert is None)
        return in_layers and is_meant and slot.role in roles

    return fits


def _range(text: str | None, count: int) -> range:
    """The numbers of ``2`` or ``0-3``; none where the last is not below ``count``."""
    if text is None:
        return range(0)
    first, _, last = text.partition("-")
    stop = int(last or first) + 1
    return range(int(first), stop) if stop <= count else range(0)


def _rows(info: TensorInfo, start: int, stop: int) -> Span:
    """Rows of a tensor; of a vector, whose rows are values, all."""
    if len(info.shape) < 2:  # noqa: PLR2004  # a norm
        return Span(info.name, 0, info.nbytes)
    return Span(info.name, start * info.row_nbytes, stop * info.row_nbytes)


def _nothing(text: str, catalog: Catalog, recognized: Recognized | None, reason: str) -> UsageFault:
    names = list(catalog.tensors)
    named = f"a pattern of {len(names)} names such as {names[0]}" if names else "no tensors"
    findings: tuple[str, ...]
    if recognized is None:
        findings = (f"the model is not recognised ({reason})", named)
    else:
        args = recognized.args
        experts = f"experts 0-{args.n_experts - 1}" if args.n_experts else "no experts"
        findings = (
            f"layers 0-{args.n_layers - 1}, {experts}",
            ", ".join(KINDS),
            "tokenizer: the small files, which always come",
            named,
        )
    return UsageFault(
        f"--only {text!a} names nothing in this release",
        hint="--only layers.0-3, --only layers.0.experts.2 or --only router",
        findings=tuple(f"there is: {line}" for line in findings),
    )
