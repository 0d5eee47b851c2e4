"""L0: what can be said before a weight is read.

No tensor shows rope_theta, norm_eps or the number of experts per token: a wrong one loads, runs and
talks, a little worse. So they are compared with the known release of the same geometry.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING

from moetool.model.smoke.checks import Check, judge

if TYPE_CHECKING:
    from moetool.model.smoke.subject import Subject

VALUES = ("rope_theta", "norm_eps", "n_experts_per_tok", "max_seq_len")
SPECIAL = {"unk": 0, "bos": 1, "eos": 2}  # in every sentencepiece model of Mistral's


def tensors(subject: Subject) -> Check:
    """Names: none missing, none extra; `recognize` refused the checkpoint otherwise."""
    have, expected = set(subject.checkpoint.catalog.tensors), set(subject.recognized.layout)
    strange = sorted(have ^ expected)
    title = subject.recognized.convention.name
    detail = f"{len(have)} tensors of layout {title}, none missing, none extra"
    return judge("L0", "tensors", not strange, detail if not strange else f"{strange[:3]}")


def shapes(subject: Subject) -> Check:
    """Shapes: each follows from the hyperparameters."""
    layout, found = subject.recognized.layout, subject.checkpoint.catalog.tensors
    wrong = [name for name, info in found.items() if info.shape != layout[name].shape]
    args = subject.args
    detail = f"dim {args.dim}, {args.n_layers} layers, {args.n_experts} experts fit every shape"
    return judge("L0", "shapes", not wrong, detail if not wrong else f"{wrong[:3]} do not fit")


def _known_value(name: str) -> Callable[[Subject], Check]:
    def check(subject: Subject) -> Check:
        value, release = getattr(subject.args, name), subject.release
        origin = "assumed, no file says it" if name in subject.args.assumed else "read"
        expected = release.model.get(name) if release else None
        if release is None or expected is None:
            detail = f"{value:g} ({origin}); no known release has this geometry"
            return judge("L0", name, None, detail, value)
        relation = (
            f"as {release.name} has" if value == expected else f"{release.name} has {expected:g}"
        )
        detail = f"{value:g} ({origin}), {relation}"
        return judge("L0", name, value == expected, detail, value, expected)

    return check


def tokenizer_there(subject: Subject) -> Check:
    """A tokenizer is beside the weights or inside the GGUF."""
    if subject.tokenizer is None:
        return judge("L0", "tokenizer", None, "no tokenizer.model: token ids are used, no text")
    return judge("L0", "tokenizer", True, f"from {subject.tokenizer.origin}")


def vocabulary(subject: Subject) -> Check:
    """As many pieces as the embedding has rows."""
    if subject.tokenizer is None:
        return judge("L0", "vocabulary", None, "no tokenizer")
    pieces, rows = subject.tokenizer.n_words, subject.args.vocab_size
    detail = f"{pieces} pieces, {rows} rows in the embedding"
    return judge("L0", "vocabulary", pieces == rows, detail, pieces, rows)


def tokenizer_digest(subject: Subject) -> Check:
    """The file is the one that was published."""
    published, known = subject.published_tokenizer(), subject.known_tokenizer()
    if subject.tokenizer is None or published is None or known is None:
        return judge("L0", "tokenizer digest", None, "no published tokenizer to compare with")
    algorithm, expected = published
    value = subject.tokenizer.digest(algorithm)
    relation = "is that of" if known else "is not that of"
    detail = f"{algorithm} {relation} {subject.release.name if subject.release else 'it'}"
    return judge("L0", "tokenizer digest", known, detail, value, expected)


def round_trips(subject: Subject) -> Check:
    """Text -> ids -> the same text, for strings that have undone converters of tokenizers."""
    if subject.tokenizer is None:
        return judge("L0", "round trips", None, "no tokenizer")
    tokenizer = subject.tokenizer
    listed = resources.files("moetool.model") / "texts" / "round_trips.json"
    texts: list[str] = json.loads(listed.read_text(encoding="utf-8"))
    lost = [text for text in texts if tokenizer.decode(tokenizer.encode(text, bos=False)) != text]
    detail = f"{len(texts)} strings come back as they were"
    if lost:
        detail = f"{len(lost)} of {len(texts)} strings change, first {lost[0]!a}"
    return judge("L0", "round trips", not lost, detail, len(texts) - len(lost), len(texts))


def special_ids(subject: Subject) -> Check:
    """The marks of beginning, end and unknown are where the model learnt them."""
    if subject.tokenizer is None:
        return judge("L0", "special ids", None, "no tokenizer")
    found = {name: getattr(subject.tokenizer, name) for name in SPECIAL}
    detail = ", ".join(f"{name} {value}" for name, value in found.items())
    return judge("L0", "special ids", found == SPECIAL, detail, found, SPECIAL)


CHECKS: tuple[Callable[[Subject], Check], ...] = (
    tensors,
    shapes,
    *(_known_value(name) for name in VALUES),
    tokenizer_there,
    vocabulary,
    tokenizer_digest,
    round_trips,
    special_ids,
)
