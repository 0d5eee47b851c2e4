"""Why nothing moves, in one line, and the one thing that may help: a table of causes.

libtorrent reports none of this: a magnet without peers, a swarm that lacks a piece, a seeder that
was banned by mistake and a web seed that ignores ranges all look the same, a rate of zero. The
rows stand in order: the first that holds is the cause, for it makes those below impossible to
tell. A remedy is used once in a run; who does not get well by it is not helped by more of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from moetool.release.torrent.metainfo import MAX_INFO_NBYTES
from moetool.release.torrent.watch import FAILS_TO_SINGLE, Sample

SPEAK_SHARE = 1 / 3  # of the time until banned peers are questioned: then a cause is told
UTP_SHARE = 2 / 3  # and then uTP is tried
MAX_NAMED = 5  # pieces


class Remedy(Enum):
    """What the watchdog can do; the value says what was done."""

    UTP = "uTP is allowed now, beside TCP"
    QUESTION = "joined anew without the ban list; each banned peer is asked alone"
    SINGLE = "pieces that fail are asked of one peer at a time"
    LEAVE_OUT = "web seeds that cannot give pieces are left out"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause by its short name and in words, what a person can do, and what may help by itself."""

    cause: str
    words: str
    advice: str
    remedy: Remedy | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    """A row: its name, what a person can do, when it holds, its words, and what may help."""

    cause: str
    advice: str
    holds: Callable[[Sample], bool]
    words: Callable[[Sample], str]
    remedy: Remedy | None = None


_CASES = (
    _Case(
        "metadata-too-large",
        "ask its publisher for a torrent of larger pieces; this one is refused in every form",
        lambda s: s.metadata_nbytes > MAX_INFO_NBYTES,
        lambda s: (
            f"the metadata has {s.metadata_nbytes} bytes, more than the {MAX_INFO_NBYTES} "
            "that are taken from peers"
        ),
    ),
    _Case(
        "proxy",
        "look at --proxy: its address, its name and its password",
        lambda s: not s.peers and bool(s.proxy_error),
        lambda s: f"the proxy does not serve us{_because(s.proxy_error)}",
    ),
    _Case(
        "bad-pieces",
        "name a peer that you trust with --peer",
        lambda s: s.fails >= FAILS_TO_SINGLE and not s.banned,
        lambda s: f"piece {s.failing} came {s.fails} times and was wrong each time",
        Remedy.SINGLE,
    ),
    _Case(
        "all-banned",
        "name a peer that you trust with --peer",
        lambda s: bool(s.banned) and not s.seeds,
        lambda _: "who had the pieces was banned after a bad one",
        Remedy.QUESTION,
    ),
    _Case(
        "nothing-new",
        "wait for somebody who has the rest; --tracker or --web-seeds may know one",
        lambda s: not s.peers and bool(s.poor),
        lambda s: f"{_count(s.poor, 'peer')} came and had none of the pieces that lack",
    ),
    _Case(
        "unreachable",
        "open a port with --port, so that they reach you, or name others with --peer",
        lambda s: not s.peers and bool(s.known),
        lambda s: f"{_count(s.known, 'peer')} known, none can be reached{_because(s.refused)}",
        Remedy.UTP,
    ),
    _Case(
        "no-tracker",
        "add --tracker or --peer",
        lambda s: not s.peers and bool(s.trackers) and not s.answered,
        lambda s: f"no tracker answered{_because(s.tracker_error)}",
    ),
    _Case(
        "web-seeds",
        "leave it out with --no-web-seeds, and add --tracker or --peer",
        lambda s: not s.peers and bool(s.web_seed_fault),
        lambda s: f"the web seed {s.web_seed_fault}",
        Remedy.LEAVE_OUT,
    ),
    _Case(
        "nobody",
        "add --tracker or --peer, or let the DHT be asked",
        lambda s: not s.peers,
        lambda _: "nobody is known who has it",
    ),
    _Case(
        "no-metadata",
        "give its .torrent file, or try again later",
        lambda s: s.wants_metadata and s.without_metadata >= s.peers,
        lambda _: "who is here does not have the metadata either",
    ),
    _Case(
        "metadata",
        "give its .torrent file, or try again later",
        lambda s: s.wants_metadata,
        lambda _: "who is here does not send the metadata",
    ),
    _Case(
        "incomplete",
        "wait for somebody who has the rest; --tracker or --web-seeds may know one",
        lambda s: 0 <= s.availability < 1 and not s.seeds,
        lambda s: f"{_lacking(s)}, together they hold {s.availability:.0%} of one copy",
    ),
    _Case(
        "choked",
        "wait, or open a port with --port: who can reach you is served sooner",
        lambda s: bool(s.choking) and s.choking >= s.peers,
        lambda _: "all have given their places to others; we wait in their queue",
    ),
    _Case(
        "silent",
        "run the same command again later, or name others with --peer",
        lambda _: True,
        lambda _: "they are connected and send nothing",
    ),
)


def diagnose(sample: Sample) -> Diagnosis:
    """Find the cause why nothing comes; one line, with the counts that it was read from."""
    case = next(case for case in _CASES if case.holds(sample))
    return Diagnosis(
        case.cause, f"{case.words(sample)}: {_counts(sample)}", case.advice, case.remedy
    )


@dataclass(slots=True)
class Doctor:
    """Speaks once of each cause, and prescribes each remedy once.

    ``patience_s`` is how long the watchdog bears silence before it questions banned peers.
    """

    patience_s: float
    tried: list[Remedy] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)

    def speak(self, diagnosis: Diagnosis, quiet_s: float) -> str:
        """The line to be told now; empty where it was told before, or silence is short."""
        if quiet_s < self.patience_s * SPEAK_SHARE or diagnosis.cause in self._told:
            return ""
        self._told.add(diagnosis.cause)
        return f"nothing comes: {diagnosis.words}"

    def wants_utp(self, diagnosis: Diagnosis, quiet_s: float) -> bool:
        """Whether uTP is to be allowed now: some peers are reached by nothing else."""
        is_time = quiet_s >= self.patience_s * UTP_SHARE
        return diagnosis.remedy is Remedy.UTP and is_time and Remedy.UTP not in self.tried

    def use(self, remedy: Remedy) -> str:
        """Take note that a remedy is used; the line to be told of it, empty if it was before."""
        if remedy in self.tried:
            return ""
        self.tried.append(remedy)
        return f"tried: {remedy.value}"


def findings(sample: Sample, doctor: Doctor) -> tuple[str, ...]:
    """What there is to know of a stall beside its cause, a line each."""
    said = [f"cause: {diagnose(sample).cause}"]
    said += [f"tracker {url}: {text}" for url, text in sample.tracker_errors]
    said += [f"web seed {fault}" for fault in sample.web_seed_faults]
    said += [f"tried: {remedy.value}" for remedy in doctor.tried]
    return tuple(said)


def _counts(sample: Sample) -> str:
    """The counts that a cause was read from."""
    counts = []
    if sample.peers == 0:
        counts.append("0 peers")
        if sample.trackers:
            counts.append(f"{sample.answered} of {sample.trackers} trackers answered")
        else:
            counts.append("no trackers")
        if sample.dht_nodes is None:
            counts.append("DHT is off")
        else:
            counts.append(f"{sample.dht_nodes} DHT nodes")
    else:
        counts.append(f"{_count(sample.peers, 'peer')}, {sample.seeds} of them seeds")
    if sample.proxied:
        counts.append("all through the proxy")
    if sample.banned:
        verb = "is" if sample.banned == 1 else "are"
        counts.append(f"{_count(sample.banned, 'peer')} sent bad pieces and {verb} banned")
    return ", ".join(counts)


def _lacking(sample: Sample) -> str:
    if not sample.lacking:
        return "not every piece is there"
    first = ", ".join(map(str, sample.lacking[:MAX_NAMED]))
    more = ", …" if len(sample.lacking) > MAX_NAMED else ""
    return f"nobody has {_count(len(sample.lacking), 'piece')} ({first}{more})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _because(text: str) -> str:
    return f" ({text})" if text else ""
