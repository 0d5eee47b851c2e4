"""Tokens one after another: a prompt in one pass, then one position at a time from the cache."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moetool.errors import CheckFailed, UsageFault

if TYPE_CHECKING:
    from moetool.model.mixtral import Probe, Transformer


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen: temperature 0 takes the best; top_k 0 and top_p 1 cut nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UsageFault("expected temperature >= 0, 0 < top_p <= 1, top_k >= 0")


@dataclass(slots=True)
class Pace:
    """Tokens and seconds of the two phases, filled while a generation runs.

    The prompt's pass gives the first new token, so ``new_tokens`` counts those behind it.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0

    def add(self, n_tokens: int, seconds: float) -> None:
        """Note a pass over ``n_tokens``; the first one is the prompt's."""
        if self.prompt_tokens == 0:
            self.prompt_tokens, self.prompt_seconds = n_tokens, seconds
        else:
            self.new_tokens += n_tokens
            self.new_seconds += seconds


def generate(
    model: Transformer,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    sampling: Sampling | None = None,
    stop: frozenset[int] = frozenset(),
    probe: Probe | None = None,
    pace: Pace | None = None,
) -> Iterator[int]:
    """Continue a prompt, up to ``max_tokens`` tokens or before one of ``stop``.

    Raises:
        UsageFault: no prompt, or one that leaves no room in the model's context.
        CheckFailed: a logit is NaN or infinite.
    """
    from moetool.model.fast.ahead import continued
    from moetool.model.fast.resident import Resident

    if not prompt:
        raise UsageFault("the prompt is empty")
    chosen, pace = sampling or Sampling(), pace or Pace()
    if isinstance(model, Resident) and probe is None:
        yield from continued(model, prompt, max_tokens, chosen, stop, pace)
        return
    for (step,) in advance([prompt], model, max_tokens, chosen, stop, pace, probe):
        if step.token in stop:
            return
        yield step.token


@dataclass(frozen=True, slots=True)
class Step:
    """The token chosen behind the sequence numbered ``at``, and the logits it was chosen from."""

    at: int
    token: int
    logits_V: Tensor


def advance(
    prompts: Sequence[Sequence[int]],
    model: Transformer,
    max_tokens: int,
    sampling: Sampling,
    stop: frozenset[int],
    pace: Pace,
    probe: Probe | None = None,
) -> Iterator[list[Step]]:
    """Continue prompts together, one pass over the weights for a token of each.

    Each pass gives a step of every sequence that goes on; one whose token is in ``stop`` ends with
    it. Each sequence is drawn with the seed, as it would be alone.

    Raises:
        UsageFault: a prompt leaves no room in the model's context.
        CheckFailed: a logit is NaN or infinite.
    """
    device = model.weights.device
    caches = [model.new_cache(len(prompt) + max_tokens) for prompt in prompts]
    random = [torch.Generator().manual_seed(sampling.seed) for _ in prompts]
    pieces = [torch.tensor(prompt, device=device) for prompt in prompts]
    going = list(range(len(prompts)))
    for _ in range(max_tokens):
        began = time.perf_counter()
        states = model.hidden_of(pieces, [caches[at] for at in going], probe)
        logits_SV = model.logits(torch.cat([h_TD[-1:] for h_TD in states]))
        steps = [
            Step(at, choose(logits_V, sampling, random[at]), logits_V)
            for at, logits_V in zip(going, logits_SV, strict=True)
        ]
        pace.add(sum(map(len, pieces)), time.perf_counter() - began)
        yield steps
        going = [step.at for step in steps if step.token not in stop]
        pieces = [torch.tensor([s.token], device=device) for s in steps if s.token not in stop]
        if not going:
            return


def choose(logits_V: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """Choose a token; the draw is made on the CPU, so that a seed means the same everywhere.

    Raises:
        CheckFailed: a logit is NaN or infinite.
    """
    logits_V = logits_V.cpu()
    if not logits_V.isfinite().all():
        raise not_finite()
    if sampling.temperature == 0:
        # The first of equal logits; argmax leaves open which.
        return int((logits_V == logits_V.max()).nonzero()[0])
    ordered_V, token_V = logits_V.sort(descending=True, stable=True)
    share_V = (ordered_V / sampling.temperature).softmax(-1)
    # A token stays if those before it have not reached top_p yet; the best one always stays.
    share_V[share_V.cumsum(-1) - share_V >= sampling.top_p] = 0
    if sampling.top_k:
        share_V[sampling.top_k :] = 0
    return int(token_V[torch.multinomial(share_V, 1, generator=random)])


def not_finite() -> CheckFailed:
    """The error of logits that nothing can be chosen from."""
    return CheckFailed(
        "the logits are not finite: a weight is damaged or the type too narrow",
        hint="moetool smoke-test names the tensor or the layer",
    )
