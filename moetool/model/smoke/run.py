"""The smoke test from first check to last token: checks first, text after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from moetool.errors import MoetoolError, Refused
from moetool.model.device import MemoryWatch, spelled
from moetool.model.generate import Pace, Sampling
from moetool.model.parallel.open import open_model
from moetool.model.parallel.shared import Shared
from moetool.model.smoke import against, behaviour, bits, config, golden, logits, needle
from moetool.model.smoke.checks import Check, Continuation, Figures, SmokeReport, Verdict, judge
from moetool.model.smoke.continuations import Writing, beginnings, write_together
from moetool.model.smoke.engines import ENGINES, ask
from moetool.model.smoke.golden_file import GoldenFile, write
from moetool.model.smoke.npy import read_floats
from moetool.model.smoke.subject import Subject, find_release
from moetool.model.smoke.text import QUICK_WINDOW, WINDOW, shipped_text
from moetool.model.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from moetool.arch.recognize import Recognized
    from moetool.model.parallel.group import Ranks
    from moetool.model.parallel.shared import RankMemory
    from moetool.tensors import Checkpoint

DEFAULT_PROMPT = "The"

Progress = Callable[[int, str], None]
T = TypeVar("T")


class SmokeTest:
    """One checkpoint on one device: `scan`, `observe`, perhaps more, then `report`.

    ``quick``: no tensor is read whole, and the beginning of the text has to do.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recognized: Recognized,
        directory: Path,
        device: torch.device,
        *,
        dtype: torch.dtype | None = None,
        budget: int | None = None,
        quick: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.subject = Subject(
            checkpoint=checkpoint,
            recognized=recognized,
            tokenizer=open_tokenizer(checkpoint.catalog, directory),
            release=find_release(recognized.args),
        )
        self.directory, self.quick = directory, quick
        self.text = shipped_text(self.subject, QUICK_WINDOW if quick else WINDOW)
        self.ranks = ranks
        self.model, self.weights = open_model(checkpoint, recognized, device, dtype, budget, ranks)
        self._memory, self._pace = MemoryWatch(), Pace()
        self._scan: bits.Scan | None = None
        self._seen: behaviour.Observation | None = None
        self._pair: against.Pair | None = None
        self._more: list[Check] = []
        self._writings: list[Writing] = []

    def scan(self, progress: Progress, *, widened: bool = False) -> None:
        """Read every tensor once (L1); ``progress`` gets the bytes done.

        ``widened``: the digests are to be compared with those of another type.
        """
        only = self.model.own if isinstance(self.model, Shared) else None
        own = bits.scan(self.subject, self._watched(progress), widened=widened, only=only)
        self._scan = bits.join(self._share(own))

    def compare(self, source: SmokeTest, progress: Progress) -> None:
        """Run beside the source, part by part (L2); both were scanned, widened.

        ``progress`` gets the bytes of weights read so far.

        Raises:
            Refused: the two have other shapes, so no part can be compared.
        """
        if self._scan is None or source._scan is None:
            raise MoetoolError("a comparison needs both scans")
        note = self._by_layer(progress)
        self._pair = against.compare(
            (source.subject, source.model, source._scan),
            (self.subject, self.model, self._scan),
            note,
        )

    def observe(self, progress: Progress) -> None:
        """Run the shipped text (L3); ``progress`` gets the bytes of weights read so far."""
        watcher = behaviour.Watcher(self._by_layer(progress), self._share)
        self._seen = behaviour.observe(self.model, self.text, watcher, cached=not self.quick)

    def find_needles(self, progress: Progress) -> None:
        """Ask for keys hidden in long texts (L3)."""
        tokenizer = self.subject.tokenizer
        if tokenizer is None or not self.text.name:
            self._more.append(judge("L3", "needle", None, "no tokenizer that fits, so no text"))
            return
        note = self._by_layer(progress)
        self._more += needle.look(self.model, tokenizer, self.text.name, note)

    def read_golden(self, path: Path) -> GoldenFile:
        """Read golden results, before anything is run.

        Raises:
            Refused: they are malformed, or those of another model, text or type.
        """
        found = GoldenFile(path)
        found.fits(self.subject.args, self.text, self.weights.dtype)
        return found

    def expect(self, recorded: GoldenFile) -> None:
        """Compare the run with golden results (L3)."""
        self._more.append(self._once(lambda: golden.compare(recorded.golden, self._golden())))

    def record(self, path: Path) -> None:
        """Write the run as golden results, unless a check said no.

        Raises:
            OutputExists: there is a file already.
        """
        sound = all(check.verdict is not Verdict.FAIL for check in self.checks)
        if sound:
            self._once(lambda: write(path, self._golden()))
        detail = "recorded, compared with nothing" if sound else "not recorded: a check said no"
        self._more.append(judge("L3", "golden", None, detail))

    def _golden(self) -> golden.Golden:
        split = self.model.split if isinstance(self.model, Shared) else ""
        return golden.record(self._ran(), self.subject.args, self.weights.dtype, split)

    def _ran(self) -> behaviour.Observation:
        if self._seen is None:
            raise MoetoolError("the text was not run yet")
        return self._seen

    def read_logits(self, path: Path) -> Tensor:
        """Read another engine's logits, before anything is run.

        Raises:
            Refused: they are malformed, or cannot be those of the text.
        """
        theirs = read_floats(path)
        logits.fits(str(path), theirs, len(self.text), self.subject.args.vocab_size)
        return theirs

    def compare_logits(self, name: str, theirs: Tensor) -> None:
        """Compare another engine's logits with ours (L4)."""
        self._more.append(logits.compare(name, self._ran().logits_TV, theirs))

    def ask_engine(self, name: str) -> None:
        """Run an engine that is installed here over the text, and compare (L4)."""
        engine, dtype = ENGINES[name], self.weights.dtype
        self._more.append(self._once(lambda: ask(engine, self.subject, self._ran(), dtype)))

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks of what was looked at so far."""
        subject, found, seen, pair = self.subject, self._scan, self._seen, self._pair
        checks = (
            *(check(subject) for check in config.CHECKS),
            *((bits.not_read(),) if self.quick else ()),
            *(check(found) for check in bits.CHECKS if found),
            *(check(pair) for check in against.CHECKS if pair),
            *(check(subject, seen) for check in behaviour.CHECKS if seen),
            *self._more,
        )
        return tuple(sorted(checks, key=lambda check: check.level))

    def _share(self, value: T) -> list[T]:
        """What all ranks have; alone, what there is."""
        return self.ranks.share(value) if self.ranks else [value]

    def _once(self, make: Callable[[], T]) -> T:
        """Make on the first rank what need not be made by all."""
        return self.ranks.from_first(make) if self.ranks else make()

    def _watched(self, progress: Progress) -> Progress:
        def note(done: int, what: str) -> None:
            self._memory.sample()
            progress(done, what)

        return note

    def _by_layer(self, progress: Progress) -> Callable[[int], None]:
        note, weights = self._watched(progress), self.weights
        return lambda layer: note(min(weights.nbytes_read, weights.nbytes), f"layer {layer}")

    @property
    def can_write(self) -> bool:
        """False where a layer puts out NaN or infinity: no token could be chosen."""
        return self._seen is not None and self._seen.broken is None

    def prompts(self, given: str | None) -> list[Writing]:
        """What is to be continued: the given prompt, or beginnings chosen from the text.

        Where the text offers none, or in a quick test, the release's own prompt has to do.

        Raises:
            Refused: a prompt was given and there is no tokenizer for it.
        """
        tokenizer, release = self.subject.tokenizer, self.subject.release
        if tokenizer is None or not self.subject.can_speak:
            if given is not None:
                raise Refused(
                    "a prompt needs a tokenizer, and there is none that fits",
                    where=str(self.directory),
                    hint="put the release's tokenizer.model beside the weights",
                )
            return [Writing("", [min(1, self.subject.args.vocab_size - 1)])]
        chosen = [given] if given is not None else []
        if given is None and self._seen and not self.quick:
            chosen = beginnings(self.text, self._seen.logits_TV, tokenizer)
        known = release.smoke.prompt if release and release.smoke else None
        return [
            Writing(text, tokens := tokenizer.encode(text), tokenizer.stream(tokens))
            for text in chosen or [known or DEFAULT_PROMPT]
        ]

    def write(
        self, writings: Sequence[Writing], max_tokens: int, sampling: Sampling
    ) -> Iterator[str]:
        """Continue prompts, all together; yields their text as it becomes certain."""
        tokenizer = self.subject.tokenizer
        stop = frozenset() if tokenizer is None else frozenset({tokenizer.eos})
        self._writings = list(writings)
        yield from write_together(self.model, writings, max_tokens, sampling, stop, self._pace)
        self._memory.sample()

    @property
    def continuations(self) -> tuple[Continuation, ...]:
        """What was written, so far."""
        return tuple(
            Continuation(each.prompt, each.text, tuple(each.made), each.entropy)
            for each in self._writings
        )

    def report(self, path: Path, ranks: tuple[RankMemory, ...] = ()) -> SmokeReport:
        """Everything that was found, as data; ``ranks`` is what each of them took."""
        subject = self.subject
        return SmokeReport(
            path=str(path),
            format=subject.checkpoint.catalog.format,
            layout=subject.recognized.convention.name,
            release=subject.release.name if subject.release else None,
            device=str(self.weights.device),
            dtype=spelled(self.weights.dtype),
            checks=self.checks,
            layers=self._seen.layers if self._seen else (),
            continuations=self.continuations,
            text_tokens=self.text.tokens if self._seen else (),
            figures=self._figures(ranks),
        )

    def _figures(self, ranks: tuple[RankMemory, ...]) -> Figures:
        found, seen, pace = self._scan, self._seen, self._pace
        return Figures(
            scan_nbytes=found.nbytes if found else 0,
            scan_seconds=found.seconds if found else 0.0,
            text_tokens=len(seen.text) if seen else 0,
            text_seconds=seen.seconds if seen else 0.0,
            prompt_tokens=pace.prompt_tokens,
            prompt_seconds=pace.prompt_seconds,
            new_tokens=pace.new_tokens,
            new_seconds=pace.new_seconds,
            weights_nbytes=sum(self._share(self.weights.nbytes)),
            weights_resident=self.weights.resident,
            weights_nbytes_read=sum(self._share(self.weights.nbytes_read)),
            memory=self._memory.peak(self.weights.device),
            ranks=ranks,
        )
