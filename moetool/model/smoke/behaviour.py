"""L3: what the model does with a text of known difficulty.

One pass over the shipped text gives the loss, the size of the stream in every layer and the load
of every expert. Then a few positions are decoded again with the cache, and must say the same.

The loss is compared with a band, not with a number: another device, type or grouping of tokens
rounds differently. What the band cannot see (one dead expert of many) is L1's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from moetool.model.smoke.checks import Check, LayerView, judge, number

if TYPE_CHECKING:
    from moetool.model.mixtral import Routing, Transformer
    from moetool.model.smoke.subject import Subject

WINDOW = 1024  # tokens of the text at most: 26 TFLOP for 8x7B, seconds to a minute on a CPU
CACHED_FROM, CACHED = 32, 16  # positions read in one go, then positions decoded one by one
DEFAULT_TEXT = "english"
SPEECHLESS_TOKENS = 256  # seeded ids, where there is no tokenizer: no loss, all else as usual

# The most by which a cached logit may differ from the one-pass one, in standard deviations of the
# logits. What differs is the order of sums; in 16 bits that also moves tokens between experts.
# Measured on the tiny release over 300 positions: 1e-5, 3e-2, 4e-3; a lost key or value gives 5,
# keys turned by one position too many 0.4. Deeper models have more noise, so bf16 gets room:
# in doubt, float32 is 500 times stricter.
NOISE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


@dataclass(frozen=True, slots=True)
class Observation:
    """One run over the text; ``broken`` names the first part that is not finite.

    ``drift``, ``noise``: how far the cache was off and may be, in deviations of the logits.
    ``flips``, ``lead``: how often its best token was another, and how far behind in one pass.
    """

    text: str
    n_tokens: int
    seconds: float
    loss: float
    layers: tuple[LayerView, ...]
    broken: str | None
    drift: float
    flips: int
    lead: float
    noise: float


class Watcher:
    """A `Probe` that keeps two numbers and the expert counts of each layer."""

    def __init__(self, note: Callable[[int], None]) -> None:
        self._note = note
        self._rms: list[tuple[int, str, Tensor]] = []
        self._load: list[Tensor] = []

    def hidden(self, layer: int, part: str, h_TD: Tensor) -> None:
        """Keep the root mean square, which is NaN or infinite as soon as one value is."""
        self._rms.append((layer, part, h_TD.float().square().mean().sqrt()))
        self._note(layer)

    def routed(self, layer: int, routing: Routing) -> None:
        """Count the tokens of each expert."""
        del layer  # layers come in order
        self._load.append(
            torch.bincount(routing.experts_TA.flatten(), minlength=routing.logits_TE.shape[1])
        )

    def expert(self, layer: int, expert: int, y_SD: Tensor) -> None:
        """Single experts are not looked at."""

    def layers(self) -> tuple[LayerView, ...]:
        """What was seen, layer by layer."""
        sizes = {(layer, part): number(float(rms)) for layer, part, rms in self._rms}
        return tuple(
            LayerView(sizes[layer, "attention"], sizes[layer, "experts"], tuple(load.tolist()))
            for layer, load in enumerate(self._load)
        )

    def broken(self) -> str | None:
        """The first layer and part whose output is not finite."""
        for layer, part, rms in self._rms:
            if not math.isfinite(float(rms)):
                return f"layers.{layer} {part}"
        return None


def observe(model: Transformer, subject: Subject, watcher: Watcher) -> Observation:
    """Run the text once under a watcher's eyes, then some of it again with the cache."""
    text, tokens = shipped_text(subject)
    tokens_T = torch.tensor(tokens, device=model.weights.device)
    began = time.perf_counter()
    logits_TV = model.forward(tokens_T, model.new_cache(len(tokens)), watcher)
    loss = float(F.cross_entropy(logits_TV[:-1], tokens_T[1:]))
    seconds = time.perf_counter() - began
    drift, flips, lead = _compare_cached(model, tokens_T, logits_TV)
    return Observation(
        text=text,
        n_tokens=len(tokens),
        seconds=seconds,
        loss=loss,
        layers=watcher.layers(),
        broken=watcher.broken() or (None if logits_TV.isfinite().all() else "output"),
        drift=drift,
        flips=flips,
        lead=lead,
        noise=NOISE[model.weights.dtype],
    )


def _compare_cached(
    model: Transformer, tokens_T: Tensor, logits_TV: Tensor
) -> tuple[float, int, float]:
    """Decode from the cache what one pass has scored.

    Returns:
        The largest difference of a logit in standard deviations; how often the best token is
        another; by how many deviations that one was behind in the one pass, at most.
    """
    first = max(1, min(CACHED_FROM, len(tokens_T) // 2))
    last = min(first + CACHED, len(tokens_T))
    pieces = [tokens_T[:first], *(tokens_T[at : at + 1] for at in range(first, last))]
    states = model.hidden_of(pieces, [model.new_cache(last)] * len(pieces))
    cached_SV = torch.cat([model.logits(h_TD[-1:]) for h_TD in states])
    once_SV = logits_TV[first - 1 : last]
    best_S1 = cached_SV.argmax(-1, keepdim=True)
    lead_S1 = once_SV.amax(-1, keepdim=True) - once_SV.gather(-1, best_S1)
    drift = (cached_SV - once_SV).abs().max() / once_SV.std()
    return float(drift), int((lead_S1 > 0).sum()), float(lead_S1.max() / once_SV.std())


def shipped_text(subject: Subject) -> tuple[str, list[int]]:
    """The text that fits the release, as tokens; seeded ids where no text can be tokenised."""
    window = min(WINDOW, subject.args.max_seq_len)
    if subject.tokenizer is None or not subject.can_speak:
        random = torch.Generator().manual_seed(0)
        size = (min(SPEECHLESS_TOKENS, window),)
        return "", torch.randint(subject.args.vocab_size, size, generator=random).tolist()
    smoke = subject.release.smoke if subject.release else None
    name = smoke.text if smoke else DEFAULT_TEXT
    text = (resources.files("moetool.model") / "texts" / f"{name}.txt").read_text(encoding="utf-8")
    return name, subject.tokenizer.encode(text)[:window]


def finite_everywhere(subject: Subject, seen: Observation) -> Check:
    """No layer puts out NaN or infinity."""
    detail = f"{subject.args.n_layers} layers over {seen.n_tokens} tokens"
    if seen.broken:
        detail = f"first not finite: {seen.broken}"
    return judge("L3", "finite layers", not seen.broken, detail, seen.broken)


def better_than_chance(subject: Subject, seen: Observation) -> Check:
    """The loss is below that of a model which holds every token for equally likely."""
    chance = math.log(subject.args.vocab_size)
    if not seen.text:
        return judge("L3", "loss", None, "no tokenizer that fits, so no text to score")
    detail = f"{seen.loss:.4f} nats a token over {seen.n_tokens} tokens, chance is {chance:.2f}"
    return judge("L3", "loss", seen.loss < chance, detail, number(seen.loss), chance)


def loss_of_release(subject: Subject, seen: Observation) -> Check:
    """The loss lies where that of the known release lies."""
    smoke = subject.release.smoke if subject.release else None
    if not seen.text or smoke is None or subject.known_tokenizer() is False:
        return judge("L3", "loss band", None, "no known release with this geometry and tokenizer")
    low, high = smoke.loss
    relation = "in" if low <= seen.loss <= high else "outside"
    detail = f"{seen.loss:.4f} is {relation} {low} to {high} ({smoke.text}.txt)"
    ok = low <= seen.loss <= high
    return judge("L3", "loss band", ok, detail, number(seen.loss), smoke.loss)


def cache_agrees(_subject: Subject, seen: Observation) -> Check:
    """Decoding with the cache says what one pass says; where the best differs, it is a near tie."""
    ok = seen.drift <= seen.noise and seen.lead <= seen.noise
    detail = (
        f"{CACHED + 1} positions: logits differ by {seen.drift:.1e} of their deviation at most "
        f"(allowed {seen.noise:g}), best token differs {seen.flips} times"
    )
    return judge("L3", "cached = one pass", ok, detail, number(seen.drift), seen.noise)


CHECKS: tuple[Callable[[Subject, Observation], Check], ...] = (
    finite_everywhere,
    better_than_chance,
    loss_of_release,
    cache_agrees,
)
