"""With the source at hand: the same settings, tokenizer, values, and the same results part by part.

A conversion that loses nothing has the source's values, so its results are equal to the last bit:
there is no threshold. One that stores a narrower type is judged by a band: rounding to a type of
``p`` significant bits changes a value by at most 2^-p of itself, so each part by no more than a few
times that. Real faults (a zeroed expert, w1 for w3, an angle) change a part by its own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moetool.convert.plan import BLOCKS
from moetool.convert.quantised.distance import usual_rel_rms
from moetool.errors import Refused
from moetool.model.parallel.pipeline import Pipeline
from moetool.model.smoke.checks import Check, judge, number
from moetool.model.smoke.lockstep import Lockstep, by_layer, join, run_lockstep
from moetool.model.smoke.text import shipped_text
from moetool.tensors import DType, main_dtype

if TYPE_CHECKING:
    from moetool.model.mixtral import Transformer
    from moetool.model.smoke.bits import Scan
    from moetool.model.smoke.subject import Subject

SHAPES = ("dim", "n_layers", "hidden_dim", "vocab_size", "n_experts")
BITS = {DType.BF16: 8, DType.F16: 11, DType.F32: 24, DType.F64: 53}
ROOM = 8.0  # times the rounding of one value: sums of rounded terms stay well below it
BLOCK_ROOM = 2.5  # measured 1.1 to 1.2: three such matrices in an expert, one behind the other
NAMED = 4  # parts or tensors that a line names


@dataclass(frozen=True, slots=True)
class Pair:
    """The source and the checkpoint under test, what was found of each, and side by side.

    ``lossless``: the checkpoint's type holds every value of the source's.
    """

    source: Subject
    subject: Subject
    source_scan: Scan
    scan: Scan
    lockstep: Lockstep
    lossless: bool


def compare(
    source: tuple[Subject, Transformer, Scan],
    subject: tuple[Subject, Transformer, Scan],
    note: Callable[[int], None],
) -> Pair:
    """Run both over the shipped text; both scans are there already.

    Raises:
        Refused: the two have other shapes, so no part can be compared.
    """
    ours_args, theirs_args = source[0].args, subject[0].args
    for name in SHAPES:
        if getattr(ours_args, name) != getattr(theirs_args, name):
            raise Refused(
                f"{name} is {getattr(theirs_args, name)}, the source has "
                f"{getattr(ours_args, name)}: no part can be compared",
                hint="moetool diff says what else differs",
            )
    ours, theirs = main_dtype_of(source[0]), main_dtype_of(subject[0])
    text = shipped_text(source[0])
    tokens_T = torch.tensor(text.tokens, device=source[1].weights.device)
    lockstep = run_lockstep(source[1], subject[1], tokens_T, note)
    if isinstance(source[1], Pipeline):
        lockstep = join(source[1].ranks.share(lockstep))
    whole = BITS.get(theirs, 0)  # of blocks, every value has an f32
    lossless = ours is theirs or whole >= max(BITS[DType.F32], BITS.get(ours, BITS[DType.F32]))
    return Pair(source[0], subject[0], source[2], subject[2], lockstep, lossless)


def main_dtype_of(subject: Subject) -> DType:
    """The type in which most of a checkpoint is stored."""
    return main_dtype(subject.checkpoint.catalog.tensors.values())


def band_of(subject: Subject) -> float:
    """How far a part may be off, relative to itself, for what its type rounds.

    Of a mix of block types the coarsest counts, for any part may be stored in it.
    """
    types = {info.dtype for info in subject.checkpoint.catalog.tensors.values()}
    blocks = [usual_rel_rms(dtype) for dtype in types if dtype in BLOCKS]
    if blocks:
        return BLOCK_ROOM * max(blocks)
    return ROOM / float(2 ** BITS[main_dtype_of(subject)])


def same_settings(pair: Pair) -> Check:
    """Nothing that decides what is computed is another."""
    ours, theirs = pair.source.args, pair.subject.args
    names = [
        name.removesuffix("_f32") for name in ours.maths if ours.maths[name] != theirs.maths[name]
    ]
    wrong = [f"{name} {getattr(theirs, name)} for {getattr(ours, name)}" for name in names]
    detail = "; ".join(wrong) or "as the source has them"
    return judge("L0", "same settings", not wrong, detail, wrong or None)


def same_tokenizer(pair: Pair) -> Check:
    """The vocabulary is the source's, piece for piece."""
    ours, theirs = pair.source.tokenizer, pair.subject.tokenizer
    if ours is None or theirs is None:
        return judge("L0", "same tokenizer", None, "one of them has none")
    same = ours.n_words == theirs.n_words and all(
        ours.piece(token) == theirs.piece(token) for token in range(ours.n_words)
    )
    detail = f"{ours.n_words} pieces, as the source has them"
    return judge("L0", "same tokenizer", same, detail if same else "other pieces than the source's")


def same_values(pair: Pair) -> Check:
    """Every canonical tensor has the source's values; of a narrower type that cannot be asked."""
    differing = [
        str(slot)
        for slot, digest in pair.source_scan.digests.items()
        if pair.scan.digests.get(slot) != digest
    ]
    n_tensors = len(pair.source_scan.digests)
    if not pair.lossless:
        detail = f"{len(differing)} of {n_tensors} tensors have other values, stored narrower"
        return judge("L1", "same values", None, detail)
    detail = f"{n_tensors} tensors, as the source has them"
    if differing:
        more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        detail = f"others in {', '.join(differing[:NAMED])}{more}"
    return judge("L1", "same values", not differing, detail, differing or None)


def lockstep(pair: Pair) -> Check:
    """Every part gives what the source's gives, on the same input."""
    found = pair.lockstep
    band = 0.0 if pair.lossless else band_of(pair.subject)
    ok = found.worst <= band
    parts = f"{found.n_parts} parts over {found.n_tokens} tokens"
    if ok and not found.differing:
        detail = f"{parts}, equal to the last bit"
    elif ok:
        detail = f"{parts}, at most {found.worst:.1e} apart (rounding allows {band:.1e})"
    else:
        detail = "; ".join(_first(by_layer(found.differing)))
    silent = len(found.silent)
    note = f"; {silent} experts were not reached by the text" if silent else ""
    return judge("L2", "lockstep", ok, detail + note, number(found.worst), band)


def _first(lines: Iterator[str]) -> list[str]:
    found = list(lines)
    more = [f"and {len(found) - NAMED} more layers"] if len(found) > NAMED else []
    return [*found[:NAMED], *more]


CHECKS: tuple[Callable[[Pair], Check], ...] = (
    same_settings,
    same_tokenizer,
    same_values,
    lockstep,
)
