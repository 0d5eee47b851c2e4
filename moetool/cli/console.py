"""The one door to the terminal: results on stdout, everything else on stderr.

Names from files are hostile until `safe` has made them printable; markup and emoji codes are
never interpreted. Colour is decided once: NO_COLOR, then FORCE_COLOR, then whether it is a tty.
Sizes are int bytes everywhere else and become GiB only here.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, TYPE_CHECKING

from moetool.errors import MoetoolError
from moetool.reports import Report, to_json

if TYPE_CHECKING:
    import rich.console

PLAIN_INTERVAL_S = 5.0  # between progress lines where stderr is no tty

# Cc controls, Cf format (bidi, zero width), Cs surrogates, Co private, Cn unassigned, Zl/Zp breaks.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def safe(text: object) -> str:
    """Make text from a file printable: no control, bidi or surrogate character survives."""
    return "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char) in _UNPRINTABLE else char
        for char in str(text)
    )


def size(nbytes: float) -> str:
    """Bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:  # noqa: PLR2004  # the binary step
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"


def count(number: int) -> str:
    """A count for people: 46,702,792,704 (46.7 B)."""
    for step, unit in ((10**9, "B"), (10**6, "M")):
        if number >= step:
            return f"{number:,} ({number / step:.1f} {unit})"
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:  # noqa: PLR2004  # the sexagesimal step
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; numbers stand at the right."""

    title: str
    right: bool = False


@dataclass
class Console:
    """How one command speaks: for people, as one JSON document, or quietly.

    With ``events`` all that goes to stderr is JSON, a document on each line: for programs that
    watch. ``quiet`` then leaves out nothing, for nobody reads along.
    """

    json: bool = False
    quiet: bool = False
    events: bool = False
    _started: float = field(default_factory=time.monotonic)

    @property
    def human(self) -> bool:
        """True when a person reads stdout."""
        return not self.json

    def result(self, report: Report, render: Callable[[], None]) -> None:
        """Print the outcome: the report as JSON, or what ``render`` prints for people."""
        if self.json:
            self.write(to_json(report) + "\n")
        else:
            render()

    def write(self, text: str) -> None:
        """Write to stdout as it is, at once; streamed text comes through here."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def line(self, text: str = "", style: str | None = None) -> None:
        """Print a line of the result; nothing with --json."""
        if not self.json:
            self._print(self._stdout, text, style)

    def pieces(self, parts: Sequence[tuple[str, str | None]]) -> None:
        """Print a line of the result whose pieces have styles of their own; nothing with --json."""
        if not self.json:
            from rich.text import Text

            line = Text.assemble(*((text, style or "") for text, style in parts))
            self._stdout.print(line, soft_wrap=True)

    def note(self, text: str, style: str | None = None) -> None:
        """Say something on stderr; silent with --quiet."""
        if self.events:
            self.event("note", text=text)
        elif not self.quiet:
            self._print(self._stderr, text, style)

    def event(self, kind: str, /, **fields: object) -> None:
        """Write what happened as a line of JSON on stderr, if --events asks for it."""
        if self.events:
            sys.stderr.write(_event_json(kind, time.monotonic() - self._started, fields))
            sys.stderr.flush()

    def hint(self, text: str) -> None:
        """Say the next step."""
        self.note(f"hint: {text}", "cyan")

    def warn(self, text: str) -> None:
        """Say what is not as it should be, and yet no reason to stop."""
        self.note(f"warning: {text}", "yellow")

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> None:
        """Print a table of the result.

        It is as wide as its longest names: those are never cut, whatever the terminal's width.
        """
        if self.json:
            return
        from rich.cells import cell_len

        cells = [[safe(cell) for cell in row] for row in rows]
        everything = [[column.title for column in columns], *cells]
        widths = [max(map(cell_len, column)) for column in zip(*everything, strict=True)]

        def aligned(row: Sequence[str]) -> str:
            gaps = [" " * (width - cell_len(c)) for c, width in zip(row, widths, strict=True)]
            return "  ".join(
                gap + cell if column.right else cell + gap
                for cell, gap, column in zip(row, gaps, columns, strict=True)
            ).rstrip()

        self.line(aligned(everything[0]), "bold")
        for row in cells:
            self.line(aligned(row))

    def facts(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Print aligned name and value pairs."""
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            self.line(f"{name:<{width}}  {safe(value)}")

    def error(self, error: MoetoolError) -> None:
        """Say what went wrong, where, and the next step; with --json also as the document."""
        if self.json:
            self.write(_document_json(_error_document(error)))
        if self.events:
            self.event("error", **_error_document(error))
            return
        self._print(self._stderr, f"error: {safe(error)}", "red")
        for finding in error.findings[:40]:
            self._print(self._stderr, f"  - {safe(finding)}", None)
        if len(error.findings) > 40:  # noqa: PLR2004  # as cut above
            self._print(self._stderr, f"  … and {len(error.findings) - 40} more", None)
        if error.hint:
            self._print(self._stderr, f"\nhint: {safe(error.hint)}", "cyan")

    @contextmanager
    def progress(
        self, title: str, total: int | None, below: Callable[[int], str] = lambda _: ""
    ) -> Iterator[Callable[[int, str], None]]:
        """Show progress in bytes on stderr: a bar on a tty, a line every few seconds elsewhere.

        Yields a function of the bytes done so far and a short note. ``below`` gives the lines that
        stand under the bar, for the width it is told.
        """
        if self.quiet or self.events:
            yield lambda _done, _note: None
        elif self.has_bar:
            with self._bar(title, total, below) as update:
                yield update
        else:
            yield self._plain_progress(title, total)

    @contextmanager
    def _bar(
        self, title: str, total: int | None, below: Callable[[int], str]
    ) -> Iterator[Callable[[int, str], None]]:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.text import Text

        terminal = self._stderr

        class Bar(Progress):
            def get_renderables(self) -> Iterator[rich.console.RenderableType]:
                yield from super().get_renderables()
                if line := below(terminal.width):
                    yield Text(line, no_wrap=True)

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Bar(*columns, console=terminal, transient=True) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda done, note: bar.update(task, completed=done, note=safe(note))

    @property
    def has_bar(self) -> bool:
        """Whether progress is a bar that is drawn anew, and not lines one after another."""
        return not self.quiet and not self.events and sys.stderr.isatty()

    @property
    def draws_blocks(self) -> bool:
        """Whether stderr can show block characters."""
        try:
            "░▒▓█▕▏".encode(sys.stderr.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def _plain_progress(self, title: str, total: int | None) -> Callable[[int, str], None]:
        began = last = time.monotonic()

        def update(done: int, note: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < PLAIN_INTERVAL_S:
                return
            last = now
            rate = done / (now - began)
            share = f"{done / total:6.1%} of {size(total)}" if total else size(done)
            left = f", {duration((total - done) / rate)} left" if total and rate > 0 else ""
            self.note(f"{title}: {share}, {size(rate)}/s{left}{', ' + note if note else ''}")

        return update

    @cached_property
    def _stdout(self) -> rich.console.Console:
        return _rich_console(sys.stdout)

    @cached_property
    def _stderr(self) -> rich.console.Console:
        return _rich_console(sys.stderr)

    def _print(self, out: rich.console.Console, text: str, style: str | None) -> None:
        from rich.text import Text

        # Lines keep their line breaks; everything else unprintable was made visible by `safe`.
        out.print(Text(text, style=style or ""), soft_wrap=True)


def _rich_console(stream: IO[str]) -> rich.console.Console:
    from rich.console import Console as RichConsole

    no_color = bool(os.environ.get("NO_COLOR"))
    force = not no_color and bool(os.environ.get("FORCE_COLOR"))
    plain = no_color or not (force or stream.isatty())
    return RichConsole(
        file=stream,
        markup=False,
        emoji=False,
        highlight=False,
        force_terminal=force or None,
        color_system=None if plain else "auto",
        no_color=plain,
    )


def _error_document(error: MoetoolError) -> dict[str, object]:
    return {
        "schema": "moetool.error",
        "version": 1,
        "ok": False,
        "code": error.exit_code,
        "kind": type(error).__name__,
        "error": str(error),
        "findings": list(error.findings),
        "hint": error.hint,
    }


def _document_json(document: dict[str, object]) -> str:
    import json

    return json.dumps(document, indent=2) + "\n"


def _event_json(kind: str, seconds: float, fields: dict[str, object]) -> str:
    """A document on one line; JSON escapes line breaks and all that is not ASCII."""
    import json

    head = {"event": kind, "schema": "moetool.event", "version": 1, "seconds": round(seconds, 3)}
    return json.dumps({**fields, **head}) + "\n"
