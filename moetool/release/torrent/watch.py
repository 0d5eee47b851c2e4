"""When a download goes on, when it must begin anew, and why nothing comes: pure decisions.

libtorrent says nothing when a magnet finds no peer, when the disk is full or when it has banned
the only good seeder. The last is a bug of 2.1.1: a peer's trust is a four-bit number that wraps
from 7 to -8, so a peer that gave many good pieces is banned at the first bad piece it shares with
a corrupt one (arvidn/libtorrent: include/libtorrent/aux_/torrent_peer.hpp, src/torrent.cpp). So
each banned peer is questioned: asked alone, it is either good, or guilty beyond doubt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

Peer = tuple[str, int]  # address, port

REJOIN_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is; rates in bytes per second, ``note`` says why nothing comes."""

    stage: str
    bytes_done: int = 0
    bytes_total: int = 0
    pieces_done: int = 0
    pieces_total: int = 0
    rate_bytes_s: int = 0
    peers: int = 0
    eta_s: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """What can be seen of the swarm at one moment; ``done`` counts verified bytes.

    ``payload`` counts all bytes that came, also those of pieces that are not whole yet.
    ``availability`` is how many copies of each piece the connected peers have together, -1 when
    that is not known. ``trackers`` is how many there are, ``answered`` how many gave an answer.
    """

    now_s: float
    done: int = 0
    payload: int = 0
    peers: int = 0
    seeds: int = 0
    availability: float = -1.0
    trackers: int = 0
    answered: int = 0
    dht_nodes: int | None = None
    banned: int = 0


class Decision(Enum):
    """What to do next."""

    GO_ON = "go on"
    QUESTION = "ask the next banned peer alone"
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
    _payload: int = -1
    _payload_s: float = 0.0
    _done: int = -1
    _done_s: float = 0.0

    @property
    def banned(self) -> set[Peer]:
        """Who was banned after a bad piece; only the guilty have surely sent one."""
        return self.guilty.union(self.suspects, self._questioned)

    def ban(self, peer: Peer) -> None:
        """Take note of a ban; while one peer is questioned it can only be that one."""
        if self.asked is not None:
            self.guilty.add(self.asked)
        elif peer not in self.guilty and peer not in self.suspects:
            self.suspects.append(peer)

    def hash_failed(self) -> None:
        """Take note of a bad piece; questioned alone, the peer is guilty of it."""
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
        if sample.now_s - self._done_s >= self.stall_timeout_s:
            return Decision.GIVE_UP
        quiet = sample.now_s - self._payload_s >= self.rejoin_after_s
        if self.asked is not None and (quiet or self.asked in self.guilty):
            return Decision.QUESTION if self.suspects else Decision.REJOIN
        if self.asked is None and quiet and self.suspects:
            return Decision.QUESTION
        return Decision.GO_ON

    def next_suspect(self, now_s: float) -> Peer:
        """Take the next peer to be questioned; the clock of silence starts again."""
        self.asked = self.suspects.pop(0)
        self._questioned.add(self.asked)
        self._payload, self._payload_s = -1, now_s
        return self.asked

    def rested(self) -> None:
        """The clocks of silence start again: for a while nothing was asked for."""
        self._done = self._payload = -1

    def rejoined(self, now_s: float) -> None:
        """Everybody but the guilty is asked again."""
        self.asked = None
        self._payload, self._payload_s = -1, now_s


def why_nothing_comes(sample: Sample) -> str:
    """Say in one line why a download stands still, or why no peer gives the metadata."""
    reasons = []
    if sample.peers == 0:
        reasons.append("0 peers")
        if sample.trackers:
            reasons.append(f"{sample.answered} of {sample.trackers} trackers answered")
        else:
            reasons.append("no trackers")
        if sample.dht_nodes is None:
            reasons.append("DHT is off")
        else:
            reasons.append(f"{sample.dht_nodes} DHT nodes")
    else:
        reasons.append(f"{sample.peers} peers, {sample.seeds} of them seeds")
        if 0 <= sample.availability < 1 and not sample.seeds:
            reasons.append(f"together they hold {sample.availability:.0%} of one copy")
    if sample.banned:
        reasons.append(f"{sample.banned} peers sent bad pieces and are banned")
    return ", ".join(reasons)
