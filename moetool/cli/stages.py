"""What is told of a long work with the swarm: bars, plain lines, or events for programs."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Console, duration, safe, size
from moetool.cli.options import typed_command
from moetool.cli.pieces_map import as_hex, pieces_map
from moetool.errors import Interrupted, MoetoolError

if TYPE_CHECKING:
    from moetool.release.torrent.watch import Progress

EventsOption = Annotated[
    bool,
    typer.Option("--events", help="Tell on stderr what happens as JSON, a document on each line"),
]
EVENT_INTERVAL_S = 1.0  # between two events of progress in one stage
TRY_INTERVAL_S = 2.0
MAX_TRIES = 10  # to read the header of one file while it comes


@contextmanager
def told_how_to_go_on() -> Iterator[None]:
    """Let an interruption end with the command that goes on."""
    try:
        yield
    except Interrupted as error:
        hint = f"run again to go on: {typed_command()}"
        raise Interrupted(error.what, exit_code=error.exit_code, hint=hint) from error


@contextmanager
def stages(console: Console) -> Iterator[Callable[[Progress], None]]:
    """One bar after another, for each stage its own."""
    with ExitStack() as bars:
        yield _Show(console, bars, console.has_bar, console.draws_blocks)


@dataclass(slots=True)
class _Show:
    """Shows the progress of the stage that it is of, and tells once what is to be told once."""

    console: Console
    bars: ExitStack
    bar: bool
    blocks: bool
    _now: Progress | None = None
    _update: Callable[[int, str], None] = lambda _done, _note: None
    _readable: set[str] = field(default_factory=set)
    _tries: Counter[str] = field(default_factory=Counter)
    _pieces: int = 0  # at the last try
    _tried_s: float = 0.0
    _event_s: float = 0.0

    def __call__(self, progress: Progress) -> None:
        """Take note of the progress."""
        if progress.told:
            self.console.note(safe(progress.told), "yellow")
            return
        if self._now is None or progress.stage != self._now.stage:
            self.bars.close()
            self._event_s = 0.0
            total = progress.bytes_total or None
            self._update = self.bars.enter_context(
                self.console.progress(progress.stage, total, self._below)
            )
        self._now = progress
        self._look_into(progress)
        self._update(progress.bytes_done, self._note(progress))
        if self.console.events:
            self._tell(progress)

    def _below(self, width: int) -> str:
        """The map of the pieces, and why nothing comes, under the bar."""
        if self._now is None:
            return ""
        drawn = pieces_map(self._now.have, width, plain=not self.blocks)
        return "\n".join(filter(None, (drawn, safe(self._now.note)[: width - 1])))

    def _look_into(self, progress: Progress) -> None:
        """Find the weight files whose headers are here; that is tried, not guessed."""
        from moetool.formats import read_part
        from moetool.formats.directory import format_of_name

        now_s, folder = time.monotonic(), progress.folder
        is_time = now_s - self._tried_s >= TRY_INTERVAL_S and progress.pieces_done != self._pieces
        if progress.stage != "download" or folder is None or not is_time:
            return
        self._pieces, self._tried_s = progress.pieces_done, now_s
        for name in progress.ends:
            known = format_of_name(name)
            if known is None or name in self._readable or self._tries[name] >= MAX_TRIES:
                continue
            self._tries[name] += 1
            try:
                read_part(folder / name, known, far=True)
            except MoetoolError:  # a header of many pieces, of which some lack
                continue
            if not self._readable:
                where = shlex.quote(str(folder / name))
                self.console.note(f"a header is here: moetool inspect {safe(where)}")
            self._readable.add(name)

    def _note(self, progress: Progress) -> str:
        """What a bar does not show by itself; where there is no bar, everything."""
        parts = []
        if progress.pieces_total:
            parts.append(f"{progress.pieces_done}/{progress.pieces_total} pieces")
            parts.append(f"{progress.peers} peer{'s' * (progress.peers != 1)}")
        if progress.rate_bytes_s and not self.bar:
            parts.append(f"{size(progress.rate_bytes_s)}/s now")
        if progress.eta_s is not None and not self.bar:
            parts.append(f"{duration(progress.eta_s)} to go")
        if self._readable and progress.stage == "download":
            parts.append(f"headers of {len(self._readable)} here")
        if progress.note and not self.bar:
            parts.append(safe(progress.note))
        return ", ".join(parts)

    def _tell(self, progress: Progress) -> None:
        """Write an event, not more often than programs want to hear of it."""
        now_s = time.monotonic()
        if now_s - self._event_s < EVENT_INTERVAL_S:
            return
        self._event_s = now_s
        self.console.event(
            "progress",
            stage=progress.stage,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            pieces_done=progress.pieces_done,
            pieces_total=progress.pieces_total,
            pieces=as_hex(progress.have),
            rate_bytes_s=progress.rate_bytes_s,
            peers=progress.peers,
            order=progress.order,
            eta_s=progress.eta_s,
            note=progress.note,
            cause=progress.cause,
            readable=sorted(self._readable),
        )
