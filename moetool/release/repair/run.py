"""From a folder with bad pieces to one without: the order of the steps, and what is never done.

look       every piece is hashed; where all match, nothing is written and nothing opened for it
lock       .moetool/lock, as a fetch holds it; what was bad is looked at again under it
copy       pieces that another folder has right
swarm      the rest, batch by batch, into .moetool/repair/, and from there as from any copy
sizes      what goes on behind its promised end is cut

The swarm never writes into the files themselves: libtorrent writes blocks before their piece has
been hashed. What an interrupted run had fetched lies in .moetool/repair/ and is used first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moetool.durable import sync_folder
from moetool.errors import (
    Interrupted,
    LockHeld,
    Mismatch,
    NetworkFault,
    NoRoomOnDisk,
    Refused,
    SystemFault,
    UsageFault,
)
from moetool.files import Holdings
from moetool.files.joined import on_disk, parts_of, status_of
from moetool.files.partial import OUR_FOLDER
from moetool.release.pieces import Piece, count_pieces, find_bad, pieces_of
from moetool.release.provenance import locked, read_origin
from moetool.release.repair.mend import Copy, Healed, Mender, cannot_write, set_size
from moetool.release.repair.report import BadPiece, OddSize, RepairReport
from moetool.release.repair.subject import copy_of
from moetool.release.resume import fill_out
from moetool.release.source import Source, judge_metadata, reaching
from moetool.release.torrent.alerts import bytes_free, bytes_missing
from moetool.release.torrent.download import download
from moetool.release.torrent.metainfo import Metainfo, read_info
from moetool.release.torrent.profile import SwarmOptions
from moetool.release.torrent.session import Swarm
from moetool.release.torrent.watch import Peer, Progress

ROUNDS = 3  # a piece that three downloads did not bring will not come by a fourth
BATCH_NBYTES = 4 << 30  # fetched before it is put in place: the room that is needed twice
SAMPLE = 32  # pieces of a copy that tell whether it is of this release at all
ROOM = 1.02  # folders, and what others write meanwhile


def repair(
    folder: Path,
    source: Source,
    *,
    other: Path | None = None,
    options: SwarmOptions | None = None,
    offline: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> RepairReport:
    """Find the bad pieces of a folder and replace them, and nothing else.

    Args:
        folder: where the files lie.
        source: what they should be.
        other: a file or folder with the same bytes at the same places.
        options: how to reach the swarm.
        offline: take pieces from ``other`` only.
        dry_run: write nothing, and say what would be fetched.
        on_progress: told of every step.

    Raises:
        UsageFault, Mismatch: the copy, or the folder, is not of this release.
        LockHeld: another process works on the folder.
        NoRoomOnDisk, SystemFault: the machine said no.
        MetadataTimeout, Stalled: the swarm does not give it; what was healed stays healed.
        Interrupted: the same.
    """
    options = replace(reaching(source.magnet, options or SwarmOptions()), gives=False)
    try:
        with Swarm(options) as swarm:
            if source.meta is None and offline:
                raise UsageFault(
                    "what the pieces should be is not here, and nothing is asked of the network",
                    where=str(folder),
                    hint="give the .torrent file with --torrent, or leave --offline out",
                )
            if source.meta is None:
                info = swarm.metadata(source.magnet, on_progress)
                source = judge_metadata(source, read_info(info))
            assert source.meta is not None  # judged just now, or before
            copy = copy_of(source.meta, folder, other) if other else None
            job = _Repair(source.meta, folder, copy, None if offline else swarm, on_progress)
            return job.look_only() if dry_run else job.run()
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; what is healed stays", hint=_AGAIN) from error
    except Interrupted as error:
        raise Interrupted(error.what, exit_code=error.exit_code, hint=_AGAIN) from error


_AGAIN = "run the same command again to go on"


@dataclass(slots=True)
class _Repair:
    """One repair whose metadata is known and judged."""

    meta: Metainfo
    folder: Path
    copy: Copy | None
    swarm: Swarm | None
    on_progress: Callable[[Progress], None]
    pieces: list[Piece] = field(default_factory=list)
    sizes: tuple[OddSize, ...] = ()
    found: dict[int, BadPiece] = field(default_factory=dict)
    payload: int = 0
    banned: tuple[Peer, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def ours(self) -> Path:
        return self.folder / OUR_FOLDER

    @property
    def scratch(self) -> Path:
        return self.ours / "repair"

    def look_only(self) -> RepairReport:
        """Say what is bad, and from where it would come."""
        bad = self._look()
        missing = []
        for piece in bad:
            blocks = self.copy.read(piece) if self.copy else None
            missing += [piece] if blocks is None else []
            by = "copy" if blocks is not None else "swarm" if self.swarm else None
            self.found[piece.index] = replace(self.found[piece.index], healed_by=by)
        self._judge_copy(bad, missing)
        return self._report(missing, dry_run=True)

    def run(self) -> RepairReport:
        """Heal what can be healed."""
        bad = self._look()
        if not bad and not self.sizes and not self.scratch.is_dir():
            return self._report([])
        self._refuse_links(bad)
        self._refuse_unwritable(bad)
        with self._at_work():
            bad = find_bad(bad)
            still = {piece.index for piece in bad}
            self.found = {index: item for index, item in self.found.items() if index in still}
            if self.scratch.is_dir():
                bad = self._mend(bad, self._scratch_copy(), "swarm")
            bad = self._from_copy(bad)
            missing = bad
            if self.swarm:
                bad = self._from_swarm(bad, self.swarm)
            self._fit(bad)
        return self._report(missing)

    def _look(self) -> list[Piece]:
        """Hash everything; refuse a folder that holds nothing of the release.

        Raises:
            Mismatch: nothing in it matches, and nothing says that it was meant.
        """
        here, pieces = Holdings(), pieces_of(self.meta, self.folder)
        self.pieces = [p for p in pieces if all(map(here.hold, p.extents))]  # else: never fetched
        add = self._adder("look", sum(piece.nbytes for piece in self.pieces))
        bad = find_bad(self.pieces, add)
        self.sizes = tuple(_odd_sizes(self.meta, self.folder))
        origin = read_origin(self.folder)
        is_ours = origin is not None and origin.info_hashes == self.meta.hashes
        if len(bad) == len(self.pieces) and self.sizes and not is_ours:
            raise Mismatch(
                f"nothing in it is of {self.meta.name!a} ({self.meta.reference})",
                where=str(self.folder),
                hint="name the folder that holds the release's files; moetool fetch makes one",
            )
        self.found = {p.index: BadPiece(p.index, p.nbytes, p.extents) for p in bad}
        return bad

    def _from_copy(self, bad: list[Piece]) -> list[Piece]:
        if self.copy is None or not bad:
            return bad
        left = self._mend(bad, self.copy, "copy")
        self._judge_copy(bad, left)
        return left

    def _judge_copy(self, bad: Sequence[Piece], left: Sequence[Piece]) -> None:
        """Say what the copy did not have.

        Raises:
            Mismatch: it has nothing of the release.
        """
        if self.copy is None or not left:
            return
        if len(left) == len(bad):
            step = max(1, len(self.pieces) // SAMPLE)
            if not any(self.copy.has(piece) for piece in self.pieces[::step]):
                raise Mismatch(
                    f"no piece of it is of {self.meta.name!a}: it is another release",
                    where=self.copy.name,
                    hint="leave --from out, or give a copy of the same release",
                )
        numbers = ", ".join(str(piece.index) for piece in left[:10])
        more = ", …" if len(left) > 10 else ""  # noqa: PLR2004  # as cut above
        note = f"{len(left)} bad pieces are not right in {self.copy.name} either ({numbers}{more})"
        self.notes.append(note)

    def _from_swarm(self, bad: list[Piece], swarm: Swarm) -> list[Piece]:
        rounds = 0
        while bad and rounds < ROUNDS:
            batch = bad[: max(1, BATCH_NBYTES // self.meta.piece_length)]
            try:
                self._download(batch, swarm)
            except NetworkFault as error:
                self._mend(batch, self._scratch_copy(), "swarm")
                count = sum(item.healed_by is not None for item in self.found.values())
                said = f"{count} of {len(self.found)} bad pieces were healed before, and stay so"
                findings = (said, *self.notes, *error.findings)
                raise type(error)(error.what, hint=error.hint, findings=findings) from error
            left = self._mend(batch, self._scratch_copy(), "swarm")
            shutil.rmtree(self.scratch)
            rounds = rounds + 1 if len(left) == len(batch) else 0
            bad = [*left, *bad[len(batch) :]]
        return bad

    def _download(self, batch: Sequence[Piece], swarm: Swarm) -> None:
        """Fetch pieces into files that otherwise are holes.

        All other pieces are called held, for nothing else keeps them from being fetched; so
        nothing must be given to others out of these files (`SwarmOptions.gives`).
        """
        wanted = {piece.index for piece in batch}
        have = [index not in wanted for index in range(count_pieces(self.meta))]
        held, total = self.meta.nbytes, sum(piece.nbytes for piece in batch)
        held -= total

        def tell(progress: Progress) -> None:
            done = min(max(0, progress.bytes_done - held), total)
            self.on_progress(replace(progress, bytes_done=done, bytes_total=total, ends=()))

        fill_out(self.meta, self.scratch)
        try:
            outcome = download(swarm, self.meta, self.scratch, have, tell)
        except NoRoomOnDisk as error:
            raise _no_room(total, self.folder) from error
        self.payload += outcome.payload
        self.banned += outcome.banned

    def _mend(self, bad: Sequence[Piece], copy: Copy, by: str) -> list[Piece]:
        def healed(item: Healed) -> None:
            before = self.found[item.piece.index]
            now = replace(before, extents=item.changed or before.extents, healed_by=by)
            self.found[item.piece.index] = now

        add = self._adder(f"heal from {by}", sum(piece.nbytes for piece in bad))
        return Mender(healed).mend(bad, copy, add)

    def _scratch_copy(self) -> Copy:
        sizes = self.meta.file_sizes(Path())
        return Copy(str(self.scratch), {self.folder / p: (self.scratch / p, 0) for p in sizes})

    def _fit(self, bad: Sequence[Piece]) -> None:
        """Cut what is too long, make what is empty; a file that still lacks pieces stays short."""
        lacking = {extent.path for piece in bad for extent in piece.extents}
        made: set[Path] = set()
        for odd in _odd_sizes(self.meta, self.folder):
            if odd.path in lacking and (odd.found or 0) < odd.promised:
                continue
            try:
                set_size(odd.path, odd.promised, made)
            except OSError as error:
                raise cannot_write(error, odd.path) from error
        for folder in made:
            sync_folder(folder)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Hold the lock; leave nothing behind but what another run can use."""
        try:
            with locked(self.folder):
                try:
                    yield
                    shutil.rmtree(self.scratch, ignore_errors=True)
                finally:
                    (self.ours / "lock").unlink(missing_ok=True)
        except LockHeld as error:
            hint = "wait for it, and run the same command again"
            raise LockHeld(error.what, where=str(self.folder), hint=hint) from error
        finally:
            if not self.scratch.is_dir():
                with contextlib.suppress(OSError):  # it holds a record of a fetch
                    self.ours.rmdir()

    def _refuse_links(self, bad: Sequence[Piece]) -> None:
        """Refuse to write anywhere but in this folder: whoever packed it may have laid a link.

        Raises:
            Refused: a file that must change, or one of ours, is a link or lies behind one.
        """
        paths = {path for piece in bad for path in _written(piece)}
        paths |= {odd.path for odd in self.sizes} | {self.ours / "lock"}
        paths |= set(self.meta.file_sizes(self.scratch))
        home = self.folder.resolve()
        led = [path for path in paths if path.resolve() != home / path.relative_to(self.folder)]
        if led:
            raise Refused(
                "a symbolic link; what it leads to is not written",
                where=str(self.folder),
                hint="put the file itself there, or repair the folder that it leads to",
                findings=tuple(sorted(map(str, led))),
            )

    def _refuse_unwritable(self, bad: Sequence[Piece]) -> None:
        """Ask beforehand what can be asked: rights and room.

        Raises:
            SystemFault: a file that must change, or the folder, cannot be written.
            NoRoomOnDisk: the files, or what is fetched for them, would not fit.
        """
        # Of a piece across files nobody knows yet which file is to be written.
        paths = {path for p in bad if len(p.extents) == 1 for path in _written(p)}
        paths |= {odd.path for odd in self.sizes}
        shut = [path for path in sorted(paths) if path.exists() and not os.access(path, os.W_OK)]
        shut += [path for path in (self.folder, self.ours) if _is_shut(path)]
        if shut:
            raise SystemFault(
                f"{len(self.found)} bad pieces, and it cannot be written",
                where=str(self.folder),
                hint="make it writable (chmod u+w), or repair a copy of it",
                findings=tuple(str(path) for path in shut),
            )
        nbytes = sum(piece.nbytes for piece in bad)
        needed = min(nbytes, bytes_missing(self.folder, self.meta))
        needed += min(nbytes, BATCH_NBYTES) if self.swarm and not self.copy else 0
        if needed * ROOM > bytes_free(self.folder):
            raise _no_room(needed, self.folder)

    def _adder(self, stage: str, total: int) -> Callable[[int], None]:
        done = 0

        def add(nbytes: int) -> None:
            nonlocal done
            done += nbytes  # a lost update between threads costs a step of a progress bar
            self.on_progress(Progress(stage, min(done, total), total))

        return add

    def _report(self, missing: Sequence[Piece], *, dry_run: bool = False) -> RepairReport:
        return RepairReport(
            path=self.folder,
            reference=f"{self.meta.name}, {self.meta.reference}",
            dry_run=dry_run,
            pieces=len(self.pieces),
            bad=tuple(self.found.values()),
            sizes=self.sizes,
            to_fetch=sum(piece.nbytes for piece in missing) if self.swarm else 0,
            payload=self.payload,
            banned=tuple(dict.fromkeys(self.banned)),
            notes=tuple(self.notes),
        )


def _no_room(needed: int, folder: Path) -> NoRoomOnDisk:
    return NoRoomOnDisk(
        f"no room: {needed} bytes are needed, {bytes_free(folder)} are free",
        where=str(folder),
        hint="free some room and run the same command again; what is healed stays",
    )


def _is_shut(folder: Path) -> bool:
    return folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)


def _odd_sizes(meta: Metainfo, folder: Path) -> Iterator[OddSize]:
    for path, promised in meta.file_sizes(folder).items():
        status = status_of(path)
        found = status.nbytes if status else None
        if found != promised and parts_of(path):
            raise Refused(
                f"its parts hold {found} bytes together, {promised} are promised",
                where=str(path),
                hint="nobody knows which part is wrong: fetch the upload, or the release, again",
            )
        if found != promised:
            yield OddSize(path, found, promised)


def _written(piece: Piece) -> Iterator[Path]:
    """The files to which a piece is written, the parts where one was cut."""
    for extent in piece.extents:
        yield from (place.path for place in on_disk(extent))
