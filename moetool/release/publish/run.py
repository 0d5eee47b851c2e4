"""A folder -> RELEASE, .torrent and magnet; every byte is read once for all digests.

    DIR/            files, RELEASE       md5 lines, for people and for `verify`
    DIR.torrent     hybrid, v1 and v2    SHA-1 pieces, SHA-256 trees; or v1 alone

Everything that can be refused is refused before the first byte is read, and nothing is written
before the last one is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import ClassVar

from moetool.durable import write_durably
from moetool.errors import (
    DigestMismatch,
    HostileTorrent,
    OutputExists,
    ReadFailed,
    SourceChanged,
    SystemFault,
)
from moetool.extents import Claim, Extent
from moetool.files.partial import refuse_partial
from moetool.release.magnet import Magnet, format_magnet
from moetool.release.manifest import RELEASE_FILE, list_claims
from moetool.release.publish.files import Listed, find_files, judge
from moetool.release.publish.forms import hexdigest, hybrid, hybrid_wanted, v1, v1_wanted
from moetool.release.publish.listing import NO_MD5, is_listable, release_text
from moetool.release.torrent.create import (
    choose_piece_length,
    count_file_pieces,
    in_order,
    torrent_file,
)
from moetool.release.torrent.metainfo import Metainfo, read_torrent
from moetool.release.verify.hashing import Computed, Trouble, Wanted, read_digests


class Listing(Enum):
    """What became of RELEASE."""

    WRITTEN = "written"
    REPLACED = "replaced"
    KEPT = "kept"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be published, judged and not yet read; ``release`` is what RELEASE will be."""

    folder: Path
    files: tuple[Listed, ...]
    left_out: tuple[str, ...]
    piece_length: int
    release: Listing
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()
    force: bool = False
    judge_lists: bool = True
    v1_only: bool = False

    @property
    def nbytes(self) -> int:
        """The bytes to read."""
        return sum(file.nbytes for file in self.files)

    @property
    def listing(self) -> tuple[Listed, ...]:
        """The files that will be published, a RELEASE to be written included."""
        if self.release is not Listing.WRITTEN:
            return self.files
        text = _release_bytes(self, {file.path: NO_MD5 for file in self.files})
        return _with_release(self.files, text)

    @property
    def torrent(self) -> Path:
        """Where the .torrent goes: beside the folder, where `verify` and `repair` look for it."""
        return self.folder.with_name(self.folder.name + ".torrent")


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What was published; sizes in bytes, hashes and ``release_md5`` in hex.

    ``is_new`` is False where the very same .torrent lay there already. After a dry run there are
    neither hashes nor a magnet. ``read_nbytes`` were read for it: what was hashed while it was
    written is not.
    """

    schema: ClassVar[str] = "moetool.publish"
    version: ClassVar[int] = 1

    folder: Path
    torrent: Path
    is_new: bool
    release: Listing
    files: dict[str, int]
    left_out: tuple[str, ...]
    nbytes: int
    piece_length: int
    pieces: int
    info_hash: str | None = None
    info_hash_v2: str | None = None
    magnet: str | None = None
    release_md5: str | None = None
    read_nbytes: int = 0

    @property
    def ok(self) -> bool:
        """It was published, or could be."""
        return True


def plan(
    folder: Path,
    *,
    trackers: Sequence[str] = (),
    web_seeds: Sequence[str] = (),
    piece_length: int | None = None,
    write_release: bool = True,
    judge_lists: bool = True,
    force: bool = False,
    v1_only: bool = False,
) -> Plan:
    """Look at a folder and say what publishing it means; only names and sizes are read.

    Args:
        folder: what to publish.
        trackers: written into the .torrent and the magnet, in this order.
        web_seeds: the same; addresses under which the folder lies (BEP 19).
        piece_length: a power of two from 16 KiB to 64 MiB; None: chosen.
        write_release: make a RELEASE where there is none.
        judge_lists: compare the lists in the folder with its files.
        force: replace a RELEASE that is wrong, and another .torrent.
        v1_only: no hybrid but the form of 2023, for clients that read no other.

    Raises:
        NotFetched: a part of a release.
        Refused: nothing to publish, or what `fetch` would refuse: all names are listed.
        OutputExists: another .torrent is there.
        SystemFault: a folder cannot be written to.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  # unlike resolve it keeps the name given
    refuse_partial(folder, "publishing")
    files, left_out = find_files(folder)
    is_there = any(file.path == RELEASE_FILE for file in files)
    listing = Listing.WRITTEN if write_release else Listing.NONE
    made = Plan(
        folder,
        files,
        left_out,
        # Without RELEASE, so that a run that makes one and a run that finds it agree.
        piece_length or choose_piece_length(_bytes_but_release(files)),
        Listing.KEPT if is_there else listing,
        tuple(trackers),
        tuple(web_seeds),
        force,
        judge_lists,
        v1_only,
    )
    judge(folder, made.listing, made.piece_length)
    _refuse_other_torrent(made)
    for place in [folder.parent, *([folder] if made.release is Listing.WRITTEN else [])]:
        if not os.access(place, os.W_OK):
            hint = "--no-release writes nothing into it" if place == folder else None
            raise SystemFault("cannot be written to", where=str(place), hint=hint)
    return made


def dry_report(made: Plan) -> PublishReport:
    """What a plan comes to."""
    return _report(made, made.release, made.listing, is_new=not made.torrent.exists())


def run(
    made: Plan,
    on_bytes: Callable[[int], None] = lambda _: None,
    known: Mapping[Wanted, Computed] | None = None,
) -> PublishReport:
    """Read, hash, and write RELEASE and .torrent.

    Args:
        made: what `plan` gave.
        on_bytes: called with the bytes read since the last call, from any thread.
        known: digests that need not be taken; see `moetool.release.publish.taken`.

    Raises:
        DigestMismatch: a list in the folder says otherwise than its files.
        SourceChanged: a file changed meanwhile.
        OutputExists: another .torrent is there.
        ReadFailed: the machine could not read.
    """
    read: list[int] = []

    def count(nbytes: int) -> None:
        read.append(nbytes)  # not a sum: it is called from several threads
        on_bytes(nbytes)

    found = _hash(made, count, known or {})
    md5s = {file.path: found[want].hex for file, want in _md5s_wanted(made).items()}
    listing, text = _decide_release(made, md5s)
    if listing is Listing.REPLACED and made.v1_only:
        # RELEASE may have another size now, which moves every piece behind it.
        write_durably(made.folder / RELEASE_FILE, text or b"")
        files, _ = find_files(made.folder)
        again = run(replace(made, files=files), count)
        return replace(again, release=listing, read_nbytes=sum(read))
    files = _with_release(made.files, text) if text is not None else made.files
    form = v1 if made.v1_only else hybrid
    info, layers = form(made.folder, files, made.piece_length, found, text)
    data = torrent_file(info, layers, made.trackers, made.web_seeds)
    meta = read_torrent(data)  # what we cannot read ourselves must not leave the house
    is_new = not made.torrent.exists() or made.torrent.read_bytes() != data
    if is_new and made.torrent.exists() and not made.force:
        raise _other_torrent(made)
    if text is not None:
        write_durably(made.folder / RELEASE_FILE, text)
    if is_new:
        write_durably(made.torrent, data)
    report = _report(made, listing, files, is_new=is_new, meta=meta)
    return replace(report, read_nbytes=sum(read))


def _report(
    made: Plan,
    listing: Listing,
    files: tuple[Listed, ...],
    *,
    is_new: bool,
    meta: Metainfo | None = None,
) -> PublishReport:
    magnet = md5 = None
    if meta:
        link = Magnet(meta.info_hash, meta.info_hash_v2, meta.name, made.trackers, made.web_seeds)
        magnet = format_magnet(link)
        if (made.folder / RELEASE_FILE).is_file():
            md5 = hexdigest("md5", (made.folder / RELEASE_FILE).read_bytes())
    return PublishReport(
        folder=made.folder,
        torrent=made.torrent,
        is_new=is_new,
        release=listing,
        files={file.path: file.nbytes for file in files},
        left_out=made.left_out,
        nbytes=sum(file.nbytes for file in files),
        piece_length=made.piece_length,
        pieces=_count_pieces(made, files),
        info_hash=meta.info_hash if meta else None,
        info_hash_v2=meta.info_hash_v2 if meta else None,
        magnet=magnet,
        release_md5=md5,
    )


def _bytes_but_release(files: Sequence[Listed]) -> int:
    return sum(file.nbytes for file in files if file.path != RELEASE_FILE)


def _with_release(files: Sequence[Listed], text: bytes) -> tuple[Listed, ...]:
    new = Listed((RELEASE_FILE,), len(text))
    by_parts = {file.parts: file for file in (*files, new)}
    return tuple(by_parts[parts] for parts in in_order(by_parts))


def _count_pieces(made: Plan, files: Sequence[Listed]) -> int:
    if made.v1_only:
        return count_file_pieces(sum(file.nbytes for file in files), made.piece_length)
    return sum(count_file_pieces(file.nbytes, made.piece_length) for file in files)


def _release_bytes(made: Plan, md5s: dict[str, str]) -> bytes:
    paths = [file.path for file in made.files if is_listable(file.path)]
    listed = {path: md5s[path] for path in paths if path != RELEASE_FILE}
    return release_text(made.folder.name, listed).encode()


def _hash(
    made: Plan, on_bytes: Callable[[int], None], known: Mapping[Wanted, Computed]
) -> dict[Wanted, Computed]:
    """Read every file once, for all digests that are not known."""
    before = _states(made)
    is_coming = made.release is Listing.WRITTEN
    listing, length = made.listing, made.piece_length
    if made.v1_only:
        pieces = v1_wanted(made.folder, listing, length, without_release=is_coming)
    else:
        pieces = hybrid_wanted(made.folder, made.files, length, len(listing))
    wanted = chain(_md5s_wanted(made).values(), pieces)
    found = read_digests((w for w in wanted if w not in known), on_bytes=on_bytes) | dict(known)
    if _states(made) != before:
        raise SourceChanged("a file changed while it was read", where=str(made.folder))
    for want, outcome in found.items():
        if outcome.trouble is Trouble.SHORT:
            raise SourceChanged("became shorter", where=str(want.extents[0].path))
        if outcome.trouble:
            raise ReadFailed(outcome.detail)
    return found


def _md5s_wanted(made: Plan) -> dict[Listed, Wanted]:
    listed = _paths_for_md5(made)
    return {
        file: Wanted((Extent(made.folder / file.path, 0, file.nbytes),), "md5")
        for file in made.files
        if file.path in listed
    }


def _states(made: Plan) -> list[tuple[int, int]]:
    found = [(made.folder / file.path).stat() for file in made.files]
    return [(status.st_size, status.st_mtime_ns) for status in found]


def _paths_for_md5(made: Plan) -> set[str]:
    """The files whose MD5 is needed: it is the slowest digest, and cannot be cut into parts."""
    everything = {file.path for file in made.files}
    if made.release is Listing.WRITTEN:
        return everything
    claims = _listed_claims(made) if made.judge_lists else []
    listed = {_below(made, claim.extents[0].path) for claim in claims}
    return everything if listed and made.force else listed


def _listed_claims(made: Plan) -> list[Claim]:
    sizes = {made.folder / file.path: file.nbytes for file in made.files}
    return list(list_claims(made.folder, sizes))


def _decide_release(made: Plan, md5s: dict[str, str]) -> tuple[Listing, bytes | None]:
    """What RELEASE will be, and its bytes where they are to be written.

    Raises:
        DigestMismatch: a list is wrong, and is not to be or cannot be replaced.
    """
    if made.release is Listing.WRITTEN:
        return Listing.WRITTEN, _release_bytes(made, md5s)
    if not made.judge_lists:
        return made.release, None
    wrong = {
        f"{claim.reference}: {path} has {md5s[path]}, listed is {claim.digest.hex}": claim
        for claim in _listed_claims(made)
        if claim.digest.hex != md5s[path := _below(made, claim.extents[0].path)]
    }
    if not wrong:
        return made.release, None
    if made.force and all(claim.reference == RELEASE_FILE for claim in wrong.values()):
        return Listing.REPLACED, _release_bytes(made, md5s)
    raise DigestMismatch(
        "a list in the folder says otherwise than its files",
        where=str(made.folder),
        hint="repair the files; or --force makes RELEASE anew, --no-release leaves it as it is",
        findings=tuple(wrong),
    )


def _below(made: Plan, path: Path) -> str:
    return path.relative_to(made.folder).as_posix()


def _refuse_other_torrent(made: Plan) -> None:
    """Refuse before hours of hashing what can be seen now: another file list or other trackers."""
    if made.force or not (made.torrent.exists() or made.torrent.is_symlink()):
        return
    try:
        there = read_torrent(made.torrent.read_bytes())
    except (HostileTorrent, OSError) as error:
        raise _other_torrent(made) from error
    sizes = {file.path: file.nbytes for file in there.files if not file.pad}
    if (
        there.name != made.folder.name
        or there.piece_length != made.piece_length
        or (there.info_hash_v2 is None) != made.v1_only
        or (there.trackers, there.web_seeds) != (made.trackers, made.web_seeds)
        or sizes != {file.path: file.nbytes for file in made.listing}
    ):
        raise _other_torrent(made)


def _other_torrent(made: Plan) -> OutputExists:
    return OutputExists(
        "is another torrent",
        where=str(made.torrent),
        hint="move it away, or --force replaces it; `moetool seed` serves it as it is",
    )
