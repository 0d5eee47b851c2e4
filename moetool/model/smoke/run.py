"""The smoke test from first check to last token: checks first, text after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from moetool.errors import MoetoolError, Refused
from moetool.model.device import MemoryWatch
from moetool.model.generate import Pace, Sampling, generate
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer
from moetool.model.smoke import against, behaviour, bits, config
from moetool.model.smoke.checks import Check, Continuation, Figures, SmokeReport
from moetool.model.smoke.subject import Subject, find_release
from moetool.model.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from moetool.arch.recognize import Recognized
    from moetool.tensors import Checkpoint

DEFAULT_PROMPT = "The"

Progress = Callable[[int, str], None]


class SmokeTest:
    """One checkpoint on one device: `scan`, `observe`, perhaps `write`, then `report`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        recognized: Recognized,
        directory: Path,
        device: torch.device,
        *,
        dtype: torch.dtype | None = None,
        budget: int | None = None,
    ) -> None:
        self.subject = Subject(
            checkpoint=checkpoint,
            recognized=recognized,
            tokenizer=open_tokenizer(checkpoint.catalog, directory),
            release=find_release(recognized.args),
        )
        self.directory = directory
        self.weights = open_weights(checkpoint, recognized, device, dtype, budget)
        self.model = Transformer(recognized.args, self.weights)
        self._memory, self._pace = MemoryWatch(), Pace()
        self._scan: bits.Scan | None = None
        self._seen: behaviour.Observation | None = None
        self._pair: against.Pair | None = None
        self._continuation: Continuation | None = None

    def scan(self, progress: Progress, *, widened: bool = False) -> None:
        """Read every tensor once (L1); ``progress`` gets the bytes done.

        ``widened``: the digests are to be compared with those of another type.
        """
        self._scan = bits.scan(self.subject, self._watched(progress), widened=widened)

    def compare(self, source: SmokeTest, progress: Progress) -> None:
        """Run beside the source, part by part (L2); both were scanned, widened.

        ``progress`` gets the bytes of weights read so far.

        Raises:
            Refused: the two have other shapes, so no part can be compared.
        """
        if self._scan is None or source._scan is None:
            raise MoetoolError("a comparison needs both scans")
        note, weights = self._watched(progress), self.weights
        self._pair = against.compare(
            (source.subject, source.model, source._scan),
            (self.subject, self.model, self._scan),
            lambda layer: note(min(weights.nbytes_read, weights.nbytes), f"layer {layer}"),
        )

    def observe(self, progress: Progress) -> None:
        """Run the shipped text (L3); ``progress`` gets the bytes of weights read so far."""
        seen, weights = self._watched(progress), self.weights
        watcher = behaviour.Watcher(
            lambda layer: seen(min(weights.nbytes_read, weights.nbytes), f"layer {layer}")
        )
        self._seen = behaviour.observe(self.model, self.subject, watcher)

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks of what was looked at so far."""
        subject, found, seen, pair = self.subject, self._scan, self._seen, self._pair
        checks = (
            *(check(subject) for check in config.CHECKS),
            *(check(found) for check in bits.CHECKS if found),
            *(check(pair) for check in against.CHECKS if pair),
            *(check(subject, seen) for check in behaviour.CHECKS if seen),
        )
        return tuple(sorted(checks, key=lambda check: check.level))

    def _watched(self, progress: Progress) -> Progress:
        def note(done: int, what: str) -> None:
            self._memory.sample()
            progress(done, what)

        return note

    @property
    def can_write(self) -> bool:
        """False where a layer puts out NaN or infinity: no token could be chosen."""
        return self._seen is not None and self._seen.broken is None

    def write(self, prompt: str | None, max_tokens: int, sampling: Sampling) -> Iterator[str]:
        """Continue a prompt, yielding text as it becomes certain; token ids without a tokenizer.

        Raises:
            Refused: a prompt was given and there is no tokenizer for it.
        """
        text, tokens = self.prompt(prompt)
        tokenizer = self.subject.tokenizer
        stop = frozenset() if tokenizer is None else frozenset({tokenizer.eos})
        stream = tokenizer.stream(tokens) if tokenizer and self.subject.can_speak else None
        made: list[int] = []
        written: list[str] = []
        for token in generate(
            self.model, tokens, max_tokens, sampling=sampling, stop=stop, pace=self._pace
        ):
            made.append(token)
            written.append(stream.push(token) if stream else f" {token}")
            yield written[-1]
        written.append(stream.flush() if stream else "")
        yield written[-1]
        self._memory.sample()
        self._continuation = Continuation(text, "".join(written), tuple(made))

    def prompt(self, text: str | None) -> tuple[str, list[int]]:
        """The prompt as text and tokens: the given one, the release's, or a plain word.

        Raises:
            Refused: a prompt was given and there is no tokenizer for it.
        """
        tokenizer, release = self.subject.tokenizer, self.subject.release
        if tokenizer is None or not self.subject.can_speak:
            if text is not None:
                raise Refused(
                    "a prompt needs a tokenizer, and there is none that fits",
                    where=str(self.directory),
                    hint="put the release's tokenizer.model beside the weights",
                )
            return "", [min(1, self.subject.args.vocab_size - 1)]
        known = release.smoke.prompt if release and release.smoke else None
        chosen = text if text is not None else known or DEFAULT_PROMPT
        return chosen, tokenizer.encode(chosen)

    def report(self, path: Path) -> SmokeReport:
        """Everything that was found, as data."""
        subject = self.subject
        return SmokeReport(
            path=str(path),
            format=subject.checkpoint.catalog.format,
            layout=subject.recognized.convention.name,
            release=subject.release.name if subject.release else None,
            device=str(self.weights.device),
            dtype=str(self.weights.dtype).removeprefix("torch."),
            checks=self.checks,
            layers=self._seen.layers if self._seen else (),
            continuation=self._continuation,
            figures=self._figures(),
        )

    def _figures(self) -> Figures:
        found, seen, pace = self._scan, self._seen, self._pace
        return Figures(
            scan_nbytes=found.nbytes if found else 0,
            scan_seconds=found.seconds if found else 0.0,
            text_tokens=seen.n_tokens if seen else 0,
            text_seconds=seen.seconds if seen else 0.0,
            prompt_tokens=pace.prompt_tokens,
            prompt_seconds=pace.prompt_seconds,
            new_tokens=pace.new_tokens,
            new_seconds=pace.new_seconds,
            weights_nbytes=self.weights.nbytes,
            weights_resident=self.weights.resident,
            weights_nbytes_read=self.weights.nbytes_read,
            memory=self._memory.peak(self.weights.device),
        )
