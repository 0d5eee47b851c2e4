"""Text for people: where the model has a choice to make, from beginnings of the shipped text.

A prompt that leaves no choice is continued as well by broken models: a repetitive one passed six of
them. One after which anything may come shows nothing either. So the beginnings end where the
entropy of the next token is neither near 0 nor near chance, one in each third of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from moetool.model.generate import Pace, Sampling, advance

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.mixtral import Transformer
    from moetool.model.smoke.text import Text
    from moetool.model.tokenizer import TextStream, Tokenizer

N_BEGINNINGS = 3
SHORTEST, LONGEST = 5, 24  # tokens from the start of a sentence
# Shares of chance, which is the logarithm of the vocabulary. Of the tiny release's positions half
# lie below the first; what is nearest to the middle one is taken.
LOW, MIDDLE, HIGH = 0.1, 0.3, 0.6
ROWS = 128  # of logits at a time
LINE_ENDS = ("<0x0A>", "\n")  # what begins a line needs least of what stood before it
ENDS = (".", "!", "?", '"', *LINE_ENDS)


@dataclass(slots=True)
class Writing:
    """A prompt and what the model has made of it so far; without a stream, ids are its text."""

    prompt: str
    tokens: Sequence[int]
    stream: TextStream | None = None
    made: list[int] = field(default_factory=list)
    text: str = ""
    entropy: float | None = None

    def add(self, token: int) -> str:
        """Take a token; give the text that is certain now."""
        self.made.append(token)
        return self._added(self.stream.push(token) if self.stream else f" {token}")

    def end(self) -> str:
        """Give what was held back."""
        return self._added(self.stream.flush() if self.stream else "")

    def _added(self, piece: str) -> str:
        self.text += piece
        return piece


def beginnings(text: Text, logits_TV: Tensor, tokenizer: Tokenizer) -> list[str]:
    """Beginnings of sentences after which the model is of several minds, at most three."""
    chance = math.log(logits_TV.shape[1])
    shares = [entropy / chance for entropy in entropies(logits_TV)]
    pieces = [tokenizer.piece(token)[0] for token in text.tokens]
    found: list[str] = []
    for third in range(N_BEGINNINGS):
        first, last = (len(text) * at // N_BEGINNINGS for at in (third, third + 1))
        ends = [
            (not pieces[start - 1].endswith(LINE_ENDS), abs(shares[end] - MIDDLE), start, end)
            for start, end in _in_sentences(pieces, first, last)
            if LOW <= shares[end] <= HIGH
        ]
        if ends:
            *_, start, end = min(ends)
            found.append(tokenizer.decode(text.tokens[start : end + 1]).strip())
    return list(dict.fromkeys(found))


def _in_sentences(pieces: Sequence[str], first: int, last: int) -> Iterator[tuple[int, int]]:
    """Starts of sentences, and the ends of words in them that a prompt may end with."""
    for start in range(max(1, first), last):
        if start > 1 and not pieces[start - 1].endswith(ENDS):
            continue
        for end in range(start + SHORTEST - 1, min(start + LONGEST, last - 1)):
            if pieces[end].endswith(ENDS):
                break
            if pieces[end + 1].startswith("\N{LOWER ONE EIGHTH BLOCK}"):
                yield start, end


def entropies(logits_TV: Tensor) -> list[float]:
    """The entropy of the next token at each position, in nats."""
    found: list[float] = []
    for rows_TV in torch.split(logits_TV, ROWS):
        log_TV = rows_TV.log_softmax(-1)
        found += (-(log_TV.exp() * log_TV).sum(-1)).tolist()
    return found


def write_together(
    model: Transformer,
    writings: Sequence[Writing],
    max_tokens: int,
    sampling: Sampling,
    stop: frozenset[int],
    pace: Pace,
) -> Iterator[str]:
    """Continue all prompts, one pass over the weights for a token of each; give text as it comes.

    Only where there is one prompt do the pieces make one text.

    Raises:
        UsageFault: a prompt leaves no room in the model's context.
        CheckFailed: a logit is NaN or infinite.
    """
    prompts = [each.tokens for each in writings]
    for steps in advance(prompts, model, max_tokens, sampling, stop, pace):
        for step in steps:
            if writings[step.at].entropy is None:
                (writings[step.at].entropy,) = entropies(step.logits_V[None])
        for step in steps:
            if step.token not in stop:
                yield writings[step.at].add(step.token)
    for each in writings:
        yield each.end()
