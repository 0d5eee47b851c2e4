"""From a hub repository to a folder whose every byte was hashed; what stays is as from a torrent.

listing    nothing on disk; the files of a commit are judged, and those wanted are chosen
lock       OUT.partial/ beside OUT, held by flock, with the listing: later runs keep to its commit
download   each file behind what is here of it
settle     one pass over everything with every claim; what an earlier run left wrong comes anew
rename     OUT.partial/ becomes OUT, once
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from moetool.durable import publish, sync_folder
from moetool.errors import Interrupted, NoRoomOnDisk, OutputExists, PlanChanged
from moetool.files.joined import Joins
from moetool.files.partial import OUR_FOLDER
from moetool.release.fetch import ROOM, checked, holds_only_ours, moved, now, remove_ours
from moetool.release.hub.door import Hub, HubOptions
from moetool.release.hub.listing import HubFile, Listing, read_listing, write_listing
from moetool.release.manifest import by_repository
from moetool.release.provenance import locked, record_digests, remember_last
from moetool.release.torrent.alerts import bytes_free
from moetool.release.torrent.watch import Progress
from moetool.release.verify.references import references, trust_lines
from moetool.release.verify.settle import VerifyReport, settle

if TYPE_CHECKING:
    from moetool.release.hub.address import HubAddress

Choose = Callable[[Mapping[str, int]], Iterable[str]]
"""Which files of a listing are wanted, by their sizes."""
_AGAIN = "run the same command again to go on"


@dataclass(frozen=True, slots=True)
class HubFetchReport:
    """The outcome of a fetch from a hub; ``payload`` counts the bytes that came now."""

    schema: ClassVar[str] = "moetool.fetch-hub"
    version: ClassVar[int] = 1

    path: Path
    repository: str
    endpoint: str
    revision: str | None
    commit: str
    release: str | None
    files: dict[str, int]
    payload: int
    already_complete: bool
    verification: VerifyReport

    @property
    def ok(self) -> bool:
        """True when every byte is as promised."""
        return self.verification.ok


def fetch_from_hub(
    address: HubAddress,
    choose: Choose,
    out: Path | None = None,
    options: HubOptions | None = None,
    *,
    include: tuple[str, ...] = (),
    release_md5: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> HubFetchReport:
    """Fetch what is wanted of a repository into ``out``, by default a folder of its name.

    ``include`` are the patterns that ``choose`` goes by; they are recorded and must stay the same.

    Raises:
        UsageFault: huggingface_hub is not installed, or ``choose`` cannot choose.
        Refused: the listing, before any file exists.
        OutputExists, PlanChanged, LockHeld: something is in the way.
        NoRoomOnDisk, SystemFault: the machine said no.
        NetworkFault: the hub does not give it.
        DigestMismatch: the bytes are not those of every reference.
        Interrupted: with what is here kept for the next run.
    """
    where = (out or Path(address.name)).absolute()
    try:
        hub = Hub(options or HubOptions())
        listing = _recorded(where, address)
        if listing is None:
            whole = hub.listing(address)
            sizes = {file.path: file.nbytes for file in whole.files}
            listing = whole.only(choose(sizes), include)
        elif listing.include != include:
            raise PlanChanged(
                f"begun with --include {' '.join(listing.include) or '(none)'}",
                where=str(where),
                hint="give the same --include as before, or another --out",
            )
        return _HubJob(hub, listing, where, on_progress, release_md5).run()
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; what is here is kept", hint=_AGAIN) from error
    except Interrupted as error:
        raise Interrupted(error.what, exit_code=error.exit_code, hint=_AGAIN) from error


def _recorded(out: Path, address: HubAddress) -> Listing | None:
    """The listing that an earlier run of the same fetch took: its commit stays the one."""
    for folder in (out, out.with_name(out.name + ".partial")):
        listing = read_listing(folder) if folder.is_dir() else None
        if (
            listing
            and listing.repository.casefold() == address.repository.casefold()
            and address.revision in {listing.revision, listing.commit}
        ):
            return listing
    return None


@dataclass(slots=True)
class _HubJob:
    """One fetch whose listing is judged."""

    hub: Hub
    listing: Listing
    out: Path
    on_progress: Callable[[Progress], None]
    release_md5: str | None
    payload: int = 0

    @property
    def partial(self) -> Path:
        """The folder in which the files gather."""
        return self.out.with_name(self.out.name + ".partial")

    def run(self) -> HubFetchReport:
        """Do it, from the lock to the rename."""
        self._refuse_foreign()
        with locked(self.partial):
            self._refuse_foreign()
            if self.out.exists():
                report = self._settle(self.out)
                if not self._bad(report):
                    if holds_only_ours(self.partial):
                        remove_ours(self.partial)
                    return self._finish(checked(report), already=True)
            write_listing(self.partial, self.listing)
            self._take_back()
            report = self._complete()
            write_listing(self.partial, replace(self.listing, fetched_at=now()))
            record_digests(self.partial, report)
            self._publish()
            return self._finish(moved(report, self.partial, self.out))

    def _refuse_foreign(self) -> None:
        """Only a folder that a fetch of the same files made may be touched."""
        for folder in (self.out, self.partial):
            if not folder.exists():
                continue
            found = read_listing(folder) if folder.is_dir() else None
            fresh = folder == self.partial and folder.is_dir() and holds_only_ours(folder)
            if not fresh and (found is None or not _same(found, self.listing)):
                of = f" (it is {found.repository} at {found.commit[:8]})" if found else ""
                raise OutputExists(
                    f"exists and is not from {self.listing.reference}{of}",
                    where=str(folder),
                    hint="give another --out, or move it away",
                )

    def _complete(self) -> VerifyReport:
        """Fetch, settle; what was here before and is wrong is fetched once more, from its start."""
        held = {file.path for file in self.listing.files if self._size(file)}
        while True:
            self._download()
            report = self._settle(self.partial)
            rotten = self._bad(report) & held
            if not rotten:
                return checked(report)
            for path in rotten:
                (self.partial / path).unlink(missing_ok=True)
            held -= rotten

    def _download(self) -> None:
        done = sum(map(self._size, self.listing.files))
        total = self.listing.nbytes
        if bytes_free(self.partial) < (total - done) * ROOM:
            raise NoRoomOnDisk(
                f"no room: {total - done} bytes are still to come, "
                f"{bytes_free(self.partial)} are free",
                where=str(self.partial),
                hint="free some room and run the same command again; what is here is kept",
            )
        # Small files first: what the tensors mean is here while these come, for plans.
        for file in sorted(self.listing.files, key=lambda file: file.nbytes):

            def tell(nbytes: int, name: str = file.path) -> None:
                nonlocal done
                done += nbytes
                self.payload += max(0, nbytes)
                self.on_progress(Progress("download", done, total, note=name))

            path = self.partial / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self.partial / OUR_FOLDER / "whole"
            self.hub.get(self.listing, file, path, scratch, tell)
            if not file.nbytes:
                path.touch()

    def _size(self, file: HubFile) -> int:
        path = self.partial / file.path
        return path.stat().st_size if path.is_file() else 0

    def _bad(self, report: VerifyReport) -> set[str]:
        """The files of which the hub's own digest or size does not hold."""
        named = {
            item.reference.partition("#")[2]
            for item in report.unsettled
            if item.reference.startswith(self.listing.reference)
        }
        sized = {
            extent.path.name
            for item in report.unsettled
            if item.reference == "size"
            for extent in item.extents
        }
        return named | {file.path for file in self.listing.files if Path(file.path).name in sized}

    def _settle(self, folder: Path) -> VerifyReport:
        release = by_repository(self.listing.repository)
        md5 = self.release_md5 or (release.release_md5 if release else None)
        files: dict[Path, int | None] = dict(self.listing.file_sizes(folder))
        report = settle(
            references(folder, None, release=release, release_md5=md5),
            Joins(files).files(files),
            on_progress=lambda done, total: self.on_progress(Progress("verify", done, total)),
        )
        return replace(report, trust=trust_lines(report, None, release, self.listing))

    def _take_back(self) -> None:
        """Undo the publication of a folder that has bad bytes; see `release.fetch`."""
        if not self.out.exists():
            return
        for path in self.out.iterdir():
            if path.name != OUR_FOLDER:
                path.rename(self.partial / path.name)
        remove_ours(self.out)
        sync_folder(self.out.parent)

    def _publish(self) -> None:
        shutil.rmtree(self.partial / OUR_FOLDER / "whole", ignore_errors=True)
        folders = {self.partial}
        for path in self.listing.file_sizes(self.partial):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            folders.add(path.parent)
        for folder in folders:
            sync_folder(folder)
        publish(self.partial, self.out)
        (self.out / OUR_FOLDER / "lock").unlink()

    def _finish(self, report: VerifyReport, *, already: bool = False) -> HubFetchReport:
        remember_last(self.out)
        release = by_repository(self.listing.repository)
        return HubFetchReport(
            path=self.out,
            repository=self.listing.repository,
            endpoint=self.listing.endpoint,
            revision=self.listing.revision,
            commit=self.listing.commit,
            release=release.name if release else None,
            files={file.path: file.nbytes for file in self.listing.files},
            payload=self.payload,
            already_complete=already,
            verification=report,
        )


def _same(one: Listing, other: Listing) -> bool:
    return (one.repository, one.commit, one.files) == (other.repository, other.commit, other.files)
