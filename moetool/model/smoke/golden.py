"""Golden results: what a model gave for the text once, layer by layer, to be expected again.

On the machine that recorded them everything must be equal to the last bit, and the first half layer
that is not is named. Elsewhere sums are taken in another order: there each half layer's size, the
load of the experts and the loss are judged by a band.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from moetool.model.device import spelled
from moetool.model.smoke.behaviour import digest
from moetool.model.smoke.checks import Check, LayerView, judge
from moetool.model.smoke.fingerprint import Fingerprint, take
from moetool.model.smoke.subject import GEOMETRY

if TYPE_CHECKING:
    import torch

    from moetool.arch.args import ModelArgs
    from moetool.model.smoke.behaviour import Observation


class Band(NamedTuple):
    """What another machine may change: ``rms`` relative, ``load`` as a share of all choices."""

    rms: float
    load: float
    loss: float  # nats a token


# Measured on the tiny release with other kernels (AVX2 or none) and threads: bf16 9e-5, 0.16 %,
# 2e-4; float32 1e-7, 0, 2e-7. Even float32 for bf16 moves no more than 2e-4, 0.22 %, 2e-4. Deeper
# models have more noise, and the mildest faults that are worth a name give 7e-3 or 1.5 %.
BANDS = {
    "float32": Band(1e-4, 0.002, 1e-4),
    "float16": Band(0.002, 0.005, 0.002),
    "bfloat16": Band(0.005, 0.01, 0.005),
}


@dataclass(frozen=True, slots=True)
class Golden:
    """One run over a text; ``tokens`` and ``logits`` are digests."""

    schema: ClassVar[str] = "moetool.golden"
    version: ClassVar[int] = 2  # 1 did not say how sums were split

    geometry: dict[str, int]
    text: str
    n_tokens: int
    tokens: str
    dtype: str
    fingerprint: Fingerprint
    loss: float
    logits: str
    layers: tuple[LayerView, ...]


def record(seen: Observation, args: ModelArgs, dtype: torch.dtype, split: str = "") -> Golden:
    """What a run gave, as golden results of this machine; ``split``: see `Fingerprint`."""
    return Golden(
        geometry={name: getattr(args, name) for name in GEOMETRY},
        text=seen.text.name,
        n_tokens=len(seen.text),
        tokens=seen.text.digest,
        dtype=spelled(dtype),
        fingerprint=take(args, dtype, seen.logits_TV.device, split),
        loss=seen.loss,
        logits=digest(seen.logits_TV),
        layers=seen.layers,
    )


def compare(golden: Golden, now: Golden) -> Check:
    """Equal to the last bit on the machine that recorded them, within a band on another."""
    size = f"{len(golden.layers)} layers over {golden.n_tokens} tokens"
    if golden.tokens != now.tokens:
        return judge("L3", "golden", ok=False, detail=f"other token ids for {golden.text}.txt")
    elsewhere = golden.fingerprint.differences(now.fingerprint)
    if not elsewhere:
        first = _first_other_bit(golden, now)
        detail = f"first that differs: {first}, on the machine that recorded it"
        equal = f"{size}, equal to the last bit"
        return judge("L3", "golden", first is None, detail if first else equal, first)
    return _within_band(golden, now, size, "; recorded elsewhere: " + ", ".join(elsewhere))


def _first_other_bit(golden: Golden, now: Golden) -> str | None:
    """The first half layer that gave something else, or else the output."""
    for number, (there, here) in enumerate(zip(golden.layers, now.layers, strict=True)):
        if (there.rms_attention, there.digest_attention) != (
            here.rms_attention, here.digest_attention
        ):  # fmt: skip
            return f"layers.{number} attention"
        if there.load != here.load:
            return f"layers.{number} router"
        if (there.rms_experts, there.digest_experts) != (here.rms_experts, here.digest_experts):
            return f"layers.{number} experts"
    return None if (golden.logits, golden.loss) == (now.logits, now.loss) else "output"


def _within_band(golden: Golden, now: Golden, size: str, why: str) -> Check:
    band = BANDS[golden.dtype]
    worst = Band(0.0, 0.0, abs(now.loss - golden.loss))
    first: str | None = None
    for number, (there, here) in enumerate(zip(golden.layers, now.layers, strict=True)):
        attention = _apart(there.rms_attention, here.rms_attention)
        moved, experts = _moved(there.load, here.load), _apart(there.rms_experts, here.rms_experts)
        parts = (("attention", attention, band.rms), ("router", moved, band.load),
                 ("experts", experts, band.rms))  # fmt: skip
        beyond = [part for part, apart, allowed in parts if apart > allowed]
        first = first or (f"layers.{number} {beyond[0]}" if beyond else None)
        worst = Band(max(worst.rms, attention, experts), max(worst.load, moved), worst.loss)
    if first is None and not worst.loss <= band.loss:  # not: a loss may be NaN
        first = "output"
    detail = (
        f"{size}: rms {worst.rms:.1e} apart (allowed {band.rms:g}), {worst.load:.2%} of tokens at "
        f"other experts (allowed {band.load:.1%}), loss {worst.loss:.1e} apart "
        f"(allowed {band.loss:g})"
    )
    where = f"first beyond its band: {first}; " if first else ""
    return judge("L3", "golden", first is None, where + detail + why, first)


def _apart(there: float | None, here: float | None) -> float:
    if there is None or here is None:
        return 0.0 if there is here else float("inf")
    return abs(here - there) / there if there else float(here != there)


def _moved(there: tuple[int, ...], here: tuple[int, ...]) -> float:
    """The share of choices that fell on another expert, at least."""
    moved = sum(abs(a - b) for a, b in zip(there, here, strict=True)) / 2
    return moved / max(1, sum(there))
