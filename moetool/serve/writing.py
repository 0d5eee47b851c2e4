"""Tokens as pieces: the text that each adds, its log-probabilities, and the experts it went to.

A piece is given out when nothing about it can change: no stop text may begin in its text, and,
where routing is asked for, it was read by the model, which is the pass after the one that chose it.
So the last token costs one pass more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from moetool.errors import NotEnoughMemory
from moetool.experts.trace import Tracer
from moetool.model.device import available_nbytes, free_nbytes
from moetool.model.generate import Pace, advance
from moetool.model.mixtral import Probe
from moetool.model.outlook import Work, cache_nbytes, rows_nbytes
from moetool.serve.faults import bad

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.experts.trace import Routed
    from moetool.model.generate import Step
    from moetool.model.mixtral import Routing
    from moetool.serve.asked import Asked
    from moetool.serve.subject import Subject

Routes = list[list[tuple[int, float]]]  # by layer: experts, best first, and their weights


@dataclass(frozen=True, slots=True)
class Piece:
    """A token and what is known of it; ``routes`` is None where the model has not read it.

    ``top``: the most likely tokens in its place and their log-probabilities, best first.
    ``echoed``: it is of the prompt.
    """

    token: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    routes: Routes | None = None
    echoed: bool = False


class Gone(Exception):
    """Nobody waits for this text any more."""


class Watch(Probe):
    """Notes routing if it is wanted, and stops in the middle of a pass when nobody waits."""

    def __init__(self, tracer: Tracer | None, gone: Callable[[], bool]) -> None:
        self._tracer = tracer
        self._gone = gone

    def hidden(self, layer: int, part: str, h_TD: Tensor) -> None:  # noqa: ARG002
        """Look whether anybody waits; a prompt may take minutes, a layer of it seconds."""
        if self._gone():
            raise Gone

    def routed(self, layer: int, routing: Routing) -> None:
        """Note what a layer chose."""
        if self._tracer:
            self._tracer.routed(layer, routing)


@dataclass(slots=True)
class Writing:
    """One answer while it is written; ``finish`` is length or stop once it is there.

    Pieces that begin behind a stop text are not given; ``n_tokens`` counts them.

    Raises:
        Fault: the prompt is empty, or leaves no room for an answer.
    """

    subject: Subject
    asked: Asked
    prompt: list[int]
    pace: Pace = field(default_factory=Pace)
    finish: str | None = None
    n_tokens: int = 0
    text: str = ""
    _held: deque[tuple[Piece, int]] = field(default_factory=deque)  # and where its text ends
    _was_cut: bool = False

    def __post_init__(self) -> None:
        if not self.prompt:
            raise bad("the prompt is empty, and this tokenizer marks no beginning", "prompt")
        n_all = len(self.prompt) + self.asked.max_tokens
        if n_all > self.subject.context:
            raise self.subject.too_long(
                f"{len(self.prompt)} tokens of prompt and {self.asked.max_tokens} of answer"
            )

    def run(self, gone: Callable[[], bool]) -> Iterator[list[Piece]]:
        """Write; after each pass, give the pieces that are certain, which may be none.

        Raises:
            Gone: nobody waits any more.
            NotEnoughMemory: keys, values and rows do not fit into what is free.
            CheckFailed: a logit is NaN or infinite.
        """
        asked, model = self.asked, self.subject.model
        tracer = Tracer(model) if asked.routing and model.args.n_experts else None
        has_room = len(self.prompt) + asked.max_tokens < self.subject.context
        n_passes = asked.max_tokens + int(tracer is not None and has_room)
        self._check_room(len(self.prompt) + n_passes)
        ends = frozenset({self.subject.tokenizer.eos})
        stream = self.subject.tokenizer.stream(self.prompt)
        passes = advance(
            [self.prompt], model, n_passes, asked.sampling, ends, self.pace, Watch(tracer, gone)
        )
        for number, (step,) in enumerate(passes):
            routed = tracer.take() if tracer else None
            if number == 0 and asked.echo:
                yield self._echo(routed)
            if number and routed:
                self._note(routed)
            if self.finish is None:
                self._take(step, None if step.token in ends else stream.push(step.token))
            if self.finish is not None and not (tracer and self._unread):
                break
            yield self._certain()
        self._end("" if self._was_cut else stream.flush())
        yield [piece for piece, _ in self._held]

    @property
    def _unread(self) -> bool:
        """The newest piece was not read yet; those before it were, each by the next one's pass."""
        return bool(self._held) and self._held[-1][0].routes is None

    def _check_room(self, n_positions: int) -> None:
        args, weights = self.subject.model.args, self.subject.model.weights
        work = Work(n_positions, len(self.prompt))
        itemsize = weights.dtype.itemsize
        needed = cache_nbytes(args, n_positions, itemsize) + rows_nbytes(args, work, itemsize)
        on_gpu = weights.device.type == "cuda"
        free = available_nbytes(weights.device) if on_gpu else free_nbytes()
        if needed > free:
            raise NotEnoughMemory(
                f"{needed} bytes are needed for {n_positions} tokens, {free} are free",
                hint="shorten the prompt, or ask for fewer tokens",
            )

    def _echo(self, routed: Routed | None) -> list[Piece]:
        """The prompt as pieces, whose texts together are the prompt."""
        stream = self.subject.tokenizer.stream([])
        texts = [stream.push(token) for token in self.prompt]
        texts[-1] += stream.flush()
        rows = routes_of(routed) if routed else [None] * len(texts)
        return [
            Piece(token, text, routes=row, echoed=True)
            for token, text, row in zip(self.prompt, texts, rows, strict=True)
        ]

    def _note(self, routed: Routed) -> None:
        """Complete the newest piece: this pass has read it."""
        if not self._unread:
            return
        piece, end = self._held.pop()
        self._held.append((replace(piece, routes=routes_of(routed)[-1]), end))

    def _take(self, step: Step, text: str | None) -> None:
        """Hold a new token; ``text`` is None for one that ends the text."""
        if text is None:
            self.finish = "stop"
            return
        self.n_tokens += 1
        self.text += text
        piece = Piece(step.token, text)
        if self.asked.top_logprobs is not None:
            logprobs_V = step.logits_V.float().cpu().log_softmax(-1)
            top = logprobs_V.topk(min(self.asked.top_logprobs, len(logprobs_V)))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            piece = replace(piece, logprob=float(logprobs_V[step.token]), top=tuple(pairs))
        self._held.append((piece, len(self.text)))
        if self._cut():
            self.finish = "stop"
        elif self.n_tokens == self.asked.max_tokens:
            self.finish = "length"

    def _certain(self) -> list[Piece]:
        """Let go of pieces in which no stop text can begin, and whose experts are known."""
        longest = max(map(len, self.asked.stops), default=1)
        sure = len(self.text) - longest + 1 if self.finish is None else len(self.text)
        waits = self.asked.routing and self.subject.model.args.n_experts > 0
        found: list[Piece] = []
        while self._held:
            piece, end = self._held[0]
            if end > sure or (waits and piece.routes is None):
                break
            found.append(piece)
            self._held.popleft()
        return found

    def _cut(self) -> bool:
        """Cut text and pieces before the first stop text, if there is one."""
        found = [at for at in map(self.text.find, self.asked.stops) if at >= 0]
        if not found:
            return False
        stop, self._was_cut = min(found), True
        self.text = self.text[:stop]
        starts = [(piece, end - len(piece.text)) for piece, end in self._held]
        self._held = deque(
            (
                replace(piece, text=piece.text[: stop - start]),
                start + len(piece.text[: stop - start]),
            )
            for piece, start in starts
            if start < stop
        )
        return True

    def _end(self, rest: str) -> None:
        """Add what was held back of an unfinished character, and cut once more."""
        if rest and self._held:
            self.text += rest
            piece, _ = self._held.pop()
            self._held.append((replace(piece, text=piece.text + rest), len(self.text)))
            if self._cut():
                self.finish = "stop"


def routes_of(routed: Routed) -> list[Routes]:
    """For each token that was read: by layer, its experts, best first, and their weights."""
    return [
        [
            [(expert, round(weight, 4)) for expert, weight in zip(*layer, strict=True)]
            for layer in zip(experts, weights, strict=True)
        ]
        for experts, weights in zip(
            routed.experts_TLA.tolist(), routed.weights_TLA.tolist(), strict=True
        )
    ]
