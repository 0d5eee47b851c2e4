"""The text a model is run over: which of the shipped ones, and how much of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import torch
import xxhash

if TYPE_CHECKING:
    from moetool.model.smoke.subject import Subject

WINDOW = 1024  # tokens of the text at most: 26 TFLOP for 8x7B, seconds to a minute on a CPU
QUICK_WINDOW = 128
DEFAULT_TEXT = "english"
SPEECHLESS_TOKENS = 256  # seeded ids, where there is no tokenizer: no loss, all else as usual


@dataclass(frozen=True, slots=True)
class Text:
    """A shipped text as tokens; one without a name is seeded ids.

    ``whole``: nothing of the text was cut off, so that its loss is what a release's band is about.
    """

    name: str
    tokens: tuple[int, ...]
    whole: bool

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """XXH3-128 of the ids as 32-bit integers, little end first."""
        return xxhash.xxh3_128_hexdigest(struct.pack(f"<{len(self)}I", *self.tokens))


def shipped_text(subject: Subject, window: int = WINDOW) -> Text:
    """The text that fits the release; seeded ids where no text can be tokenised."""
    window = min(window, subject.args.max_seq_len)
    if subject.tokenizer is None or not subject.can_speak:
        random = torch.Generator().manual_seed(0)
        size = (min(SPEECHLESS_TOKENS, window),)
        ids = torch.randint(subject.args.vocab_size, size, generator=random)
        return Text("", tuple(ids.tolist()), whole=False)
    smoke = subject.release.smoke if subject.release else None
    name = smoke.text if smoke else DEFAULT_TEXT
    tokens = subject.tokenizer.encode(read_text(name))
    return Text(name, tuple(tokens[:window]), whole=len(tokens) <= window)


def read_text(name: str) -> str:
    """The words of a shipped text."""
    return (resources.files("moetool.model") / "texts" / f"{name}.txt").read_text(encoding="utf-8")
