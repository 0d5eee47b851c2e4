"""A download: the loop that waits for pieces, and joins anew where a good peer was banned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetool.release.pieces import count_pieces, ends_of
from moetool.release.resume import begun_blocks, fill_out
from moetool.release.torrent.alerts import Seen, progress_of, raise_disk_errors, stalled
from moetool.release.torrent.doctor import Diagnosis, Remedy, diagnose
from moetool.release.torrent.order import SEQUENTIAL
from moetool.release.torrent.selection import wanted_pieces
from moetool.release.torrent.session import Swarm, load
from moetool.release.torrent.watch import Decision, Peer, Progress, Sample, Watchdog
from moetool.release.torrent.web_seeds import WebSeedCheck, addresses_of

if TYPE_CHECKING:
    import libtorrent as lt

    from moetool.release.torrent.metainfo import Metainfo

_WITHOUT_WEB_SEEDS = "a piece was bad while web seeds gave some: going on with peers alone"
NOTE_AFTER_S = 2.0  # of silence; who is just met has said nothing yet
URGENT, _USUAL = 7, 4  # libtorrent's highest priority of a piece, and its default


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a download took: payload bytes, the peers that gave bad pieces, failed pieces."""

    payload: int
    banned: tuple[Peer, ...]
    failed_pieces: int


def download(
    swarm: Swarm,
    meta: Metainfo,
    folder: Path,
    have: Sequence[bool],
    on_progress: Callable[[Progress], None],
) -> Downloaded:
    """Download into ``folder`` what ``have`` does not name (a bool a piece; empty: look).

    Both ends of every file come first: a header lies there, and what has one can be inspected.

    Raises:
        NoRoomOnDisk, SystemFault: a file could not grow, or the machine said no otherwise.
        Stalled: no piece came for the stall timeout; says why.
    """
    stay = Stay(swarm, meta, folder, on_progress, _ends_first(meta))
    stay.join(have)
    stay.wait(lambda status: stay.seen.finished or status.is_seeding)
    stay.leave()
    return stay.took()


def _ends_first(meta: Metainfo) -> list[int]:
    """The priorities of all pieces, those at the ends of files higher; 0 of absent files."""
    priorities = [0] * count_pieces(meta)
    for index in wanted_pieces(meta):
        priorities[index] = _USUAL
    for index in chain.from_iterable(ends_of(meta).values()):
        priorities[index] = URGENT
    return priorities


def single_pieces(
    swarm: Swarm, meta: Metainfo, folder: Path, on_progress: Callable[[Progress], None]
) -> Stay:
    """A torrent to be asked for pieces one by one (see `Stay.get`), into an empty folder."""
    # Where nothing more is wanted for now, libtorrent would hang up on every seed.
    swarm.session.apply_settings({"close_redundant_connections": False})
    return Stay(swarm, meta, folder, on_progress, [0] * count_pieces(meta))


@dataclass(slots=True)
class Stay:
    """A torrent in a session; it is joined anew where libtorrent has banned a good peer.

    Web seeds are the first to go: an address that lies in a link, or in our own table, may hold
    another release, and each piece that it shares with a peer counts against that peer.

    ``priorities`` has a number for each piece, 0 where it is not asked for; None asks for all.
    ``order`` is that of pieces of one priority.
    """

    swarm: Swarm
    meta: Metainfo
    folder: Path
    on_progress: Callable[[Progress], None]
    priorities: list[int] | None = None
    order: str = ""
    seen: Seen = field(init=False)
    handle: Any = None
    _dog: Watchdog = field(init=False)
    _ends: dict[str, frozenset[int]] = field(init=False)
    _web_seeds: tuple[str, ...] = field(init=False)
    _check: WebSeedCheck = field(default_factory=WebSeedCheck)
    _spent: int = 0  # payload bytes before it was joined anew
    _came: int = 0

    def __post_init__(self) -> None:
        self.seen = Seen(met=set(self.swarm.met))
        self._ends = ends_of(self.meta)
        self._web_seeds = self.swarm.options.web_seeds
        self._dog = Watchdog(self.swarm.options.stall_timeout_s, self.swarm.options.rejoin_after_s)

    def join(self, have: Sequence[bool]) -> None:
        """Add the torrent (anew): alone with the suspect, or with everybody but the guilty."""
        import libtorrent as lt

        options, dog, session = self.swarm.options, self._dog, self.swarm.session
        adding = load(self.meta, self.folder)
        adding.flags = lt.torrent_flags.update_subscribe | lt.torrent_flags.apply_ip_filter
        adding.download_limit = options.max_down  # the session's do not hold for a LAN
        adding.upload_limit = options.max_up
        if self.order == SEQUENTIAL:
            adding.flags |= lt.torrent_flags.sequential_download
        is_first = self.handle is None
        if have:
            adding.have_pieces = list(have)
            fill_out(self.meta, self.folder)
            if is_first:
                adding.unfinished_pieces = begun_blocks(self.meta, self.folder, have)
        if self.priorities is not None:
            adding.piece_priorities = self.priorities
        if is_first and options.proxy is None:  # no way around the proxy
            self._check.begin(self._web_seeds, self.meta)
        if dog.asked is not None:
            flags = lt.torrent_flags
            adding.flags |= flags.disable_dht | flags.disable_pex | flags.disable_lsd
            self.handle = session.add_torrent(adding)
            self.handle.connect_peer(dog.asked)
            return
        adding.trackers = list(options.trackers)
        adding.url_seeds = list(self._web_seeds)
        adding.banned_peers = sorted(dog.guilty)
        adding.peers = sorted(self.seen.met - dog.guilty)
        self.handle = self.swarm.add(adding, without=dog.guilty)

    def get(self, pieces: Collection[int]) -> None:
        """Wait until the pieces of these numbers are on disk, as libtorrent says.

        Raises:
            NoRoomOnDisk, SystemFault, Stalled: see `download`.
        """
        assert self.priorities is not None  # else all pieces come at once
        for index in pieces:
            self.priorities[index] = URGENT
        self.handle.prioritize_pieces(self.priorities) if self.handle else self.join(())

        def are_here(status: lt.torrent_status) -> bool:
            have = status.pieces  # made anew each time it is asked for
            return all(have[index : index + 1] == [True] for index in pieces)

        self.wait(are_here)

    def follow(self, order: str) -> None:
        """Have pieces of one priority come in this order from now on (see `order`)."""
        import libtorrent as lt

        self.order, flag = order, lt.torrent_flags.sequential_download
        if order == SEQUENTIAL:
            self.handle.set_flags(flag)
        else:
            self.handle.unset_flags(flag)

    def leave(self) -> None:
        """Leave the swarm; all that came is in the files then."""
        self.swarm.flush(self.handle)
        self.swarm.session.remove_torrent(self.handle)

    def wait(self, is_done: Callable[[lt.torrent_status], bool]) -> None:
        """Go on until the status of the torrent is as wanted.

        Raises:
            NoRoomOnDisk, SystemFault, Stalled: see `download`.
        """
        swarm, dog = self.swarm, self._dog
        while True:
            status, sample = self._look()
            if is_done(status):
                return
            why = diagnose(sample)
            quiet = dog.quiet_s(sample.now_s) >= NOTE_AFTER_S
            now = self._at_ends(progress_of(status, self.meta, why if quiet else None))
            self.on_progress(now)
            swarm.call_again(sample, self.handle, dog)
            if self._must_drop_web_seeds():
                self.on_progress(replace(now, told=_WITHOUT_WEB_SEEDS))
                self._rejoin(status)
                continue
            decision = dog.judge(sample)
            for told in self._treat(why, sample, decision):
                self.on_progress(replace(now, told=told))
            match decision:
                case Decision.GIVE_UP:
                    raise stalled(sample, swarm.options.stall_timeout_s, swarm.doctor)
                case Decision.QUESTION:
                    dog.next_suspect(sample.now_s)
                case Decision.SINGLE:
                    dog.single(self._present(), sample.now_s)
                case Decision.REJOIN:
                    dog.rejoined(sample.now_s)
                case Decision.GO_ON:
                    continue
            self._rejoin(status)

    def _look(self) -> tuple[lt.torrent_status, Sample]:
        """Wait a tick; what can be seen then."""
        for alert in self.swarm.alerts(self.handle):
            raise_disk_errors(alert, self.folder, self.meta)
            self.seen.take(alert, self._dog)
        status = self.handle.status()
        sample = self.swarm.sample(self.handle, status, self.seen, banned=len(self._dog.banned))
        self._came = sample.payload
        return status, replace(sample, web_seed_faults=tuple(self._check.faults.values()))

    def _rejoin(self, status: lt.torrent_status) -> None:
        self._spent += self._came
        self.swarm.session.remove_torrent(self.handle)
        have = status.pieces
        self.join(have if any(have) else ())  # without one it may still be looking

    def _must_drop_web_seeds(self) -> bool:
        """Whether somebody was banned while web seeds gave pieces: then go on with peers alone.

        Where nobody else gives anything, libtorrent's own choice among them stands.
        """
        if not self._web_seeds or not self._dog.suspects:
            return False
        options = self.swarm.options
        # A proxy asks for the addresses itself; nobody else is to hear the names.
        known = addresses_of(self._web_seeds) if options.proxy is None else set()
        if self.seen.met.union(options.peers) <= known:
            self._dog.convict()
            return False
        self._dog.forgive()
        self._web_seeds = ()
        self.swarm.doctor.use(Remedy.LEAVE_OUT)
        return True

    def _at_ends(self, now: Progress) -> Progress:
        """The progress with the files of which both ends are here."""
        have = now.have  # of some torrents not known at first: then nothing is here
        ends = tuple(
            path
            for path, some in self._ends.items()
            if all(index < len(have) and have[index] for index in some)
        )
        return replace(now, ends=ends, folder=self.folder, order=self.order)

    def _treat(self, why: Diagnosis, sample: Sample, decision: Decision) -> Iterator[str]:
        """Do what helps against the silence, if anything does; the lines to be told of it."""
        doctor = self.swarm.doctor
        yield from self.swarm.treat(why, self._dog.quiet_s(sample.now_s))
        for url in self._check.useless.intersection(self._web_seeds):
            self.handle.remove_url_seed(url)
            self._web_seeds = tuple(other for other in self._web_seeds if other != url)
            doctor.use(Remedy.LEAVE_OUT)
            yield f"a web seed is left out: {self._check.faults[url]}"
        used = {Decision.QUESTION: Remedy.QUESTION, Decision.SINGLE: Remedy.SINGLE}.get(decision)
        if used and (told := doctor.use(used)):
            yield told

    def _present(self) -> list[Peer]:
        """The peers that are connected now."""
        return [peer.ip for peer in self.handle.get_peer_info()]

    def rested(self) -> None:
        """Begin to wait anew: for a while nothing was asked for, so nothing could come."""
        self._dog.rested()

    def took(self) -> Downloaded:
        """What it took so far."""
        banned = tuple(sorted(self._dog.banned))
        return Downloaded(self._spent + self._came, banned, self.seen.failed_pieces)
