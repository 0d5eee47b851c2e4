"""A fetch that converts on the way: the raw files stay beside the output, or go piece by piece."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from moetool.convert.arriving.companion import Companion, Wish
from moetool.convert.job import ConvertReport, open_source
from moetool.errors import OutputExists
from moetool.formats import open_checkpoint
from moetool.formats.directory import is_weight_file
from moetool.release.fetch import FetchJob, FetchReport, checked, fetch
from moetool.release.live.arrivals import Arrivals
from moetool.release.live.download import download_live
from moetool.release.live.holes import refuse_without_holes
from moetool.release.live.proof import ALGORITHMS, prove
from moetool.release.live.streams import Streams
from moetool.release.torrent.download import Downloaded, download
from moetool.release.torrent.watch import Progress

if TYPE_CHECKING:
    from moetool.release.source import Source
    from moetool.release.torrent.metainfo import Metainfo
    from moetool.release.torrent.profile import SwarmOptions
    from moetool.release.torrent.session import Swarm
    from moetool.release.verify.settle import VerifyReport


@dataclass(frozen=True, slots=True)
class FetchConvertReport:
    """A release that was fetched, and what was made of it; ``kept``: the raw files are here."""

    schema: ClassVar[str] = "moetool.fetch-convert"
    version: ClassVar[int] = 1

    fetched: FetchReport
    converted: ConvertReport
    kept: bool

    @property
    def ok(self) -> bool:
        """True when every byte that was fetched is as promised; a conversion that ends is good."""
        return self.fetched.ok


def fetch_and_convert(
    source: Source,
    out: Path | None,
    wish: Wish,
    options: SwarmOptions,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> FetchConvertReport:
    """Fetch a release into ``out`` and convert it meanwhile.

    Raises:
        OutputExists: the output is there, or the raw files are and were not to be kept.
        MoetoolError: as a fetch and a conversion do; what is here of both is kept.
    """
    companions: list[Companion] = []

    def made(
        found: Source, meta: Metainfo, raw: Path, progress: Callable[[Progress], None]
    ) -> FetchJob:
        companion = Companion(wish, raw)
        companions.append(companion)
        _refuse_in_the_way(companion.out, raw, keep=wish.keep)
        kind = Keeping if wish.keep else Passing
        return kind(found, meta, raw, progress, companion=companion)

    if not wish.keep:
        options = replace(options, gives=False)  # some pieces will be holes
    try:
        fetched = fetch(source, out, options, on_progress=on_progress, kind=made)
        companion = companions[0]
        if companion.arrivals is None:
            converted = _convert_here(companion, fetched.path, on_progress)
        else:
            converted = companion.finish(fetched.path, on_progress)
    except BaseException as error:
        for companion in companions:
            companion.stop(error)
        raise
    return FetchConvertReport(fetched, converted, wish.keep)


def _refuse_in_the_way(out: Path, raw: Path, *, keep: bool) -> None:
    """Refuse before a byte is fetched what would be refused after the last one.

    Raises:
        OutputExists: with what to do instead.
    """
    if out.exists() or out.is_symlink():
        hint = "give another --convert-out, or move it away"
        raise OutputExists("is there already", where=str(out), hint=hint)
    if not keep and raw.exists():
        raise OutputExists(
            "holds raw files, which --no-keep would remove",
            where=str(raw),
            hint=f"moetool convert {raw}",
        )


def _convert_here(
    companion: Companion, raw: Path, on_progress: Callable[[Progress], None]
) -> ConvertReport:
    """Convert what was here whole and was settled just now: no piece had to come."""
    wish = companion.wish
    with open_checkpoint(raw) as checkpoint:
        checkpoint.pinned = True
        job = wish.prepared(open_source(checkpoint), companion.out)
        total = wish.passing_nbytes(job)
        return wish.run(
            job, lambda: raw, lambda done, _note: on_progress(Progress("convert", done, total))
        )


@dataclass(slots=True)
class Keeping(FetchJob):
    """A fetch beside which a conversion goes on; the raw files are what a plain fetch leaves."""

    companion: Companion = field(kw_only=True)

    def _download(self, swarm: Swarm, have: list[bool]) -> Downloaded:
        if self.companion.arrivals is not None:  # what had come turned out to be bad on the disk
            self.companion.spoil()
            return download(swarm, self.meta, self.partial, have, self.on_progress)
        arrivals = Arrivals(self.meta, self.partial)
        self.companion.begin(arrivals)
        return download_live(swarm, arrivals, have, self.on_progress, self.companion.note)


@dataclass(slots=True)
class Passing(FetchJob):
    """A fetch whose raw files go as soon as what was made of them is on the disk.

    Nobody gets pieces from us, for some are holes. In the end the folder of the conversion remains.
    """

    companion: Companion = field(kw_only=True)

    @property
    def result(self) -> Path:
        """The folder that remains: the conversion's."""
        return self.companion.out

    def _complete(self, swarm: Swarm, have: list[bool]) -> VerifyReport:
        refuse_without_holes(self.partial)
        ahead = max(1, self.companion.wish.ahead_nbytes // self.meta.piece_length)
        arrivals = Arrivals(self.meta, self.partial, ahead)
        sizes = self.meta.file_sizes(self.partial)
        weights = {path for path in sizes if is_weight_file(path.name)}
        streams = Streams(arrivals, lambda: dict.fromkeys(weights, ALGORITHMS))
        try:
            self.companion.begin(arrivals, streams)
            outcome = download_live(
                swarm, arrivals, have, self.on_progress, self.companion.note, streams.nudge
            )
            self.payload, self.banned = outcome.payload, outcome.banned
            streams.finish()
        finally:
            streams.close()
        return checked(prove(self.source, arrivals, streams, weights))

    def _publish(self) -> None:
        """Wait for the conversion, and remove what it was made of."""
        self.companion.finish(self.partial, self.on_progress)
        shutil.rmtree(self.partial)
