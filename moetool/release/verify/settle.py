"""Settle a list of claims in one read of the bytes, and say what is proven of each file.

    MATCH        every byte is covered by a publisher's digest, and all digests match
    MISMATCH     a digest differs, the file is missing or has another size
    UNREADABLE   the machine could not read a range, and nothing is known to be wrong
    NOT COVERED  some bytes have no digest but those that the file carries for itself, or were
                 never fetched: of a partial release, claims on bytes that are a hole are left

Nothing here knows formats or torrents: a reference is a name, and behind a ``#`` the part of it
(``torrent 5546272d#17``). Claims that a file makes of itself find damage, but prove no origin.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

from moetool.errors import InTheWay
from moetool.extents import Claim, Digest, Extent, Range, subtract
from moetool.files import Holdings
from moetool.files.joined import status_of
from moetool.release.verify.coverage import Tally, suspects, tally
from moetool.release.verify.hashing import Computed, Trouble, Wanted, read_digests

RECORDED = ("sha256", "xxh3_128")


class Word(Enum):
    """The only words for what a check found."""

    MATCH = "MATCH"
    MISMATCH = "MISMATCH"
    NOT_COVERED = "NOT COVERED"
    UNREADABLE = "UNREADABLE"


@dataclass(frozen=True, slots=True)
class Settled:
    """One claim that does not match: expected and found digest, or why there is none."""

    word: Word
    reference: str
    algorithm: str
    expected: str
    found: str
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What one reference says of one file: claims, how many match, the bytes they span.

    ``absent`` more claims are on bytes that were never fetched.
    """

    reference: str
    algorithm: str
    claims: int
    matched: int
    nbytes: int
    absent: int = 0


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """What is known of one file; ``tally`` counts its bytes, ``digests`` are recorded for later."""

    path: Path
    nbytes: int
    word: Word
    tally: Tally
    coverage: tuple[Coverage, ...] = ()
    damage: tuple[Extent, ...] = ()
    digests: tuple[Digest, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of a verification; ``damaged`` names what lies at the wrong bytes."""

    schema: ClassVar[str] = "moetool.verify"
    version: ClassVar[int] = 1

    verdict: Word
    files: tuple[FileVerdict, ...]
    unsettled: tuple[Settled, ...] = ()
    damaged: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when nothing is wrong or unreadable; what is not covered is no damage."""
        return self.verdict in {Word.MATCH, Word.NOT_COVERED}

    @property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum(file.nbytes for file in self.files)


@dataclass(slots=True)
class _Ledger:
    """What was found of one file while claims are settled."""

    good: list[Range] = field(default_factory=list)
    proven: list[Range] = field(default_factory=list)
    bad: list[Range] = field(default_factory=list)
    unread: list[Range] = field(default_factory=list)
    counts: dict[tuple[str, str], list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0, 0, 0, 0])
    )
    digests: list[Digest] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def settle(
    claims: Iterable[Claim],
    files: Mapping[Path, int | None],
    *,
    self_claims: Iterable[Claim] = (),
    record: Sequence[str] = RECORDED,
    known: Mapping[Wanted, Computed] | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    threads: int | None = None,
) -> VerifyReport:
    """Settle every claim, and read for that each file once, or what is not known of it.

    Args:
        claims: what publishers say of the bytes.
        files: the files to judge, each with the size that was promised, or None.
        self_claims: what the files say of themselves (zip CRC-32s).
        record: whole-file digests to compute besides, whether or not somebody claims them.
        known: digests that were just taken of these bytes where they lie; those are not read again.
        on_progress: called with the bytes read and the bytes to read.
        threads: files, or parts of files, in work at a time.

    Raises:
        Refused: a path is no regular file.
        InTheWay: a file changed while it was read.
    """
    holdings = Holdings()
    outside, absent = _sort(claims, holdings)
    inside, absent_inside = _sort(self_claims, holdings)
    before = {path: _identity(path) for path in files}
    whole = {path for path in files if holdings.hold(Extent(path, 0, _nbytes(before[path])))}
    wanted = _wanted(
        [*outside, *inside], {path: before[path] for path in files if path in whole}, record
    )
    known = known or {}
    left = [want for want in wanted if want not in known]
    on_bytes = _adder(on_progress, _bytes_wanted(left))
    found = {**known, **read_digests(left, threads=threads, on_bytes=on_bytes)}
    _refuse_changed(before)
    ledgers = {path: _Ledger() for path in files}
    unsettled: list[Settled] = []
    # What matches is entered first: it says which file of a failing piece cannot be to blame.
    for group, published in ((outside, True), (inside, False)):
        settled = [(claim, found[_want(claim)]) for claim in group]
        settled.sort(key=lambda pair: pair[1].hex != pair[0].digest.hex)
        for claim, outcome in settled:
            unsettled += _enter(claim, outcome, ledgers, before, published=published)
    for claim in (*absent, *absent_inside):
        _enter_absent(claim, ledgers)
    for path, promised in files.items():
        unsettled += _check_size(path, promised, before[path], ledgers[path])
        if path in whole:
            _enter_records(path, before[path], record, found, ledgers[path])
        else:
            ledgers[path].notes.append("some of its bytes were never fetched")
    verdicts = tuple(_judge(path, before[path], ledgers[path]) for path in files)
    return VerifyReport(_worst(file.word for file in verdicts), verdicts, tuple(unsettled))


def _sort(claims: Iterable[Claim], holdings: Holdings) -> tuple[list[Claim], list[Claim]]:
    """The claims all of whose bytes are here, and the others."""
    here: list[Claim] = []
    absent: list[Claim] = []
    for claim in claims:
        (here if all(map(holdings.hold, claim.extents)) else absent).append(claim)
    return here, absent


def _nbytes(identity: tuple[int, int, int] | None) -> int:
    return identity[0] if identity else 0


def _identity(path: Path) -> tuple[int, int, int] | None:
    status = status_of(path)
    return None if status is None else (status.nbytes, status.mtime_ns, status.inode)


def _refuse_changed(before: Mapping[Path, tuple[int, int, int] | None]) -> None:
    for path, identity in before.items():
        if _identity(path) != identity:
            hint = "wait until nothing writes to it, and verify again"
            raise InTheWay("changed while it was read", where=str(path), hint=hint)


def _want(claim: Claim) -> Wanted:
    return Wanted(claim.extents, claim.digest.algorithm)


def _wanted(
    claims: Sequence[Claim],
    identities: Mapping[Path, tuple[int, int, int] | None],
    record: Sequence[str],
) -> list[Wanted]:
    wanted = [_want(claim) for claim in claims]
    for path, identity in identities.items():
        if identity is not None:
            wanted += [Wanted((Extent(path, 0, identity[0]),), name) for name in record]
    return wanted


def _bytes_wanted(wanted: Sequence[Wanted]) -> int:
    """An estimate for progress: each file up to the last byte that somebody wants."""
    ends: dict[Path, int] = defaultdict(int)
    for want in wanted:
        for extent in want.extents:
            ends[extent.path] = max(ends[extent.path], extent.end)
    return sum(ends.values())


def _adder(on_progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    done = 0

    def add(nbytes: int) -> None:
        nonlocal done
        done += nbytes  # a lost update between threads costs a step of a progress bar, no more
        on_progress(min(done, total), total)

    return add


def _enter(
    claim: Claim,
    outcome: Computed,
    ledgers: dict[Path, _Ledger],
    identities: Mapping[Path, tuple[int, int, int] | None],
    *,
    published: bool,
) -> list[Settled]:
    """Enter one settled claim in the ledgers of its files; return it if it does not match."""
    name = claim.reference.partition("#")[0]
    matches = outcome.trouble is None and outcome.hex == claim.digest.hex
    excused = set() if matches else _excused(claim, ledgers)
    counted: set[Path] = set()  # of parts that are one file, a piece may have two that lie apart
    for extent in claim.extents:
        ledger = ledgers.get(extent.path)
        if ledger is None:
            continue
        span = (extent.offset, extent.end)
        counts = ledger.counts[name, claim.digest.algorithm]
        counts[0] += extent.path not in counted
        counts[1] += matches and extent.path not in counted
        counted.add(extent.path)
        counts[2] += extent.nbytes
        identity = identities[extent.path]
        match outcome.trouble:
            case None if matches:
                ledger.good.append(span)
                ledger.proven += [span] if published else []
            case None:
                if extent not in excused:
                    ledger.bad.append(span)
            case Trouble.UNREADABLE:
                ledger.unread.append(span)
            case Trouble.SHORT if identity is None or identity[0] < extent.end:
                ledger.bad.append(span)
            case Trouble.SHORT:
                pass  # the neighbour across a piece is short: of this file nothing is known
    if matches or outcome.trouble is Trouble.SHORT:
        return []
    word = Word.UNREADABLE if outcome.trouble else Word.MISMATCH
    found = outcome.detail if outcome.trouble else outcome.hex
    digest = claim.digest
    return [Settled(word, claim.reference, digest.algorithm, digest.hex, found, claim.extents)]


def _enter_absent(claim: Claim, ledgers: dict[Path, _Ledger]) -> None:
    """Count a claim on bytes that were never fetched: it is neither kept nor broken."""
    name = claim.reference.partition("#")[0]
    for extent in claim.extents:
        if extent.path in ledgers:
            ledgers[extent.path].counts[name, claim.digest.algorithm][3] += 1


def _excused(claim: Claim, ledgers: Mapping[Path, _Ledger]) -> set[Extent]:
    """The parts of a piece across files of which other digests say that every byte is right.

    Where they say it of all parts, references contradict each other, and none is excused.
    """
    right = {
        extent
        for extent in claim.extents
        if extent.path in ledgers
        and not subtract([(extent.offset, extent.end)], ledgers[extent.path].good)
    }
    return right if len(right) < len(claim.extents) else set()


def _check_size(
    path: Path, promised: int | None, identity: tuple[int, int, int] | None, ledger: _Ledger
) -> list[Settled]:
    """A missing file, one that is cut short and one that goes on are all not what was promised."""
    nbytes = None if identity is None else identity[0]
    if nbytes is not None and promised in {None, nbytes}:
        return []
    expected = "a file" if promised is None else f"{promised} bytes"
    found = "missing" if nbytes is None else f"{nbytes} bytes"
    low, high = sorted((nbytes or 0, promised or 0))
    ledger.bad.append((low, high))
    ledger.notes.append(f"{found}, expected {expected}")
    extent = Extent(path, low, high - low)
    return [Settled(Word.MISMATCH, "size", "bytes", expected, found, (extent,))]


def _enter_records(
    path: Path,
    identity: tuple[int, int, int] | None,
    record: Sequence[str],
    found: Mapping[Wanted, Computed],
    ledger: _Ledger,
) -> None:
    for name in record if identity else ():
        outcome = found[Wanted((Extent(path, 0, identity[0] if identity else 0),), name)]
        if outcome.trouble is None:
            ledger.digests.append(Digest(name, outcome.hex))
        else:
            ledger.unread.append((0, identity[0] if identity else 0))
            ledger.notes.append(outcome.detail)


def _judge(path: Path, identity: tuple[int, int, int] | None, ledger: _Ledger) -> FileVerdict:
    nbytes = identity[0] if identity else 0
    wrong = suspects(ledger.bad, ledger.good)
    inside = [(start, min(stop, nbytes)) for start, stop in wrong if start < nbytes]
    counts = tally(nbytes, bad=inside, unread=ledger.unread, good=ledger.proven)
    if wrong or identity is None or ledger.bad:
        word = Word.MISMATCH
    elif counts.unreadable:
        word = Word.UNREADABLE
    elif counts.not_covered or not (ledger.counts or nbytes == 0):
        word = Word.NOT_COVERED
    else:
        word = Word.MATCH
    return FileVerdict(
        path=path,
        nbytes=nbytes,
        word=word,
        tally=counts,
        coverage=tuple(Coverage(*key, *values) for key, values in ledger.counts.items()),
        damage=tuple(Extent(path, start, stop - start) for start, stop in wrong),
        digests=tuple(ledger.digests),
        notes=tuple(dict.fromkeys(ledger.notes)),
    )


def _worst(words: Iterable[Word]) -> Word:
    found = set(words)
    order = (Word.MISMATCH, Word.UNREADABLE, Word.NOT_COVERED)
    return next((word for word in order if word in found), Word.MATCH)
