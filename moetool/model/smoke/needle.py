"""A key hidden in a long text, asked for at its end: does the model see as far as it says?

The pass-key test of Mohtashami and Jaggi, arXiv 2305.16300, in words that a base model continues.
"Mixtral of Experts", arXiv 2401.04088, section 3.2, finds every key up to 32 k. A model may be too
small to repeat a key at all: a control asks over a few lines first, and only one that finds the key
there can lose it later. The keys are given as the continuation, so nothing is decoded: all depths
of a length go through the weights in one pass, where their caches fit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from moetool.model.device import available_nbytes
from moetool.model.mixtral import Probe
from moetool.model.parallel.shared import least_of
from moetool.model.smoke.checks import Check, judge, number
from moetool.model.smoke.text import read_text

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.mixtral import Transformer
    from moetool.model.tokenizer import Tokenizer

LENGTHS = (4096, 16_384, 32_768)
CONTROL = 200
DEPTHS = (0.1, 0.5, 0.9)
NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"
GUESS = math.log(10)  # nats for a digit of which nothing is known; half of it and more is lost
PER_VALUE = 16  # bytes that a value of the stream takes while it goes through a layer, at most


@dataclass(frozen=True, slots=True)
class Haystack:
    """A text that ends with the key it hides; ``n_key`` tokens of it are the key."""

    tokens: tuple[int, ...]
    n_key: int


class Ticker(Probe):
    """A probe that tells which layer is done."""

    def __init__(self, note: Callable[[int], None]) -> None:
        self._note = note

    def hidden(self, layer: int, part: str, h_TD: Tensor) -> None:
        """Tell it."""
        del part, h_TD
        self._note(layer)


def look(
    model: Transformer, tokenizer: Tokenizer, filler: str, note: Callable[[int], None]
) -> list[Check]:
    """Ask for the keys at each length that the model and the memory have room for."""
    control = search(model, haystacks(tokenizer, filler, CONTROL), note)
    if not _worst(control) < GUESS / 2:
        reason = (
            f"the model does not repeat a key even over {CONTROL} tokens: "
            f"{_worst(control):.2f} nats a token, a guess costs {GUESS:.2f}"
        )
        return [judge("L3", f"needle at {size}", None, reason) for size in LENGTHS]
    return [_at(model, tokenizer, filler, size, note) for size in LENGTHS]


def _at(
    model: Transformer, tokenizer: Tokenizer, filler: str, size: int, note: Callable[[int], None]
) -> Check:
    name, context = f"needle at {size}", model.args.max_seq_len
    if size > context:
        return judge("L3", name, None, f"the model's context is {context} tokens")
    needed, free = nbytes(model, size), least_of(model, available_nbytes(model.weights.device))
    if needed > free:
        reason = f"a text takes {needed / 1e9:.1f} GB beside the weights, {free / 1e9:.1f} are free"
        return judge("L3", name, None, reason)
    losses = search(model, haystacks(tokenizer, filler, size), note, together=free // needed)
    lost = [
        f"{depth:.0%}"
        for depth, loss in zip(DEPTHS, losses, strict=True)
        if not loss < GUESS / 2  # not: it may be NaN
    ]
    depths = ", ".join(f"{depth:.0%}" for depth in DEPTHS)
    detail = f"keys at depths {depths} found" if not lost else f"lost at depth {', '.join(lost)}"
    detail += f": {_worst(losses):.2f} nats a token at most, a guess costs {GUESS:.2f}"
    return judge("L3", name, not lost, detail, [number(loss) for loss in losses], GUESS / 2)


def _worst(losses: Sequence[float]) -> float:
    return math.inf if any(map(math.isnan, losses)) else max(losses)


def haystacks(tokenizer: Tokenizer, filler: str, size: int) -> list[Haystack]:
    """Texts of ``size`` tokens, one for each depth; each hides a key of its own."""
    digits = random.Random(0)  # noqa: S311  # the same keys each time
    straw = tokenizer.encode(read_text(filler), bos=False)
    found: list[Haystack] = []
    for depth in DEPTHS:
        key = digits.randrange(10_000, 100_000)
        needle = tokenizer.encode(NEEDLE.format(key=key), bos=False)
        asked = tokenizer.encode(QUESTION, bos=False)
        answered = tokenizer.encode(f"{QUESTION} {key}", bos=False)
        same = [one == other for one, other in zip(asked, answered, strict=False)]
        n_key = len(answered) - (same.index(False) if False in same else len(asked))
        n_straw = max(0, size - 1 - len(needle) - len(answered))
        hay = (straw * (n_straw // len(straw) + 1))[:n_straw]
        at = round(n_straw * depth)
        tokens = (tokenizer.bos, *hay[:at], *needle, *hay[at:], *answered)
        found.append(Haystack(tokens, n_key))
    return found


def nbytes(model: Transformer, size: int) -> int:
    """What one text takes beside the weights: its keys and values, and its stream in a layer."""
    args = model.args
    cache = args.kv_cache_nbytes(size, model.weights.dtype.itemsize)
    return cache + size * PER_VALUE * args.dim


def search(
    model: Transformer,
    stacks: Sequence[Haystack],
    note: Callable[[int], None],
    together: int = len(DEPTHS),
) -> list[float]:
    """The loss of each key in nats a token."""
    losses: list[float] = []
    for at in range(0, len(stacks), together):
        group = stacks[at : at + together]
        pieces = [torch.tensor(each.tokens, device=model.weights.device) for each in group]
        caches = [model.new_cache(len(piece_T)) for piece_T in pieces]
        states = model.hidden_of(pieces, caches, Ticker(note))
        for stack, piece_T, h_TD in zip(group, pieces, states, strict=True):
            logits_SV = model.logits(h_TD[-stack.n_key - 1 : -1])
            losses.append(float(F.cross_entropy(logits_SV, piece_T[-stack.n_key :])))
    return losses
