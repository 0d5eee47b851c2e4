"""An opened checkpoint as the server knows it: by a name, for no path leaves this machine."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from moetool.serve.faults import Fault, bad
from moetool.serve.render import render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moetool.model.mixtral import Transformer
    from moetool.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that answers under ``name``; ``card`` is what `moetool inspect` says of it."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    card: Mapping[str, Any]
    template: str | None = None
    since: int = field(default_factory=lambda: int(time.time()))

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self.model.args.max_seq_len

    def tokens_of(self, prompt: str | Sequence[int]) -> list[int]:
        """The token ids of a prompt; ids are taken as they are.

        Raises:
            Fault: an id that the model has not, or more than its context holds.
        """
        vocab_size = self.model.args.vocab_size
        if not isinstance(prompt, str):
            if len(prompt) > self.context:
                raise self.too_long(f"{len(prompt)} tokens")
            if not all(0 <= token < vocab_size for token in prompt):
                raise bad(f"token ids of {self.name} are below {vocab_size}", "prompt")
            return list(prompt)
        # Not even cut into tokens where it cannot fit: that takes a while for a long text.
        if len(prompt) > self.tokenizer.longest * self.context:
            raise self.too_long(f"{len(prompt)} characters")
        return self.tokenizer.encode(prompt)

    def tokens_of_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The token ids of messages, by the checkpoint's own template.

        Control tokens that the template spells are those tokens, as in transformers.

        Raises:
            Fault: there is no template, or it fails.
        """
        if self.template is None:
            raise Fault(
                HTTPStatus.BAD_REQUEST,
                f"{self.name} has no chat template: the raw release is a base model and has none",
                hint="use /v1/completions, or serve a checkpoint that has a template: "
                "chat_template.jinja, tokenizer_config.json, or the header of a GGUF",
                code="no_chat_template",
            )
        speaks, control = self.tokenizer, self.tokenizer.control
        bos, eos = (speaks.piece(t)[0] if t >= 0 else "" for t in (speaks.bos, speaks.eos))
        text = render(self.template, messages, bos, eos)
        tokens: list[int] = []
        among = "|".join(map(re.escape, control)) or "(?!)"  # which is nowhere
        for part in re.split(f"({among})", text):
            tokens += [control[part]] if part in control else speaks.encode(part, bos=False)
        return tokens

    def too_long(self, what: str) -> Fault:
        """The fault of a request that the context has no room for."""
        return Fault(
            HTTPStatus.BAD_REQUEST,
            f"{what} are more than the context of {self.name}, {self.context} tokens",
            hint="shorten the prompt, or ask for fewer tokens",
            code="context_length_exceeded",
        )

    def spelled(self, token: int) -> str:
        """A token by itself, for log-probabilities; a byte is ``<0xE2>``."""
        if token >= self.tokenizer.n_words:
            return f"<{token}>"
        return self.tokenizer.piece(token)[0].replace("▁", " ")
