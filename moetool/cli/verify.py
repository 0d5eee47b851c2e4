"""`moetool verify`: every digest that we can know, in one read of the bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console, safe, size
from moetool.cli.fetch import ReleaseMd5Option, digits
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.errors import DigestMismatch, FormatError, Mismatch, MoetoolError, SystemFault

if TYPE_CHECKING:
    from moetool.extents import Extent
    from moetool.proof.certificate.record import Record
    from moetool.release.verify.settle import FileVerdict, Settled, VerifyReport
    from moetool.tensors import Catalog

STYLES = {"MATCH": "green", "MISMATCH": "red", "UNREADABLE": "red", "NOT COVERED": "yellow"}
WEIGHTS = {".pth", ".pt", ".safetensors", ".gguf"}
MAX_LINES = 40
MAX_LOCATED = 200  # a file of which so much is wrong is another file


SignatureOption = Annotated[
    Path | None,
    typer.Option(
        "--verify-signature",
        metavar="KEY",
        help="Check the signature in the folder with a public key (PEM)",
        show_default=False,
    ),
]
TorrentOption = Annotated[
    Path | None, typer.Option(help="Check against this .torrent file", show_default=False)
]


def verify(
    path: PathArgument = None,
    torrent: TorrentOption = None,
    release_md5: ReleaseMd5Option = None,
    verify_signature: SignatureOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check a checkpoint against every digest that is known of it, and say what that proves.

    An output with a certificate has its root computed again.
    """
    from moetool.proof.certificate.beside import read_beside
    from moetool.proof.certificate.signature import require, verify_folder
    from moetool.release.provenance import record_digests
    from moetool.release.verify.references import references, trust_lines
    from moetool.release.verify.settle import settle
    from moetool.release.verify.subject import find_subject

    console = Console(json, quiet)
    md5 = digits(release_md5) if release_md5 else None
    if verify_signature:
        require(verify_signature)
    subject = find_subject(resolve(path, console), torrent=torrent, release_md5=md5)
    catalogs, broken = catalogs_of(subject.path, subject.files)
    for error in broken:
        console.warn(safe(error))
    claims = references(
        subject.folder, subject.meta, release=subject.release, release_md5=subject.release_md5
    )
    beside, whole = read_beside(subject.folder), subject.path.is_dir()
    files = beside.judged(subject.files, whole=whole)
    own = (claim for claim in beside.claims(catalogs) if claim.extents[0].path in files)
    with console.progress("verify", subject.nbytes) as update:
        report = settle(
            chain(claims, own),
            files,
            self_claims=[claim for catalog in catalogs for claim in catalog.claims],
            on_progress=lambda done, _total: update(done, ""),
        )
    report = replace(
        report,
        trust=(
            *trust_lines(report, subject.meta, subject.release, subject.hub),
            *beside.trust_lines(),
        ),
        damaged=(*map(str, broken), *located(_wrong(report), catalogs, subject.folder)),
    )
    if beside.record and whole and report.ok and not broken:
        report = _with_root(report, beside.record, subject.path, console)
    if verify_signature:
        shown = verify_folder(subject.folder, verify_signature)
        report = replace(report, trust=(*report.trust, shown))
    if subject.is_ours and not record_digests(subject.folder, report):
        console.note("the folder cannot be written, so the digests are in this report only")
    console.result(report, lambda: _render(console, report))
    _leave(report, broken)


def _with_root(report: VerifyReport, record: Record, path: Path, console: Console) -> VerifyReport:
    """Compute the root again, and enter what it says: the certificate's word is not enough."""
    from moetool.proof.certificate.record import check_root
    from moetool.release.verify.settle import Word

    with console.progress("root", None) as update:
        check = check_root(record, path, update)
    if check.ok:
        return replace(report, trust=(str(check), *report.trust))
    return replace(report, verdict=Word.MISMATCH, damaged=(*report.damaged, str(check)))


def catalogs_of(
    path: Path, files: Iterable[Path]
) -> tuple[list[Catalog], tuple[MoetoolError, ...]]:
    """The headers of the checkpoint, if there is one; else why they cannot be read.

    A damaged header must not keep the digests from being checked: they say what is damaged.
    """
    from moetool.files.joined import status_of
    from moetool.formats import open_checkpoint

    if not any(file.suffix in WEIGHTS and status_of(file) for file in files):
        return [], ()
    try:
        with open_checkpoint(path) as checkpoint:
            return [checkpoint.catalog], ()
    except (FormatError, DigestMismatch, SystemFault) as error:
        return [], (error,)


def _wrong(report: VerifyReport) -> Iterator[Extent]:
    return (extent for file in report.files for extent in file.damage)


def located(extents: Iterable[Extent], catalogs: list[Catalog], folder: Path) -> tuple[str, ...]:
    """Name what lies at wrong bytes: file, range, and the tensor with its rows."""
    from moetool.proof.locate import locate

    lines = []
    for number, extent in enumerate(extents):
        where = f"{extent.path.name} bytes {extent.offset}-{max(extent.offset, extent.end - 1)}"
        known = catalogs if number < MAX_LOCATED else []
        found = [place.describe() for item in known for place in locate(item, folder, extent)]
        lines += [f"{where}: {what}" for what in found] or [where]
    return tuple(lines)


def _render(console: Console, report: VerifyReport) -> None:
    rows = [
        (file.word.value, file.path.name, size(file.nbytes), cover)
        for file in report.files
        for cover in _covers(file)
    ]
    console.table([Column("found"), Column("file"), Column("size", right=True), Column("by")], rows)
    for item in report.unsettled[:MAX_LINES]:
        console.line(safe(_unsettled(item)), STYLES[item.word.value])
    for line in report.damaged[:MAX_LINES]:
        console.line(f"damaged: {safe(line)}", "red")
    left = len(report.unsettled) + len(report.damaged) - 2 * MAX_LINES
    if left > 0:
        console.line("… more with --json")
    console.line()
    for line in report.trust:
        console.line(safe(line))
    word = report.verdict.value
    console.line(f"\n{word}  {len(report.files)} files, {size(report.nbytes)}", STYLES[word])


def _covers(file: FileVerdict) -> list[str]:
    texts = [
        (f"{cover.algorithm} {cover.matched}/{cover.claims}, {cover.reference}"
         + f", {cover.absent} NOT COVERED" * (cover.absent > 0))
        if cover.claims else f"{cover.algorithm} NOT COVERED, {cover.reference}"
        for cover in file.coverage
    ]  # fmt: skip
    return ["; ".join([*texts, *file.notes]) or "no reference"]


def _unsettled(item: Settled) -> str:
    places = " + ".join(
        f"{extent.path.name} bytes {extent.offset}-{max(extent.offset, extent.end - 1)}"
        for extent in item.extents
    )
    part = item.reference.replace("#", " piece " if item.algorithm == "sha1" else " ")
    return (
        f"{item.word.value}  {places}  {item.algorithm} {item.found}, "
        f"expected {item.expected} ({part})"
    )


def _leave(report: VerifyReport, broken: tuple[MoetoolError, ...]) -> None:
    """Choose the exit code: what is wrong counts more than what could not be read."""
    codes = {"MISMATCH": Mismatch.exit_code, "UNREADABLE": SystemFault.exit_code}
    code = codes.get(report.verdict.value, broken[0].exit_code if broken else 0)
    if code:
        raise typer.Exit(code)
