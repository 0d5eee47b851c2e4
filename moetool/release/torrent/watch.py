"""When a download goes on and when it must begin anew: pure decisions, on a clock of its own.

libtorrent says nothing when it has banned the only good seeder. That is a bug of 2.1.1: a peer's
trust is a four-bit number that wraps from 7 to -8, so a peer that gave many good pieces is banned
at the first bad piece it shares with a corrupt one (arvidn/libtorrent:
include/libtorrent/aux_/torrent_peer.hpp, src/torrent.cpp). So each banned peer is questioned:
asked alone, it is either good, or guilty beyond doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

Peer = tuple[str, int]  # address, port

REJOIN_AFTER_S = 30.0
FAILS_TO_SINGLE = 3  # of one piece: then one peer at a time is asked for it


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is; rates in bytes per second, ``note`` says why nothing comes.

    ``told`` is a line that is to be said once: what the doctor found (``cause`` names it in one
    word), or what was done about it. ``have`` has a bool for each piece, ``ends`` names the files
    in ``folder`` of which both ends are here: what has a header can be looked into. ``order`` is
    sequential or rarest, empty while it is not chosen (see `order`).
    """

    stage: str
    bytes_done: int = 0
    bytes_total: int = 0
    pieces_done: int = 0
    pieces_total: int = 0
    rate_bytes_s: int = 0
    peers: int = 0
    eta_s: float | None = None
    note: str = ""
    told: str = ""
    cause: str = ""
    have: Sequence[bool] = ()
    ends: tuple[str, ...] = ()
    folder: Path | None = None
    order: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """What can be seen of the swarm at one moment; ``pieces`` counts those that are right.

    ``done`` counts bytes that are here, also of pieces that are not whole: what comes of a piece
    that turns out to be bad is taken off again. ``payload`` counts all bytes that came, bad ones
    too. ``availability`` is how many copies of each piece the connected peers have together, -1
    when that is not known; ``lacking`` are wanted pieces that none of them has. ``trackers`` is how
    many there are, ``answered`` how many gave an answer. ``known`` counts peers of whom an address
    is known, ``poor`` those that had nothing for us, ``choking`` those that have it and do not
    give. ``failing`` is the piece that was wrong most often (``fails`` times), ``metadata_nbytes``
    the smallest size of the metadata that a peer says; ``without_metadata`` counts who has none.
    """

    now_s: float
    pieces: int = 0
    done: int = 0
    payload: int = 0
    peers: int = 0
    seeds: int = 0
    availability: float = -1.0
    trackers: int = 0
    answered: int = 0
    dht_nodes: int | None = None
    banned: int = 0
    known: int = 0
    refused: str = ""
    poor: int = 0
    choking: int = 0
    lacking: tuple[int, ...] = ()
    failing: int = -1
    fails: int = 0
    tracker_errors: tuple[tuple[str, str], ...] = ()
    web_seed_faults: tuple[str, ...] = ()
    proxied: bool = False
    proxy_error: str = ""
    wants_metadata: bool = False
    metadata_nbytes: int = 0
    without_metadata: int = 0

    @property
    def tracker_error(self) -> str:
        """What the last tracker said that did not answer as it should."""
        return self.tracker_errors[-1][1] if self.tracker_errors else ""

    @property
    def web_seed_fault(self) -> str:
        """The first web seed that cannot give pieces, and why."""
        return self.web_seed_faults[0] if self.web_seed_faults else ""


class Decision(Enum):
    """What to do next."""

    GO_ON = "go on"
    QUESTION = "ask the next banned peer alone"
    SINGLE = "ask every peer alone, for a piece fails again and again"
    REJOIN = "begin anew with everybody who is not guilty"
    GIVE_UP = "give up"


@dataclass(slots=True)
class Watchdog:
    """Judges one download from samples of it.

    ``suspects`` were banned and are to be questioned, ``asked`` is the one alone with us now,
    ``guilty`` gave a bad piece while nobody else gave anything.
    """

    stall_timeout_s: float
    rejoin_after_s: float = REJOIN_AFTER_S
    suspects: list[Peer] = field(default_factory=list)
    guilty: set[Peer] = field(default_factory=set)
    asked: Peer | None = None
    _questioned: set[Peer] = field(default_factory=set)
    _fails: int = 0  # of one piece, since the last good one
    _single: set[Peer] = field(default_factory=set)  # asked alone without having been banned
    _is_single: bool = False
    _payload: int = -1
    _payload_s: float = 0.0
    _done: int = -1
    _done_s: float = 0.0
    _pieces: int = -1
    _pieces_s: float = 0.0

    @property
    def banned(self) -> set[Peer]:
        """Who was banned after a bad piece; only the guilty have surely sent one."""
        return self.guilty | ({*self.suspects, *self._questioned} - self._single)

    def ban(self, peer: Peer) -> None:
        """Take note of a ban; while one peer is questioned it can only be that one."""
        if self.asked is not None:
            self.guilty.add(self.asked)
        elif peer not in self.guilty and peer not in self.suspects:
            self.suspects.append(peer)

    def hash_failed(self, times: int = 1) -> None:
        """Take note of a piece that was bad so often; asked alone, the peer is guilty of it."""
        self._fails = max(self._fails, times)
        if self.asked is not None:
            self.guilty.add(self.asked)

    def forgive(self) -> None:
        """Suspect nobody any longer: something else is likelier to have sent the bad piece."""
        self.suspects.clear()

    def convict(self) -> None:
        """Question nobody of those that were banned: they are known to give nothing else."""
        self._questioned.update(self.suspects)
        self.suspects.clear()

    def judge(self, sample: Sample) -> Decision:
        """Decide; a new peer, a byte or a piece since the last sample means patience."""
        if sample.payload > self._payload:
            self._payload, self._payload_s = sample.payload, sample.now_s
        if sample.done > self._done:
            self._done, self._done_s = sample.done, sample.now_s
        if sample.pieces > self._pieces:
            self._pieces, self._pieces_s = sample.pieces, sample.now_s
            self._fails = 0
        if sample.now_s - self._done_s >= self.stall_timeout_s:
            return Decision.GIVE_UP
        quiet = sample.now_s - self._payload_s >= self.rejoin_after_s
        if self.asked is not None and (quiet or self.asked in self.guilty):
            return Decision.QUESTION if self.suspects else Decision.REJOIN
        if self.asked is None and quiet and self.suspects:
            return Decision.QUESTION
        stuck = self.asked is None and sample.now_s - self._pieces_s >= self.rejoin_after_s
        if stuck and self._fails >= FAILS_TO_SINGLE and not self._is_single:
            return Decision.SINGLE
        return Decision.GO_ON

    def quiet_s(self, now_s: float) -> float:
        """How long nothing came."""
        return now_s - self._payload_s

    def single(self, peers: Iterable[Peer], now_s: float) -> Peer | None:
        """Suspect all peers, for somebody among them spoils a piece; take the first."""
        self._is_single = True
        self._single.update(set(peers) - self.banned)
        self.suspects += sorted(self._single)
        return self.next_suspect(now_s) if self.suspects else None

    def next_suspect(self, now_s: float) -> Peer:
        """Take the next peer to be questioned; the clock of silence starts again."""
        self.asked = self.suspects.pop(0)
        self._questioned.add(self.asked)
        self._payload, self._payload_s = -1, now_s
        return self.asked

    def rested(self) -> None:
        """The clocks of silence start again: for a while nothing was asked for."""
        self._done = self._payload = self._pieces = -1

    def rejoined(self, now_s: float) -> None:
        """Everybody but the guilty is asked again."""
        self.asked = None
        self._payload, self._payload_s = -1, now_s
