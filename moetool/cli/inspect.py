"""`moetool inspect`: what a checkpoint is, from its headers alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console, count, size
from moetool.cli.options import JsonOption, QuietOption, resolve
from moetool.cli.swarm_options import (
    EncryptionOption,
    InterfaceOption,
    Ipv6Option,
    NoDhtOption,
    PeerOption,
    ProxyOption,
    SwarmWords,
    TimeoutOption,
    TrackerOption,
    WebSeedsOption,
)
from moetool.errors import FormatError, Refused, TruncatedFile, UsageFault

if TYPE_CHECKING:
    from moetool.arch.summary import InspectReport, ModelSummary, Presence
    from moetool.cli.remote import RemoteInspectReport, View
    from moetool.formats import FileCheckpoint

SourceArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[PATH]",
        help="A checkpoint: a folder or a file. Or one that is not here: a magnet link as pasted, "
        "a .torrent file, the name of a known release, the https address of a file. Left out: the "
        "current folder if it holds a checkpoint, else the release fetched last",
        show_default=False,
    ),
]
AllowHttpOption = Annotated[
    bool, typer.Option("--allow-http", help="Take http addresses of other machines too")
]


def inspect(
    path: SourceArgument = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of context to count the KV cache for")
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor, nothing collapsed")
    ] = False,
    tracker: TrackerOption = None,
    peer: PeerOption = None,
    web_seeds: WebSeedsOption = None,
    timeout: TimeoutOption = None,
    no_dht: NoDhtOption = False,
    proxy: ProxyOption = None,
    encryption: EncryptionOption = "allow",
    ipv6: Ipv6Option = True,
    interface: InterfaceOption = None,
    allow_http: AllowHttpOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what a checkpoint is, holds and needs; also one that was not downloaded yet.

    Architecture and layout, parameters, bytes by role, KV cache and memory, from headers alone. Of
    a torrent or an https address only these headers are fetched, and nothing of them is kept.
    """
    console = Console(json, quiet)
    words = SwarmWords(tracker, peer, 0, 0, 0, timeout, no_dht, proxy, encryption, ipv6, interface)
    of_swarm = web_seeds is not None or bool(words.given())
    if path is None or not _is_remote(path):
        if of_swarm or timeout or allow_http:
            raise UsageFault("options of the network for a checkpoint that is here")
        report = _local(console, Path(path) if path else None, context, tensors=tensors)
        console.result(report, lambda: _render(console, report))
    else:
        from moetool.cli.remote import View, remote_facts

        view = View(context, tensors)
        if _is_url(path):
            if of_swarm:
                raise UsageFault("options of a swarm for an https address")
            found = _behind_url(console, path.strip(), timeout, view, allow_http=allow_http)
        else:
            found = _in_swarm(console, path, words, view, web_seeds)
        report = found
        console.result(found, lambda: _render(console, found, remote_facts(found.remote)))
    if not report.ok:
        raise typer.Exit(Refused.exit_code)


def _local(
    console: Console, path: Path | None, context: int | None, *, tensors: bool
) -> InspectReport:
    from moetool.arch.summary import summarize
    from moetool.files.partial import find_partial
    from moetool.formats import open_checkpoint
    from moetool.release.provenance import is_unfinished

    path = resolve(path, console)
    folder = path if path.is_dir() else path.parent
    if is_unfinished(folder) and find_partial(folder) is None:
        return _unfinished(console, path, context, tensors=tensors)
    with open_checkpoint(path) as checkpoint:
        return summarize(
            checkpoint.catalog,
            checkpoint.directory,
            checkpoint.path,
            {path.name: source.nbytes for path, source in checkpoint.sources.items()},
            context=context,
            tensors=tensors,
            presence=_presence(checkpoint),
        )


def _unfinished(
    console: Console, path: Path, context: int | None, *, tensors: bool
) -> InspectReport:
    """Look into what a fetch has brought so far: the headers, which it asks for first.

    Raises:
        TruncatedFile: they are not here yet.
    """
    from moetool.arch.summary import summarize
    from moetool.formats import read_headers

    try:
        catalog, file_set = read_headers(path)
    except FormatError as error:
        raise TruncatedFile(
            f"the fetch has not brought its headers yet ({error.what})",
            where=error.where,
            hint="they come first: wait a little, or run the fetch again",
        ) from error
    console.warn("a fetch into this folder has not ended; these are the headers, not the weights")
    sizes = {file.name: file.stat().st_size for file in file_set.files}
    return summarize(catalog, file_set.directory, path, sizes, context=context, tensors=tensors)


def _presence(checkpoint: FileCheckpoint) -> Presence | None:
    """What is here of a release that was fetched in part; None where all is."""
    from moetool.arch.summary import Presence, collapse
    from moetool.files.partial import find_partial

    partial = find_partial(checkpoint.directory)
    if partial is None:
        return None
    infos = checkpoint.catalog.tensors
    held = {name: checkpoint.held(name) for name in infos}
    some = [name for name, nbytes in held.items() if 0 < nbytes < infos[name].nbytes]
    return Presence(
        only=partial.only,
        held_nbytes=partial.held_nbytes,
        nbytes=partial.nbytes,
        here=collapse(infos[name] for name in infos if checkpoint.holds(name)),
        in_part=collapse(infos[name] for name in some),
        in_part_nbytes=sum(held[name] for name in some),
        absent=collapse(info for name, info in infos.items() if not held[name] and info.nbytes),
        rest=partial.command(),
    )


def _behind_url(
    console: Console, url: str, timeout: float | None, view: View, *, allow_http: bool
) -> RemoteInspectReport:
    from moetool.cli.remote import inspect_url
    from moetool.release.peek.https import HttpOptions

    options = HttpOptions(allow_http=allow_http)
    return inspect_url(
        console, url, replace(options, timeout_s=timeout) if timeout else options, view
    )


def _in_swarm(
    console: Console,
    text: str,
    words: SwarmWords,
    view: View,
    web_seeds: bool | None,
) -> RemoteInspectReport:
    from moetool.cli.remote import REJOIN_S, STALL_S, inspect_torrent

    options = replace(
        words.options(), stall_timeout_s=words.timeout or STALL_S, rejoin_after_s=REJOIN_S
    )
    return inspect_torrent(console, text, options, view, web_seeds=web_seeds)


def _is_remote(text: str) -> bool:
    """Whether a checkpoint is to be looked into where it is; a path that exists is a path."""
    if "magnet:" in text.lower() or _is_url(text):
        return True
    if len(text) > 4096 or "\n" in text:  # noqa: PLR2004  # PATH_MAX: a post, not a path
        return True
    path = Path(text)
    if path.exists() or path.suffix == ".torrent":
        return path.suffix == ".torrent" and not path.is_dir()
    from moetool.release.manifest import known_releases

    is_hash = re.fullmatch(r"[0-9a-fA-F]{40}", text.strip()) is not None
    return is_hash or any(text.casefold() == known.name.casefold() for known in known_releases())


def _is_url(text: str) -> bool:
    return text.strip().lower().startswith(("https://", "http://"))


def _render(
    console: Console, report: InspectReport, remote: list[tuple[str, object]] | None = None
) -> None:
    facts: list[tuple[str, object]] = [
        ("checkpoint", report.path),
        *(remote or ()),
        ("format", f"{report.format}, {_files(report)}"),
        ("beside it", ", ".join(report.side_files) or "nothing"),
        *_presence_facts(report.presence),
    ]
    if report.model is None:
        console.facts(facts)
        console.line(f"not recognised: {report.reason}", "yellow")
    else:
        console.facts([*facts, *_model_facts(report.model)])
        console.line()
        _render_roles(console, report.model)
    console.line()
    if report.presence:
        _render_presence(console, report.presence)
    if report.tensors:
        rows = [(t.name, t.dtype.label, list(t.shape), size(t.nbytes)) for t in report.tensors]
        console.table(
            [Column("tensor"), Column("dtype"), Column("shape"), Column("size", right=True)], rows
        )
        return
    console.table(
        [Column("tensors"), Column("count", right=True), Column("dtype"), Column("shape"),
         Column("size", right=True)],
        [
            (group.name, f"x{group.count}", group.dtype, list(group.shape), size(group.nbytes))
            for group in report.groups
        ],
    )  # fmt: skip


def _presence_facts(presence: Presence | None) -> list[tuple[str, object]]:
    if presence is None:
        return []
    share = presence.held_nbytes / max(1, presence.nbytes)
    came = f"{size(presence.held_nbytes)} of {size(presence.nbytes)} ({share:.1%})"
    return [("here", f"{came}, by --only {', '.join(presence.only) or 'nothing yet'}")]


def _render_presence(console: Console, presence: Presence) -> None:
    """What is here and what is not, repeated layers and experts collapsed."""
    kinds = [
        ("here", presence.here),
        ("in part", presence.in_part),
        ("NOT COVERED", presence.absent),
    ]
    console.table(
        [Column("fetched"), Column("tensors"), Column("count", right=True),
         Column("size", right=True)],
        [(kind, group.name, f"x{group.count}", size(group.nbytes))
         for kind, groups in kinds for group in groups],
    )  # fmt: skip
    console.line()


def _files(report: InspectReport) -> str:
    names = list(report.files)
    what = names[0] if len(names) == 1 else f"{len(names)} files, {names[0]} … {names[-1]}"
    return f"{what}, {report.n_tensors} tensors, {report.nbytes:,} bytes ({size(report.nbytes)})"


def _model_facts(model: ModelSummary) -> list[tuple[str, object]]:
    assumed = model.args["assumed"]
    return [
        ("architecture", model.architecture),
        ("layout", f"{model.convention} ({model.convention_title})"),
        ("parameters", count(model.n_params)),
        ("active", f"{count(model.n_params_active)} for each token"),
        ("one expert", f"{count(model.n_params_expert)} over all layers"),
        ("shared", count(model.n_params_shared)),
        ("router", f"top {model.n_experts_per_tok} of {model.n_experts} experts, softmax"),
        ("hyperparameters", ", ".join(f"{k} {v}" for k, v in _shown(model))),
        ("assumed", ", ".join(assumed) or "nothing"),
        ("context", f"{model.max_seq_len:,} tokens"),
        ("KV cache", f"{size(model.kv_cache_nbytes)} at {model.context:,} tokens in bf16"),
        ("memory to run", ", ".join(f"{k} {size(v)}" for k, v in model.run_nbytes.items())),
    ]


def _render_roles(console: Console, model: ModelSummary) -> None:
    console.table(
        [Column("role"), Column("parameters", right=True), Column("size", right=True),
         Column("dtype")],
        [(r.role, f"{r.n_params:,}", size(r.nbytes), "/".join(r.dtypes)) for r in model.roles],
    )  # fmt: skip


def _shown(model: ModelSummary) -> list[tuple[str, object]]:
    elsewhere = {"n_experts", "n_experts_per_tok", "max_seq_len", "assumed"}
    return [(k, v) for k, v in model.args.items() if k not in elsewhere and v is not None]
