"""Every reference that speaks of a release's bytes, and in words what their agreement proves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from moetool import __version__
from moetool.files.joined import Joins
from moetool.release.hub.listing import Listing, read_listing
from moetool.release.manifest import Release, known_claims, list_claims, post_claim
from moetool.release.torrent.metainfo import Metainfo, claims
from moetool.release.verify.settle import FileVerdict, VerifyReport, Word

if TYPE_CHECKING:
    from moetool.extents import Claim


_NOT_NOTED = "moetool verify takes SHA-256 of all files and notes it"
WEAK = {"md5": "MD5", "sha1": "SHA-1", "git-blob": "git's SHA-1"}


def references(
    folder: Path,
    meta: Metainfo | None,
    *,
    release: Release | None = None,
    release_md5: str | None = None,
) -> Iterator[Claim]:
    """Every claim on the files of ``folder``: torrent, hub, RELEASE list, known release, post.

    What a hub says is what a fetch from there has recorded in the folder.

    Args:
        folder: holds the release's files.
        meta: the torrent, if there is one; it also says how large each file should be.
        release: the record of a known release.
        release_md5: the digest of the file RELEASE that the post gives.
    """
    hub = read_listing(folder)
    promised = meta.file_sizes(folder) if meta else hub.file_sizes(folder) if hub else {}
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()} | promised
    joins = Joins(dict.fromkeys(sizes) | promised)
    found = _references(folder, meta, sizes | joins.wholes, release, release_md5)
    yield from map(joins.claim, chain(hub.claims(folder) if hub else (), found))


def _references(
    folder: Path,
    meta: Metainfo | None,
    sizes: Mapping[Path, int],
    release: Release | None,
    release_md5: str | None,
) -> Iterator[Claim]:
    if meta:
        yield from claims(meta, folder)
    yield from list_claims(folder, sizes)
    if release:
        yield from known_claims(release, folder, sizes)
    if release_md5:
        yield from post_claim(folder, sizes, release_md5)


def trust_lines(
    report: VerifyReport,
    meta: Metainfo | None,
    release: Release | None,
    hub: Listing | None = None,
) -> tuple[str, ...]:
    """Say what the checks prove and what they do not, a line each; the first word says of what."""
    lines = [f"content  {_content(file)}" for file in report.files]
    lines.append(f"origin   UNPROVEN  {origin_words(meta, release, hub)}")
    used = {cover.algorithm for file in report.files for cover in file.coverage}
    weak = " and ".join(label for name, label in WEAK.items() if name in used)
    if weak:
        noted = all("sha256" in {d.algorithm for d in file.digests} for file in report.files)
        lines.append(
            f"note     {weak}: proof against substitution by others, not against a publisher who "
            f"prepared two versions; {'SHA-256 is noted for later' if noted else _NOT_NOTED}"
        )
    lines += [
        f"note     {file.path.name} is covered by the torrent only, not by RELEASE"
        for file in report.files
        if _only_torrent(file) and any(_by_list(other) for other in report.files)
    ]
    return tuple(lines)


def _content(file: FileVerdict) -> str:
    covers = ", ".join(
        f"{cover.algorithm} {cover.matched}/{cover.claims} ({cover.reference})"
        for cover in file.coverage
        if cover.claims
    )
    absent = sum(cover.absent for cover in file.coverage)
    if absent:
        covers = (
            f"{file.tally.not_covered:,} of {file.nbytes:,} bytes were never fetched or have no "
            f"reference, {absent:,} digests are of those{': ' + covers if covers else ''}"
        )
    elif file.word is Word.NOT_COVERED:
        covers = f"not covered by a publisher's reference{': ' + covers if covers else ''}"
    return f"{file.word.value}  {file.path.name}  {covers}"


def origin_words(meta: Metainfo | None, release: Release | None, hub: Listing | None = None) -> str:
    """Say on what the trust in a release rests; nothing here can prove who made it."""
    if release and release.post and meta:
        return (
            f"the release carries no signature; trust rests on the magnet posted by "
            f"{release.post.author} on {release.post.date} as recorded in moetool {__version__}"
        )
    if meta:
        return (
            "the release carries no signature; trust rests on where the info-hash "
            f"{meta.hashes[0]} came from"
        )
    if hub:
        known = f"; its bytes should be those of {release.name}" if release else ""
        return (
            f"no signature; trust rests on {hub.endpoint} and on who owns {hub.repository}, "
            f"commit {hub.commit}{known}"
        )
    return "no reference from outside the files; nothing says who made them"


def _by_list(file: FileVerdict) -> bool:
    return any(cover.algorithm == "md5" for cover in file.coverage)


def _only_torrent(file: FileVerdict) -> bool:
    return bool(file.coverage) and all(
        cover.reference.startswith("torrent ") for cover in file.coverage
    )
