"""Tokens of the resident engine, as a stream: the device runs a few steps ahead of who reads.

A step reads the token that the one before chose on the device, so it can be started before anyone
has seen that token. Each choice is copied to the host behind its step, and read when the device is
`AHEAD` steps further: the device never waits for the host, and a stream that ends at a stop token
has made that many steps for nothing. A drawn token is drawn on the CPU, so that a seed means the
same everywhere; there each step waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moetool.model.fast.copies import Copies, Mark, copies_for
from moetool.model.fast.decoder import Decoder
from moetool.model.generate import Pace, Sampling, choose, not_finite

if TYPE_CHECKING:
    from moetool.model.fast.resident import Resident

AHEAD = 4


def continued(
    model: Resident,
    prompt: Sequence[int],
    max_tokens: int,
    sampling: Sampling,
    stop: frozenset[int],
    pace: Pace,
    copies: Copies | None = None,
) -> Iterator[int]:
    """Continue a prompt as `moetool.model.generate.generate` does.

    Raises:
        UsageFault: the model's context has no room for so many.
        CheckFailed: a logit is NaN or infinite.
    """
    last = len(prompt) + max_tokens
    decoder = Decoder(model, cache := model.new_cache(last))
    decoder.prepare(len(prompt) + 1, last)  # before the clock runs: it takes seconds, once

    def following() -> Iterator[int]:
        tokens_T = torch.tensor(prompt, device=model.weights.device)
        h_TD = model.hidden(tokens_T, cache)
        decoder.begin(model.logits(h_TD[-1:])[0])
        if sampling.temperature:
            yield from drawn(decoder, max_tokens, sampling)
        else:
            yield from best(decoder, max_tokens, copies or copies_for(tokens_T.device))

    tokens, n_read = following(), len(prompt)
    while True:
        began = time.perf_counter()
        token = next(tokens, None)
        if token is None:
            return
        pace.add(n_read, time.perf_counter() - began)
        n_read = 1
        if token in stop:
            return
        yield token


def best(decoder: Decoder, max_tokens: int, copies: Copies) -> Iterator[int]:
    """The best token each time, read from behind."""
    ring = copies.staging(AHEAD + 1, torch.int64)
    under_way: deque[tuple[Tensor, Mark]] = deque()
    for n in range(max_tokens):
        if n:
            decoder.advance()
        place = ring[n % len(ring)]
        place.copy_(decoder.chosen_1[0], non_blocking=True)
        under_way.append((place, copies.mark()))
        if len(under_way) > AHEAD:
            yield _read(*under_way.popleft())
    while under_way:
        yield _read(*under_way.popleft())


def _read(place: Tensor, mark: Mark) -> int:
    mark.wait()
    token = int(place)
    if token < 0:
        raise not_finite()
    return token


def drawn(decoder: Decoder, max_tokens: int, sampling: Sampling) -> Iterator[int]:
    """A token drawn each time."""
    random = torch.Generator().manual_seed(sampling.seed)
    for n in range(max_tokens):
        if n:
            decoder.advance()
        token = choose(decoder.logits_V, sampling, random)
        decoder.token_1.fill_(token)
        yield token
