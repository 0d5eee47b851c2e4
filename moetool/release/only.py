"""`fetch --only`: pieces of chosen tensors, in a folder with a record of what is not here.

    look      what is here already is hashed; the record says no more than that
    headers   the small files whole, of the others what their readers ask for
    choose    which bytes are wanted, by the headers; the pieces that hold them, and no others
    settle    every claim on bytes that are here
    record    what was hashed; the first time, OUT.partial/ becomes OUT

OUT is there when what was asked for is here, and its record says that it is a part. More is added
in place: a byte that the record does not name is read by nobody. A fetch without ``--only`` makes
it whole: it goes back to OUT.partial/, record and all, and on as any fetch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from moetool.errors import FormatError, Interrupted, MoetoolError, NoRoomOnDisk
from moetool.files.partial import (
    Partial,
    find_partial,
    forget_partial,
    is_partial,
    write_partial,
)
from moetool.release.fetch import ROOM, FetchJob, FetchReport, checked, fetch, moved, now
from moetool.release.live.arrivals import Arrivals
from moetool.release.live.download import download_live
from moetool.release.live.headers import is_small, sources_in
from moetool.release.magnet import format_magnet
from moetool.release.peek.torrent import folder_of_weights
from moetool.release.pieces import count_pieces
from moetool.release.provenance import record_digests, write_origin
from moetool.release.resume import fill_out, prepare
from moetool.release.torrent.alerts import bytes_free

if TYPE_CHECKING:
    from moetool.extents import Extent, LocalFile
    from moetool.release.source import Source
    from moetool.release.torrent.download import Downloaded
    from moetool.release.torrent.metainfo import Metainfo
    from moetool.release.torrent.profile import SwarmOptions
    from moetool.release.torrent.session import Swarm
    from moetool.release.torrent.watch import Progress


@dataclass(frozen=True, slots=True)
class Wish:
    """What to fetch of a release: ``only`` in the user's words.

    ``choose`` is given the folder in which the weights lie and its files by name, whose bytes come
    when they are read, and says which bytes are wanted. ``is_weights`` tells by its name whether a
    file belongs to a checkpoint.
    """

    only: tuple[str, ...]
    choose: Callable[[Path, Mapping[str, LocalFile]], Iterable[Extent]]
    is_weights: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class FetchOnlyReport:
    """A part of a release: ``only`` is all that was selected so far.

    ``held_nbytes`` of ``nbytes`` are here; ``rest`` is the command that fetches the others, None
    where there are none.
    """

    schema: ClassVar[str] = "moetool.fetch-only"
    version: ClassVar[int] = 1

    fetched: FetchReport
    only: tuple[str, ...]
    held_nbytes: int
    nbytes: int
    rest: str | None

    @property
    def ok(self) -> bool:
        """True when every byte that was fetched is as promised."""
        return self.fetched.ok


def fetch_only(
    source: Source,
    out: Path | None,
    wish: Wish,
    options: SwarmOptions,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> FetchOnlyReport:
    """Fetch a part of a release into ``out``, or more of it.

    Raises:
        UsageFault: a selector names nothing; the headers that told so are kept.
        Refused: a v2 torrent whose link does not tell the digests of single pieces.
        MoetoolError: as `fetch` does; what is here is kept.
    """

    def made(
        found: Source, meta: Metainfo, where: Path, progress: Callable[[Progress], None]
    ) -> FetchJob:
        return OnlyJob(found, meta, where, progress, wish=wish)

    fetched = fetch(source, out, options, on_progress=on_progress, kind=made)
    partial, nbytes = find_partial(fetched.path), sum(f.nbytes for f in fetched.verification.files)
    if partial is None:
        return FetchOnlyReport(fetched, wish.only, nbytes, nbytes, None)
    return FetchOnlyReport(
        fetched, partial.only, partial.held_nbytes, partial.nbytes, partial.command()
    )


@dataclass(slots=True)
class OnlyJob(FetchJob):
    """A fetch of the pieces that hold what is wanted; into OUT itself where a part is there."""

    wish: Wish = field(kw_only=True)
    _chosen: tuple[int, ...] = ()

    @property
    def place(self) -> Path:
        """The folder in which the files are."""
        return self.out if self.out.exists() else self.partial

    def _work(self, swarm: Swarm) -> FetchReport:
        if self.out.exists() and not is_partial(self.out):
            return FetchJob._work(self, swarm)  # all of it is here  # noqa: SLF001
        place = self.place
        arrivals = Arrivals(self.meta, place, ahead=count_pieces(self.meta))
        write_origin(place, self.meta, self._origin(fetched_at=None))
        before = self._selected_before()
        if not is_partial(place):
            self._record((), arrivals, ())
        have = prepare(self.meta, place, self.on_progress)
        here = [index for index in arrivals.pieces if have and have[index]]
        self._record(before, arrivals, here)
        outcome = self._fetch(swarm, arrivals, have)
        self.payload, self.banned = outcome.payload, outcome.banned
        fill_out(self.meta, place)
        self._sync()
        partial = self._record((*before, *self.wish.only), arrivals, arrivals.checked)
        report = checked(self._settle(place))
        write_origin(place, self.meta, self._origin(fetched_at=now()))
        record_digests(place, report)
        if partial.is_whole:
            forget_partial(place)
        if place == self.out:
            self._drop_empty_partial()
        else:
            self._publish()
        return self._finish(moved(report, place, self.out), kept=len(here))

    def _selected_before(self) -> tuple[str, ...]:
        """What earlier runs were asked for; of a record that is damaged nothing is left but that.

        What is here is hashed all the same.
        """
        try:
            partial = find_partial(self.place)
        except FormatError:
            return ()
        return partial.only if partial else ()

    def _record(self, only: Iterable[str], arrivals: Arrivals, here: Collection[int]) -> Partial:
        extents = [extent for index in here for extent in arrivals.pieces[index].extents]
        sizes = self.meta.file_sizes(self.place)
        link = format_magnet(self.source.magnet)
        return write_partial(self.place, link, only, sizes, extents)

    def _fetch(self, swarm: Swarm, arrivals: Arrivals, have: Sequence[bool]) -> Downloaded:
        """Download in this thread, for signals arrive here, and choose in another."""
        with ThreadPoolExecutor(1, thread_name_prefix="choose") as pool:
            choosing = pool.submit(self._choose, arrivals)
            try:
                outcome = download_live(swarm, arrivals, have, self._teller(arrivals))
            except BaseException as error:
                known = isinstance(error, MoetoolError)
                arrivals.fail(error if known else Interrupted("the download was ended"))
                if isinstance(error, NoRoomOnDisk):
                    raise self._too_little_room(arrivals) from error
                raise
            choosing.result()
        return outcome

    def _choose(self, arrivals: Arrivals) -> None:
        try:
            self._plan(arrivals)
        except BaseException as error:  # whoever downloads must hear of it
            arrivals.fail(error)
            raise

    def _plan(self, arrivals: Arrivals) -> None:
        """Have the headers, and ask for the pieces of what is wanted by them.

        Raises:
            NoRoomOnDisk: they would not fit.
        """
        is_weights, sizes = self.wish.is_weights, self.meta.file_sizes(arrivals.folder)
        small = [
            index
            for path, nbytes in sizes.items()
            if is_small(path.name, nbytes, is_weights)
            for index in arrivals.covering(path, 0, nbytes)
        ]
        arrivals.ask(small)
        directory = arrivals.folder.joinpath(*folder_of_weights(self.meta, is_weights))
        directory.mkdir(parents=True, exist_ok=True)  # nothing of it may have come yet
        wanted = [
            index
            for extent in self.wish.choose(directory, sources_in(arrivals, directory, is_weights))
            for index in arrivals.covering(extent.path, extent.offset, extent.nbytes)
        ]
        self._chosen = tuple(dict.fromkeys([*sorted(arrivals.wanted), *wanted]))
        if self._missing_nbytes(arrivals) * ROOM > bytes_free(arrivals.folder):
            raise self._too_little_room(arrivals)
        arrivals.plan(self._chosen)

    def _teller(self, arrivals: Arrivals) -> Callable[[Progress], None]:
        """Progress by the pieces that are wanted, for the rest of the release is not."""

        def tell(progress: Progress) -> None:
            wanted = self._chosen or arrivals.wanted
            here = arrivals.checked.intersection(wanted)
            done, total = (
                sum(arrivals.pieces[index].nbytes for index in some) for some in (here, wanted)
            )
            rate = progress.rate_bytes_s
            self.on_progress(
                replace(
                    progress,
                    stage="download" if self._chosen else "headers",
                    bytes_done=done,
                    bytes_total=total if self._chosen else 0,
                    pieces_done=len(here),
                    pieces_total=len(wanted),
                    eta_s=(total - done) / rate if rate and self._chosen else None,
                )
            )

        return tell

    def _missing_nbytes(self, arrivals: Arrivals) -> int:
        checked = arrivals.checked
        return sum(arrivals.pieces[index].nbytes for index in self._chosen if index not in checked)

    def _too_little_room(self, arrivals: Arrivals) -> NoRoomOnDisk:
        missing, free = self._missing_nbytes(arrivals), bytes_free(arrivals.folder)
        return NoRoomOnDisk(
            f"no room: {missing} bytes are still to come, {free} are free",
            where=str(arrivals.folder),
            hint="free some room and run the same command again; what is here is kept",
        )

    def _sync(self) -> None:
        for path in self.meta.file_sizes(self.place):
            with path.open("rb") as file:
                os.fsync(file.fileno())
