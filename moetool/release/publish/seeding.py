"""A folder served to the swarm: which torrent, whether every piece is right, for how long.

Nothing in the folder is written to. The pieces are hashed by us before anybody can connect, so
that what is wrong is named; libtorrent then reads them once more, for it has no other way to come
by the state "complete" that would not open the files for writing.
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from moetool.errors import DigestMismatch, Interrupted, SourceChanged, SystemFault, UsageFault
from moetool.files.partial import refuse_partial
from moetool.release.magnet import Magnet, format_magnet, is_tracker
from moetool.release.pieces import Piece, count_pieces, find_bad, pieces_of
from moetool.release.provenance import read_recorded_torrent
from moetool.release.source import read_torrent_file
from moetool.release.torrent.alerts import raise_disk_errors
from moetool.release.torrent.download import Stay
from moetool.release.torrent.layers import with_layers
from moetool.release.torrent.profile import SwarmOptions, profile
from moetool.release.torrent.selection import selected
from moetool.release.torrent.session import Swarm
from moetool.release.torrent.watch import Sample

if TYPE_CHECKING:
    from moetool.release.torrent.metainfo import Metainfo

LISTEN_TIMEOUT_S = 10.0
SETTLE_S = 5.0  # from the end of libtorrent's check to the state that follows from it
_CHECKING = ("queued_for_checking", "checking_files", "checking_resume_data")
_AGAIN = "run the same command again to go on"
MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class SeedOptions:
    """How to reach the swarm, where to listen and how long to give.

    ``reach.port`` 0 takes any that is free. ``host`` is the one address to listen on, None: all of
    the interface. Behind a proxy nobody can reach us: then peers are called, those of trackers and
    those named. ``ratio`` counts copies of the release and ``time_s`` seconds, None: no end.
    """

    reach: SwarmOptions = field(default_factory=SwarmOptions)
    host: str | None = None
    ratio: float | None = None
    time_s: float | None = None

    @property
    def interfaces(self) -> str:
        """In libtorrent's spelling (listen_interfaces)."""
        if self.host:
            return f"{_bracketed(self.host)}:{self.reach.port}"
        return str(profile(self.reach)["listen_interfaces"])

    def where(self, port: int) -> str:
        """Where peers find us, in words; ``port`` is the one that was got."""
        if proxy := self.reach.proxy:
            return f"nowhere: peers are called through {_bracketed(proxy.host)}:{proxy.port}"
        return f"{_bracketed(self.host or self.reach.interface or '*')}:{port}"


@dataclass(frozen=True, slots=True)
class Given:
    """What was given so far: payload bytes, seconds, copies of the release; and what goes on.

    Padding counts as payload, so of many small files one copy may be more than a ratio of 1.
    """

    uploaded: int = 0
    seconds: float = 0.0
    ratio: float = 0.0
    rate_bytes_s: int = 0
    peers: int = 0


@dataclass(frozen=True, slots=True)
class SeedReport:
    """What a seeding gave; ``ended`` is the limit that was reached, ratio or time."""

    schema: ClassVar[str] = "moetool.seed"
    version: ClassVar[int] = 1

    path: Path
    info_hash: str | None
    info_hash_v2: str | None
    magnet: str
    nbytes: int
    uploaded: int
    seconds: float
    ratio: float
    ended: str

    @property
    def ok(self) -> bool:
        """Every piece was right, else nothing would have been served."""
        return True


def find_torrent(path: Path, given: Path | None) -> tuple[Metainfo, Path]:
    """The torrent of a folder or a file, and the folder in which its files lie.

    It is the one given, else what a fetch recorded, else NAME.torrent beside.

    Raises:
        UsageFault: there is none, or there are two of them that differ.
        HostileTorrent: it is refused.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  # unlike resolve it keeps the name given
    folder = path if path.is_dir() else path.parent
    beside = path.with_name(path.name + ".torrent") if path.name else path
    if given is not None:
        return read_torrent_file(given), folder
    recorded = read_recorded_torrent(path) if path.is_dir() else None
    near = read_torrent_file(beside) if beside.is_file() else None
    if recorded and near and recorded.hashes != near.hashes:
        raise UsageFault(
            f"two torrents speak of it: {recorded.hashes[0]}, as it was fetched, and "
            f"{near.hashes[0]}, in {beside.name}",
            where=str(path),
            hint="choose with --torrent; the record of a fetch is .moetool/release.torrent",
        )
    if recorded and selected(recorded) is not None:
        raise UsageFault(
            "only some files of the release were fetched; seeding wants all of them",
            where=str(path),
            hint="fetch it into the same folder by a link without so=",
        )
    found = near or recorded  # the same; the file has piece layers, the record may have none
    if found is None:
        hint = "moetool publish makes one; or give --torrent"
        raise UsageFault("no torrent of it is known", where=str(path), hint=hint)
    return found, folder


def check(
    meta: Metainfo, folder: Path, on_bytes: Callable[[int], None] = lambda _: None
) -> Metainfo:
    """Hash every piece; the torrent with the piece layers that v2 peers ask for.

    Raises:
        DigestMismatch: files lack, have another size, or pieces are wrong: all are listed.
        NotFetched: a part of a release.
    """
    refuse_partial(folder, "seeding")
    faults = []
    for path, nbytes in meta.file_sizes(folder).items():
        if not path.is_file():
            faults.append(f"{_name(path, folder)} is not there")
        elif path.stat().st_size != nbytes:
            faults.append(f"{_name(path, folder)}: {path.stat().st_size} bytes, not {nbytes}")
    if not faults:
        meta = with_layers(meta, folder)
        pieces = pieces_of(meta, folder)
        bad = find_bad(pieces, on_bytes)
        faults = list(_by_file(bad, folder))
    if faults:
        raise DigestMismatch(
            "is not what the torrent promises, and is not seeded",
            where=str(folder),
            hint="moetool repair mends it",
            findings=tuple(faults),
        )
    return meta


def seed(
    meta: Metainfo,
    folder: Path,
    options: SeedOptions,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
    on_listening: Callable[[str, str], None] = lambda _magnet, _where: None,
    on_progress: Callable[[Given], None] = lambda _: None,
) -> SeedReport:
    """Check every piece, and serve them until a limit is reached.

    Args:
        meta: the torrent.
        folder: its files lie directly in it.
        options: where and how long.
        on_bytes: called with the bytes checked since the last call, from any thread.
        on_listening: called once with the magnet and the place where peers find us.
        on_progress: called several times a second.

    Raises:
        SystemFault: the port cannot be had (that is known first), or a file cannot be read.
        DigestMismatch: see `check`.
        SourceChanged: a file changed since it was checked.
        Interrupted: says what was given so far.
    """
    given = Given()
    try:
        with _listening(options, _trackers(meta, options)) as (swarm, port):
            stay = _join(swarm, check(meta, folder, on_bytes), folder)
            magnet = _magnet(meta, options, port)
            on_listening(magnet, options.where(port))
            began = time.monotonic()
            while True:
                _take_alerts(stay)
                given = _given(stay.handle.status(), meta, time.monotonic() - began)
                now = Sample(time.monotonic(), peers=given.peers)
                swarm.call_again(now, stay.handle)
                on_progress(given)
                ended = _limit(given, options)
                if ended:
                    return _report(meta, folder, magnet, given, ended)
    except KeyboardInterrupt as error:
        raise Interrupted(_words(given), hint=_AGAIN) from error
    except Interrupted as error:
        raise Interrupted(_words(given), exit_code=error.exit_code, hint=_AGAIN) from error


@contextmanager
def _listening(options: SeedOptions, trackers: tuple[str, ...]) -> Iterator[tuple[Swarm, int]]:
    """A session that has its port, and a closed door."""
    reach = replace(options.reach, trackers=trackers)
    with Swarm(replace(reach, port=0)) as swarm:  # no port: nobody comes in
        swarm.session.apply_settings(
            {
                "listen_interfaces": options.interfaces,
                "allow_multiple_connections_per_ip": True,
                "unchoke_slots_limit": -1,
            }
        )
        swarm.options = reach  # so that a port in use is told
        yield swarm, 0 if reach.proxy else _port(swarm, options)
        swarm.session.pause()


def _port(swarm: Swarm, options: SeedOptions) -> int:
    """Wait for the port."""
    deadline = time.monotonic() + LISTEN_TIMEOUT_S
    while time.monotonic() < deadline:
        for _ in swarm.alerts(None):  # type: ignore[arg-type]  # those of no torrent
            pass
        if swarm.session.is_listening() and (port := swarm.session.listen_port()):
            return port
    raise SystemFault("cannot listen for peers", where=options.interfaces)


def _join(swarm: Swarm, meta: Metainfo, folder: Path) -> Stay:
    """The torrent, complete; then the door is opened."""
    # The priorities 0 mean that no piece is ever asked for, and so that no file is written to.
    stay = Stay(swarm, meta, folder, lambda _: None, [0] * count_pieces(meta))
    stay.join(())
    _wait_until_complete(stay)
    if swarm.options.proxy is None:  # a door beside it would show our address
        swarm.session.apply_settings({"enable_incoming_tcp": True, "enable_incoming_utp": True})
    return stay


def _wait_until_complete(stay: Stay) -> None:
    """Let libtorrent find that everything is there."""
    settled_s = None
    while not (status := stay.handle.status()).is_seeding:
        _take_alerts(stay)
        if str(status.state) in _CHECKING:
            settled_s = None
            continue
        settled_s = settled_s or time.monotonic()
        if time.monotonic() - settled_s > SETTLE_S:
            raise SourceChanged("changed since it was checked", where=str(stay.folder))


def _take_alerts(stay: Stay) -> None:
    for alert in stay.swarm.alerts(stay.handle):
        raise_disk_errors(alert, stay.folder, stay.meta)


def _given(status: Any, meta: Metainfo, seconds: float) -> Given:  # noqa: ANN401  # as in `alerts`
    return Given(
        uploaded=status.total_payload_upload,
        seconds=seconds,
        ratio=status.total_payload_upload / meta.nbytes,
        rate_bytes_s=status.upload_payload_rate,
        peers=status.num_peers,
    )


def _limit(given: Given, options: SeedOptions) -> str:
    if options.ratio is not None and given.ratio >= options.ratio:
        return "ratio"
    if options.time_s is not None and given.seconds >= options.time_s:
        return "time"
    return ""


def _magnet(meta: Metainfo, options: SeedOptions, port: int) -> str:
    """The link; with our own address where one was chosen, for no other is known to be ours."""
    alone = options.host and not ipaddress.ip_address(options.host).is_unspecified
    peers = (f"{_bracketed(options.host or '')}:{port}",) if alone else ()
    trackers = _trackers(meta, options)
    return format_magnet(
        Magnet(meta.info_hash, meta.info_hash_v2, meta.name, trackers, meta.web_seeds, peers)
    )


def _trackers(meta: Metainfo, options: SeedOptions) -> tuple[str, ...]:
    own = tuple(url for url in meta.trackers if is_tracker(url))
    return tuple(dict.fromkeys(own + options.reach.trackers))


def _report(meta: Metainfo, folder: Path, magnet: str, given: Given, ended: str) -> SeedReport:
    return SeedReport(
        path=folder,
        info_hash=meta.info_hash,
        info_hash_v2=meta.info_hash_v2,
        magnet=magnet,
        nbytes=meta.nbytes,
        uploaded=given.uploaded,
        seconds=round(given.seconds, 3),
        ratio=round(given.ratio, 4),
        ended=ended,
    )


def _words(given: Given) -> str:
    return f"interrupted; {given.uploaded} bytes were given, ratio {given.ratio:.2f}"


def _by_file(bad: list[Piece], folder: Path) -> Iterator[str]:
    numbers: dict[Path, list[int]] = {}
    for piece in bad:
        for extent in piece.extents:
            numbers.setdefault(extent.path, []).append(piece.index)
    for path, indices in numbers.items():
        shown = ", ".join(map(str, indices[:MAX_NAMED])) + " …" * (len(indices) > MAX_NAMED)
        noun = "piece is" if len(indices) == 1 else "pieces are"
        yield f"{_name(path, folder)}: {len(indices)} {noun} wrong: {shown}"


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
