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
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

from moetool.convert.stream import to_bytes
from moetool.model.mixtral import Probe
from moetool.model.smoke.checks import Check, LayerView, judge, number

if TYPE_CHECKING:
    from moetool.model.mixtral import Routing, Transformer
    from moetool.model.smoke.subject import Subject
    from moetool.model.smoke.text import Text

Share = Callable[[Any], list[Any]]
CACHED_FROM, CACHED = 32, 16  # positions read in one go, then positions decoded one by one

# The most by which a cached logit may differ from the one-pass one, in standard deviations of the
# logits. What differs is the order of sums; in 16 bits that also moves tokens between experts.
# Measured on the tiny release over 300 positions: 1e-5, 3e-2, 4e-3; a lost key or value gives 5,
# keys turned by one position too many 0.4. Deeper models have more noise, so bf16 gets room:
# in doubt, float32 is 500 times stricter.
NOISE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


@dataclass(frozen=True, slots=True)
class Cached:
    """How far decoding from the cache was off: ``drift`` in standard deviations of the logits.

    ``flips``, ``lead``: how often its best token was another, and how far behind in one pass.
    """

    drift: float
    flips: int
    lead: float


@dataclass(frozen=True, slots=True)
class Observation:
    """One run over the text; ``broken`` names the first part that is not finite.

    ``cached`` is None where the text was read once only; ``noise`` is how far it may be off.
    """

    text: Text
    seconds: float
    loss: float
    layers: tuple[LayerView, ...]
    broken: str | None
    logits_TV: Tensor
    cached: Cached | None
    noise: float


class Watcher(Probe):
    """A probe that keeps size and digest of the stream and the expert counts of each layer.

    ``share`` gives what the watchers of all ranks saw, each of the layers of its rank.
    """

    def __init__(self, note: Callable[[int], None], share: Share = lambda seen: [seen]) -> None:
        self._note, self._share = note, share
        self._rms: list[tuple[int, str, Tensor]] = []
        self._digest: dict[tuple[int, str], str] = {}
        self._load: dict[int, Tensor] = {}

    def hidden(self, layer: int, part: str, h_TD: Tensor) -> None:
        """Keep the root mean square, which is NaN or infinite as soon as one value is."""
        self._rms.append((layer, part, h_TD.float().square().mean().sqrt()))
        self._digest[layer, part] = digest(h_TD)
        self._note(layer)

    def routed(self, layer: int, routing: Routing) -> None:
        """Count the tokens of each expert."""
        self._load[layer] = torch.bincount(
            routing.experts_TA.flatten(), minlength=routing.logits_TE.shape[1]
        )

    def layers(self) -> tuple[LayerView, ...]:
        """What was seen, layer by layer."""
        sizes = {(layer, part): number(float(rms)) for layer, part, rms in self._rms}
        seen = {
            layer: LayerView(
                rms_attention=sizes[layer, "attention"],
                rms_experts=sizes[layer, "experts"],
                load=tuple(self._load[layer].tolist()) if layer in self._load else (),
                digest_attention=self._digest[layer, "attention"],
                digest_experts=self._digest[layer, "experts"],
            )
            for layer, _ in sizes
        }
        everywhere = {layer: view for views in self._share(seen) for layer, view in views.items()}
        return tuple(everywhere[layer] for layer in sorted(everywhere))

    def broken(self) -> str | None:
        """The first layer and part whose output is not finite."""
        bad = [(layer, part) for layer, part, rms in self._rms if not math.isfinite(float(rms))]
        layer, part = min(chain(*self._share(bad)), default=(None, ""))
        return None if layer is None else f"layers.{layer} {part}"


def digest(tensor: Tensor) -> str:
    """XXH3-128 of a tensor's bytes: equal only where all values are, to the last bit."""
    return xxhash.xxh3_128_hexdigest(to_bytes(tensor))


def observe(
    model: Transformer, text: Text, watcher: Watcher, *, cached: bool = True
) -> Observation:
    """Run the text once under a watcher's eyes, then some of it again with the cache."""
    tokens_T = torch.tensor(text.tokens, device=model.weights.device)
    began = time.perf_counter()
    logits_TV = model.forward(tokens_T, model.new_cache(len(text)), watcher)
    loss = float(F.cross_entropy(logits_TV[:-1], tokens_T[1:]))
    seconds = time.perf_counter() - began
    return Observation(
        text=text,
        seconds=seconds,
        loss=loss,
        layers=watcher.layers(),
        broken=watcher.broken() or (None if logits_TV.isfinite().all() else "output"),
        logits_TV=logits_TV,
        cached=_compare_cached(model, tokens_T, logits_TV) if cached else None,
        noise=NOISE[model.weights.dtype],
    )


def _compare_cached(model: Transformer, tokens_T: Tensor, logits_TV: Tensor) -> Cached:
    """Decode from the cache what one pass has scored."""
    first = max(1, min(CACHED_FROM, len(tokens_T) // 2))
    last = min(first + CACHED, len(tokens_T))
    pieces = [tokens_T[:first], *(tokens_T[at : at + 1] for at in range(first, last))]
    states = model.hidden_of(pieces, [model.new_cache(last)] * len(pieces))
    cached_SV = torch.cat([model.logits(h_TD[-1:]) for h_TD in states])
    once_SV = logits_TV[first - 1 : last]
    best_S1 = cached_SV.argmax(-1, keepdim=True)
    lead_S1 = once_SV.amax(-1, keepdim=True) - once_SV.gather(-1, best_S1)
    deviation = once_SV.std()
    return Cached(
        drift=float((cached_SV - once_SV).abs().max() / deviation),
        flips=int((lead_S1 > 0).sum()),
        lead=float(lead_S1.max() / deviation),
    )


def finite_everywhere(subject: Subject, seen: Observation) -> Check:
    """No layer puts out NaN or infinity."""
    detail = f"{subject.args.n_layers} layers over {len(seen.text)} tokens"
    if seen.broken:
        detail = f"first not finite: {seen.broken}"
    return judge("L3", "finite layers", not seen.broken, detail, seen.broken)


def better_than_chance(subject: Subject, seen: Observation) -> Check:
    """The loss is below that of a model which holds every token for equally likely."""
    chance = math.log(subject.args.vocab_size)
    if not seen.text.name:
        return judge("L3", "loss", None, "no tokenizer that fits, so no text to score")
    detail = f"{seen.loss:.4f} nats a token over {len(seen.text)} tokens, chance is {chance:.2f}"
    return judge("L3", "loss", seen.loss < chance, detail, number(seen.loss), chance)


def loss_of_release(subject: Subject, seen: Observation) -> Check:
    """The loss lies where that of the known release lies."""
    smoke = subject.release.smoke if subject.release else None
    if not seen.text.name or smoke is None or subject.known_tokenizer() is False:
        return judge("L3", "loss band", None, "no known release with this geometry and tokenizer")
    if not seen.text.whole:
        detail = f"the band is that of all of {smoke.text}.txt, here are {len(seen.text)} tokens"
        return judge("L3", "loss band", None, detail, number(seen.loss))
    low, high = smoke.loss
    relation = "in" if low <= seen.loss <= high else "outside"
    detail = f"{seen.loss:.4f} is {relation} {low} to {high} ({smoke.text}.txt)"
    ok = low <= seen.loss <= high
    return judge("L3", "loss band", ok, detail, number(seen.loss), smoke.loss)


def cache_agrees(_subject: Subject, seen: Observation) -> Check:
    """Decoding with the cache says what one pass says; where the best differs, it is a near tie."""
    found = seen.cached
    if found is None:
        return judge("L3", "cached = one pass", None, "quick: the text was read once")
    ok = found.drift <= seen.noise and found.lead <= seen.noise
    detail = (
        f"{CACHED + 1} positions: logits differ by {found.drift:.1e} of their deviation at most "
        f"(allowed {seen.noise:g}), best token differs {found.flips} times"
    )
    return judge("L3", "cached = one pass", ok, detail, number(found.drift), seen.noise)


CHECKS: tuple[Callable[[Subject, Observation], Check], ...] = (
    finite_everywhere,
    better_than_chance,
    loss_of_release,
    cache_agrees,
)
