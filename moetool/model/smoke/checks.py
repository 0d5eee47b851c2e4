"""What a smoke test says: checks with their verdicts, and figures that are no checks.

Text is for people, checks are for scripts: a model with one expert set to zero writes as well as
before, so that no generated text decides anything here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from moetool.model.device import Memory
    from moetool.model.parallel.shared import RankMemory


class Verdict(Enum):
    """What a check found; NOT COVERED means that nothing was there to compare with."""

    PASS = "PASS"  # noqa: S105  # a verdict, no password
    FAIL = "FAIL"
    NOT_COVERED = "NOT COVERED"


@dataclass(frozen=True, slots=True)
class Check:
    """One statement about a checkpoint, its verdict, and in words what was seen.

    ``level``: L0 config and tokenizer, L1 bits, L2 beside the source, L3 behaviour, L4 beside
    other engines.
    """

    level: str
    name: str
    verdict: Verdict
    detail: str
    value: object = None
    expected: object = None


def judge(
    level: str,
    name: str,
    ok: bool | None,  # noqa: FBT001  # three verdicts, one of them "cannot say"
    detail: str,
    value: object = None,
    expected: object = None,
) -> Check:
    """Make a check: True passes, False fails, None is not covered."""
    verdict = {True: Verdict.PASS, False: Verdict.FAIL, None: Verdict.NOT_COVERED}[ok]
    return Check(level, name, verdict, detail, value, expected)


def number(value: float) -> float | None:
    """A float as JSON can hold it: NaN and infinity become None."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer over the shipped text: size of the stream behind its halves, tokens per expert.

    ``digest_*``: XXH3-128 of the stream's bytes there; ``load`` is empty in a dense layer.
    """

    rms_attention: float | None
    rms_experts: float | None
    load: tuple[int, ...]
    digest_attention: str
    digest_experts: str

    @property
    def entropy(self) -> float:
        """How evenly tokens are spread over experts, in bits; log2 of the experts at most."""
        total = sum(self.load) or 1
        return -sum(n / total * math.log2(n / total) for n in self.load if n)


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the model wrote; no check, a person judges it.

    ``entropy`` is that of its first token, in nats: near 0 the prompt leaves no choice.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    entropy: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """What it took; seconds are wall clock, bytes are bytes.

    ``ranks``: what each of several processes took; weights are those of all, memory is rank 0's.
    """

    scan_nbytes: int
    scan_seconds: float
    text_tokens: int
    text_seconds: float
    prompt_tokens: int
    prompt_seconds: float
    new_tokens: int
    new_seconds: float
    weights_nbytes: int
    weights_resident: bool
    weights_nbytes_read: int
    memory: Memory
    ranks: tuple[RankMemory, ...] = ()


@dataclass(frozen=True, slots=True)
class SmokeReport:
    """Everything a smoke test found; ``release`` is the known one of the same geometry.

    ``text_tokens`` are the ids that the model was run over, for who wants to ask another engine.
    """

    schema: ClassVar[str] = "moetool.smoke-test"
    version: ClassVar[int] = 2

    path: str
    format: str
    layout: str
    release: str | None
    device: str
    dtype: str
    checks: tuple[Check, ...]
    layers: tuple[LayerView, ...]
    continuations: tuple[Continuation, ...]
    text_tokens: tuple[int, ...]
    figures: Figures

    @property
    def ok(self) -> bool:
        """True when no check said no."""
        return all(check.verdict is not Verdict.FAIL for check in self.checks)
