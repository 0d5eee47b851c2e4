"""Inspect of what is not here: the swarm or the server is asked for headers and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.arch.summary import SIDE_FILES, InspectReport, summarize
from moetool.cli.console import Console, safe, size
from moetool.cli.stages import stages
from moetool.cli.swarm_options import seeds_of
from moetool.errors import MoetoolError, UsageFault
from moetool.formats.directory import is_weight_file
from moetool.formats.remote import SMALL_FILES, RemoteFiles, read_remote
from moetool.release.peek.address import shown
from moetool.release.peek.https import HttpFiles, HttpOptions, HttpOrigin, name_in
from moetool.release.peek.torrent import TorrentOrigin, look_into
from moetool.release.source import resolve_source

if TYPE_CHECKING:
    from moetool.release.source import Source
    from moetool.release.torrent.profile import SwarmOptions

STALL_S = 120.0  # a person waits for a few pieces, not for a download
REJOIN_S = 10.0


@dataclass(frozen=True, slots=True)
class RemoteInspectReport(InspectReport):
    """What a checkpoint elsewhere is, where that is, and what looking cost."""

    remote: TorrentOrigin | HttpOrigin


@dataclass(frozen=True, slots=True)
class View:
    """How the report is wanted: the context of the KV cache in tokens, every tensor or groups."""

    context: int | None
    tensors: bool


def inspect_torrent(
    console: Console, text: str, options: SwarmOptions, view: View, *, web_seeds: bool | None
) -> RemoteInspectReport:
    """Look into a torrent: a link as pasted, a .torrent file or the name of a known release.

    Raises:
        MoetoolError: as fetch and inspect do.
    """
    source = resolve_source(text)
    _tell_repairs(console, source)
    options = replace(options, web_seeds=seeds_of(source, wanted=web_seeds))
    with (
        stages(console) as on_progress,
        look_into(source, options, is_weight_file, on_progress) as look,
    ):
        report = _inspect(look.files, Path(look.meta.name), None, view)
        beside = tuple(name for name in SIDE_FILES if name in look.files.names)
        return _with_origin(replace(report, side_files=beside), look.origin())


def inspect_url(
    console: Console, url: str, options: HttpOptions, view: View
) -> RemoteInspectReport:
    """Look into a file behind a URL, with the hyperparameters that lie beside it.

    Raises:
        UsageFault: it is the address of a folder or a page.
        MoetoolError: as inspect does, and where the server is not to be trusted.
    """
    name = name_in(url)
    if not is_weight_file(name):
        raise UsageFault(
            "the address is not that of a checkpoint's file (.pth, .safetensors, .gguf)",
            where=shown(url),
            hint="give a file: https://HOST/…/consolidated.00.pth, or the index of sharded ones; "
            "a page that shows a file has /resolve/ in place of /blob/ in the file's own address",
        )
    beside = () if name.endswith(".gguf") else SMALL_FILES
    files = HttpFiles(url, beside, options)
    console.note(f"asking {safe(files.origin().link)} for ranges")
    return _with_origin(_inspect(files, Path(name), name, view), files.origin())


def remote_facts(remote: TorrentOrigin | HttpOrigin) -> list[tuple[str, object]]:
    """Where it came from and what that cost, for people."""
    came = f"{size(remote.received_nbytes)} of {size(remote.nbytes)}"
    if isinstance(remote, HttpOrigin):
        cost = f"{came}, {remote.requests} requests"
        return [("from", remote.link), ("received", cost), _UNREAD]
    pieces = f"{remote.pieces_received} of {remote.pieces} pieces of {size(remote.piece_nbytes)}"
    facts: list[tuple[str, object]] = [
        ("from", f"torrent {', '.join(remote.info_hashes)}"),
        ("received", f"{came}: {pieces}, each hashed, and the metadata"),
        _UNREAD,
    ]
    banned = ", ".join(f"{host}:{port}" for host, port in remote.banned)
    return [*facts, ("banned", f"{banned} after a bad piece")] if banned else facts


_UNREAD = ("not read", "weights, and what stands between them")


def _inspect(files: RemoteFiles, path: Path, name: str | None, view: View) -> InspectReport:
    with tempfile.TemporaryDirectory(prefix="moetool-") as folder, _told_of(folder, str(path)):
        found = read_remote(files, Path(folder), name)
        return summarize(
            found.catalog,
            Path(folder),
            path,
            found.files,
            context=view.context,
            tensors=view.tensors,
        )


@contextmanager
def _told_of(folder: str, path: str) -> Iterator[None]:
    """Let an error name what was asked for, and not the folder of our copies."""
    try:
        yield
    except MoetoolError as error:
        if not error.where or folder not in error.where:
            raise
        where = error.where.replace(folder, path)
        raise type(error)(
            error.what, where=where, hint=error.hint, findings=error.findings
        ) from error


def _with_origin(report: InspectReport, remote: TorrentOrigin | HttpOrigin) -> RemoteInspectReport:
    values = {field.name: getattr(report, field.name) for field in fields(InspectReport)}
    return RemoteInspectReport(**values, remote=remote)


def _tell_repairs(console: Console, source: Source) -> None:
    magnet = source.magnet
    console.note(f"looking into {safe(magnet.name or 'an unnamed release')}, nothing is kept")
    for entry in source.repairs.trackers:
        now = f" -> {entry.tracker}" if entry.tracker else ""
        console.note(f"tracker {entry.outcome.value}: {safe(entry.pasted)}{safe(now)}")
