"""What the checks look at: a checkpoint, what it is, and the release it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.release.manifest import Release, known_releases

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs
    from moetool.arch.recognize import Recognized
    from moetool.model.tokenizer import Tokenizer
    from moetool.tensors import Checkpoint

# What tensors show by their shapes; a release is found by these, and judged by the rest.
GEOMETRY = ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size",
            "n_experts")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """One checkpoint under test; ``release`` is the known one of the same geometry."""

    checkpoint: Checkpoint
    recognized: Recognized
    tokenizer: Tokenizer | None
    release: Release | None

    @property
    def args(self) -> ModelArgs:
        """The hyperparameters."""
        return self.recognized.args

    @property
    def can_speak(self) -> bool:
        """True when every token of the tokenizer has a row in the model."""
        return self.tokenizer is not None and self.tokenizer.n_words <= self.args.vocab_size

    def known_tokenizer(self) -> bool | None:
        """Whether the tokenizer is the release's; None when that cannot be told."""
        expected = self.published_tokenizer()
        if self.tokenizer is None or expected is None or not self.tokenizer.is_file:
            return None
        algorithm, digest = expected
        return self.tokenizer.digest(algorithm) == digest

    def published_tokenizer(self) -> tuple[str, str] | None:
        """Algorithm and hex digest of the release's tokenizer.model, where they are known."""
        for file in self.release.files if self.release else ():
            if file.path == "tokenizer.model" and file.digests:
                best = file.digests[-1]
                return best.algorithm, best.hex
        return None


def find_release(args: ModelArgs) -> Release | None:
    """The known release whose tensors have the same shapes."""
    for release in known_releases():
        if release.model and all(release.model[key] == getattr(args, key) for key in GEOMETRY):
            return release
    return None
