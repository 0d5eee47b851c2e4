"""The documents of the OpenAI API: whole answers, and the events of a stream.

Beside the API's own fields a choice has, where they were asked for, ``token_ids`` and ``routing``
(for each token, for each layer: [expert, weight] pairs, best first; null for a token that the model
did not read), ``echoed_tokens`` with an echo: how many of them are the prompt's. An answer has
``timings``.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moetool import __version__

if TYPE_CHECKING:
    from moetool.serve.subject import Subject
    from moetool.serve.writing import Piece, Writing

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Answer:
    """Spells one answer, of a completion or of a chat."""

    writing: Writing
    is_chat: bool
    created: int = field(default_factory=lambda: int(time.time()))
    ident: str = ""
    _offset: int = 0

    def __post_init__(self) -> None:
        self.ident = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{secrets.token_hex(12)}"

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The answer as one document."""
        text = "".join(piece.text for piece in pieces)
        said: dict[str, Any] = {"text": text}
        if self.is_chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = self._choice(said, pieces, self.writing.finish)
        return self._document([choice], chunk=False) | {
            "usage": self.usage(),
            "timings": self.timings(),
        }

    def first(self) -> list[dict[str, Any]]:
        """What comes before the first piece of a stream."""
        if not self.is_chat:
            return []
        said = {"delta": {"role": "assistant", "content": ""}}
        return [self._document([self._choice(said, [], None)], chunk=True)]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One piece as an event."""
        said = {"delta": {"content": piece.text}} if self.is_chat else {"text": piece.text}
        return self._document([self._choice(said, [piece], None)], chunk=True)

    def last(self) -> list[dict[str, Any]]:
        """What comes behind the last piece: why it ended, and the count if it is wanted."""
        said: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": ""}
        end = self._document([self._choice(said, [], self.writing.finish)], chunk=True)
        events = [end | {"timings": self.timings()}]
        if self.writing.asked.include_usage:
            events.append(self._document([], chunk=True) | {"usage": self.usage()})
        return events

    def usage(self) -> dict[str, int]:
        """Tokens of prompt and answer."""
        n_prompt, n_new = len(self.writing.prompt), self.writing.n_tokens
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
        }

    def timings(self) -> dict[str, float | int]:
        """Passes and seconds: the prompt's gives the first token, the others one each."""
        pace = self.writing.pace
        return {
            "prompt_tokens": pace.prompt_tokens,
            "prompt_seconds": round(pace.prompt_seconds, 4),
            "new_tokens": pace.new_tokens,
            "new_seconds": round(pace.new_seconds, 4),
        }

    def _document(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.is_chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": self.ident,
            "object": kind,
            "created": self.created,
            "model": self.writing.subject.name,
            "system_fingerprint": f"moetool-{__version__}",
            "choices": choices,
        }

    def _choice(
        self, said: dict[str, Any], pieces: Sequence[Piece], finish: str | None
    ) -> dict[str, Any]:
        asked = self.writing.asked
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        if asked.top_logprobs is not None and pieces:
            choice["logprobs"] = self._chat_probs(pieces) if self.is_chat else self._probs(pieces)
        if asked.token_ids:
            choice["token_ids"] = [piece.token for piece in pieces]
        if asked.echo:
            choice["echoed_tokens"] = sum(piece.echoed for piece in pieces)
        if asked.routing:
            choice["routing"] = [piece.routes for piece in pieces]
        return choice

    def _probs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """As completions spell it; offsets count characters of the answer."""
        spelled = self.writing.subject.spelled
        offsets: list[int] = []
        for piece in pieces:
            offsets.append(self._offset)
            self._offset += len(piece.text)
        return {
            "tokens": [spelled(piece.token) for piece in pieces],
            "token_logprobs": [piece.logprob for piece in pieces],
            "top_logprobs": [{spelled(t): lp for t, lp in piece.top} for piece in pieces],
            "text_offset": offsets,
        }

    def _chat_probs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        subject = self.writing.subject
        content = [
            _token(subject, piece.token, piece.logprob)
            | {"top_logprobs": [_token(subject, t, lp) for t, lp in piece.top]}
            for piece in pieces
        ]
        return {"content": content, "refusal": None}


def _token(subject: Subject, token: int, logprob: float | None) -> dict[str, Any]:
    spelled = subject.spelled(token)
    return {"token": spelled, "logprob": logprob, "bytes": list(spelled.encode())}


def model_entry(subject: Subject) -> dict[str, Any]:
    """A model as /v1/models lists it."""
    return {
        "id": subject.name,
        "object": "model",
        "created": subject.since,
        "owned_by": "local",
        "has_chat_template": subject.template is not None,
    }


def event(document: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(document, separators=(',', ':'))}\n\n".encode()


def comment(text: str) -> bytes:
    """A line that clients of the API pass over."""
    return f": {text}\n\n".encode()
