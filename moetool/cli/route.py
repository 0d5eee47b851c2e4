"""`moetool route`: which experts each token goes to, and what a cache would make of that."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Console
from moetool.cli.heat_map import drawn
from moetool.cli.options import (
    JsonOption,
    PathArgument,
    QuietOption,
    must_exist,
    parse_size,
    resolve,
)
from moetool.cli.page import check_target, write_targets
from moetool.cli.route_text import cache_cells, link_titles, render_route, shares
from moetool.cli.running import (
    ComputeOption,
    DeviceOption,
    MemoryOption,
    Running,
    read_text,
    running,
    say_outlook,
)
from moetool.errors import Refused, UsageFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moetool.experts.changes import Changes
    from moetool.experts.summary import Favourite, LayerRouting
    from moetool.experts.trace import Trace
    from moetool.experts.what_if import CacheRow

DEFAULT_WINDOW = 1024
LINKS = ("3GB", "25GB")  # a fast disk, and 16 lanes of PCIe 4
MEMORY = "50GB"


@dataclass(frozen=True, slots=True)
class RouteReport:
    """Sums over all tokens; the choices themselves are in the file that ``--out`` writes."""

    schema: ClassVar[str] = "moetool.route"
    version: ClassVar[int] = 1

    path: str
    n_tokens: int
    window: int
    n_experts: int
    n_experts_per_tok: int
    layers: tuple[LayerRouting, ...]
    favourites: tuple[Favourite, ...]
    cache: tuple[CacheRow, ...]
    memory_nbytes_s: int
    changes: Changes | None
    continuation: str
    device: str
    dtype: str

    @property
    def ok(self) -> bool:
        """A routing is no verdict."""
        return True


TextOption = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="A text, as UTF-8", show_default=False),
]
PromptOption = Annotated[
    str | None, typer.Option(help="This text instead of a file", show_default=False)
]
ContinueOption = Annotated[
    int, typer.Option("--continue", min=0, help="Also route so many tokens written behind it")
]
WindowOption = Annotated[int, typer.Option(min=1, help="Tokens read for themselves")]
MaxTokensOption = Annotated[
    int | None, typer.Option(min=1, help="Stop after so many tokens", show_default=False)
]
CompareOption = Annotated[
    Path | None,
    typer.Option(
        metavar="OTHER",
        help="Another checkpoint: where it chooses otherwise",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write the choices, as routing.npz", show_default=False
    ),
]
HtmlOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a page", show_default=False)
]
PictureOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Write the heat map as .svg or .png; may be repeated",
        show_default=False,
    ),
]
BandwidthOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Of what experts come by, each second; may be repeated; left out: 3GB and 25GB",
        show_default=False,
    ),
]
MemoryBandwidthOption = Annotated[
    str, typer.Option(help="Of the memory that holds what is in use, each second")
]


def route(
    path: PathArgument = None,
    text: TextOption = None,
    prompt: PromptOption = None,
    continued: ContinueOption = 0,
    window: WindowOption = DEFAULT_WINDOW,
    max_tokens: MaxTokensOption = None,
    compare: CompareOption = None,
    out: OutOption = None,
    html: HtmlOption = None,
    picture: PictureOption = None,
    bandwidth: BandwidthOption = None,
    memory_bandwidth: MemoryBandwidthOption = MEMORY,
    device: DeviceOption = "auto",
    dtype: ComputeOption = "keep",
    memory: MemoryOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show which experts each token goes to, layer by layer; how even and how sure that is.

    With --compare: where another checkpoint of the same model chooses otherwise. The last table
    says what a cache of experts would make of this text.
    """
    console = Console(json, quiet)
    check_target(out, (".npz",))
    check_target(html, (".html", ".htm"))
    for each in picture or ():
        check_target(each, (".svg", ".png"))
    links = [parse_size(each, "--bandwidth") or 1 for each in bandwidth or LINKS]
    held = parse_size(memory_bandwidth, "--memory-bandwidth") or 1
    content = _content(text, prompt, continued)
    must_exist(compare)
    where = resolve(path, console)
    with ExitStack() as stack:
        opened = stack.enter_context(running(where, device, dtype, memory))
        other = stack.enter_context(running(compare, device, dtype, memory)) if compare else None
        watched = _Watched(console, opened, other, continued)
        traces = watched.read(content, min(window, opened.recognized.args.max_seq_len), max_tokens)
        report = watched.report(where, traces, links, held)
        texts = [watched.spell(token) for token in traces[0].tokens]
    _write(console, report, traces, texts, (out, html, tuple(picture or ())))
    console.result(report, lambda: render_route(console, report))


def _content(text: Path | None, prompt: str | None, continued: int) -> str:
    """What is to be read.

    Raises:
        UsageFault: neither a file nor a prompt, or both, or a continuation of a file.
    """
    if (text is None) == (prompt is None):
        raise UsageFault(
            "give either --text FILE or --prompt TEXT",
            hint="moetool route PATH --prompt 'Once upon a time'",
        )
    if text is None:
        return prompt or ""
    if continued:
        raise UsageFault("--continue goes behind a --prompt, not a file", hint="give --prompt")
    must_exist(text)
    return read_text(text)


class _Watched:
    """One or two models that read the same tokens."""

    def __init__(
        self, console: Console, opened: Running, other: Running | None, continued: int
    ) -> None:
        self._console, self._opened, self._other = console, opened, other
        self._continued, self._tokenizer = continued, opened.speaking()
        self.continuation = ""
        if other and (other.recognized.args.vocab_size != opened.recognized.args.vocab_size):
            raise Refused(
                "has another vocabulary than the first",
                where=str(other.checkpoint.path),
                hint="compare checkpoints of one model; moetool diff says what differs",
            )

    def spell(self, token: int) -> str:
        """A token's own text: a space where the piece has its mark, bytes as they are named."""
        if not 0 <= token < self._tokenizer.n_words:
            return f"[{token}]"
        piece, _, _, is_byte = self._tokenizer.piece(token)
        return "\n" if is_byte and piece == "<0x0A>" else piece.replace("\u2581", " ")

    def read(self, content: str, window: int, max_tokens: int | None) -> list[Trace]:
        """The trace of each model."""
        from moetool.experts.trace import trace
        from moetool.model.evaluate import TOGETHER

        tokens = self._tokenizer.encode(content)[:max_tokens]
        if self._continued:
            tokens = self._written(tokens)
            window = max(window, len(tokens))
        n_rows = min(len(tokens), max(TOGETHER, window))
        found = []
        for opened in filter(None, (self._opened, self._other)):
            say_outlook(self._console, opened.model, n_rows, n_rows)
            with self._console.progress("route", None) as update:
                found.append(
                    trace(opened.model, tokens, window,
                          lambda done, total: update(done, f"{done} of {total} tokens"))
                )  # fmt: skip
        return found

    def _written(self, prompt: list[int]) -> list[int]:
        """The prompt, and what the first model writes behind it."""
        from moetool.model.generate import generate

        ends = frozenset({self._tokenizer.eos})
        written = list(generate(self._opened.model, prompt, self._continued, stop=ends))
        self.continuation = self._tokenizer.decode([*prompt, *written])[
            len(self._tokenizer.decode(prompt)) :
        ]
        return [*prompt, *written]

    def report(
        self, path: Path, traces: list[Trace], links: Sequence[int], memory_nbytes_s: int
    ) -> RouteReport:
        """Add up."""
        from moetool.experts.changes import compare_routing
        from moetool.experts.summary import summarise
        from moetool.experts.what_if import traffic_of, what_if
        from moetool.model.device import spelled

        args, weights = self._opened.recognized.args, self._opened.weights
        summary = summarise(traces[0], self.spell)
        changes = None
        if self._other:
            changes = compare_routing(
                str(self._other.checkpoint.path), traces[0], traces[1], self.spell
            )
        return RouteReport(
            str(path), len(traces[0].tokens), traces[0].window, args.n_experts,
            args.n_experts_per_tok, summary.layers, summary.favourites,
            what_if(traces[0], traffic_of(weights, args), links, memory_nbytes_s),
            memory_nbytes_s, changes, self.continuation, str(weights.device),
            spelled(weights.dtype),
        )  # fmt: skip


def _write(
    console: Console, report: RouteReport, traces: list[Trace], texts: Sequence[str],
    targets: tuple[Path | None, Path | None, tuple[Path, ...]],
) -> None:  # fmt: skip
    """Write what was asked for."""
    from moetool.cli.route_page import route_page
    from moetool.experts.routing_file import to_npz

    out, html, pictures = targets
    files: list[tuple[Path, bytes]] = []
    if out:
        files.append((out, to_npz(traces[0])))
    if html:
        other = traces[1] if len(traces) > 1 else None
        cache = link_titles(report), [cache_cells(row) for row in report.cache]
        files.append((html, route_page(report, traces[0], texts, other, cache).encode()))
    layers = [layer.layer for layer in report.layers]
    title = f"who reads {report.n_tokens} tokens"
    found = shares(report)
    files += [drawn(picture, found, layers, title, "share of tokens") for picture in pictures]
    write_targets(console, files)
