"""What is proven of files that were read while they came, and of which holes are left.

Every piece was hashed before a byte of it was used; of that nothing has to be read again. Digests
of whole files are taken in the order of their bytes, while the pieces are here. A file whose pieces
came in another order, or in two runs, has none: then its RELEASE md5 is NOT COVERED, and that is
said.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.extents import Claim, Digest, Extent, LocalFile
from moetool.release.live.holes import punch
from moetool.release.verify.coverage import Tally
from moetool.release.verify.digests import HASHES
from moetool.release.verify.hashing import Wanted, read_digests
from moetool.release.verify.references import references, trust_lines
from moetool.release.verify.settle import (
    RECORDED,
    Coverage,
    FileVerdict,
    Settled,
    VerifyReport,
    Word,
)

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.release.live.arrivals import Arrivals
    from moetool.release.source import Source

_CHUNK = 1 << 20
ALGORITHMS = ("md5", *RECORDED)


class Streams:
    """The digests of whole files, each taken from its front on as far as the pieces are here."""

    def __init__(self, arrivals: Arrivals, files: Mapping[Path, int]) -> None:
        self._arrivals = arrivals
        self._files = {path: _Stream(path, nbytes) for path, nbytes in files.items()}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="digests")

    def nudge(self) -> None:
        """Have what is new taken, in a thread."""
        self._pool.submit(self._try)

    def advance(self) -> None:
        """Take all that can be taken."""
        with self._lock:
            for stream in self._files.values():
                stream.advance(self._arrivals)

    def give_back(self, ranges: Iterable[Extent]) -> None:
        """Give ranges back to the disk, after what can be taken of them was taken.

        Raises:
            SystemFault: the machine said no.
        """
        held = list(ranges)
        with self._lock:
            for stream in {extent.path: self._files[extent.path] for extent in held}.values():
                stream.advance(self._arrivals)
            for extent in held:
                stream = self._files[extent.path]
                stream.is_broken |= stream.position < extent.end
            punch(held)

    def digests(self, path: Path) -> dict[str, str]:
        """The digests of a file by algorithm; empty where they could not be taken to the end."""
        stream = self._files[path]
        if stream.is_broken or stream.position < stream.nbytes:
            return {}
        return {name: found.hexdigest() for name, found in stream.hashes.items()}

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _try(self) -> None:
        try:
            self.advance()
        except BaseException as error:  # noqa: BLE001  # whoever waits must hear of it
            self._arrivals.fail(error)


class _Stream:
    """The digests of one file up to a position."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path, self.nbytes, self.position, self.is_broken = path, nbytes, 0, False
        self.hashes = {name: HASHES[name]() for name in ALGORITHMS}

    def advance(self, arrivals: Arrivals) -> None:
        while self.position < self.nbytes and not self.is_broken:
            index = arrivals.covering(self.path, self.position, 1)[0]
            if not arrivals.has(index):
                return
            here = next(e for e in arrivals.pieces[index].extents if e.path == self.path)
            with LocalFile(self.path) as file:
                while self.position < here.end:
                    content = file.pread(self.position, min(_CHUNK, here.end - self.position))
                    for found in self.hashes.values():
                        found.update(memoryview(content))
                    self.position += len(content)


def prove(source: Source, arrivals: Arrivals, streams: Streams, weights: set[Path]) -> VerifyReport:
    """Say what is known of every file; ``weights`` are those that ``streams`` has read.

    Call it when every piece is here or was used by an earlier run.
    """
    meta, folder = arrivals.meta, arrivals.folder
    sizes = meta.file_sizes(folder)
    claims = references(folder, None, release=source.release, release_md5=source.release_md5)
    listed: dict[Path, list[Claim]] = defaultdict(list)
    for claim in claims:
        listed[claim.extents[0].path].append(claim)
    found = {path: streams.digests(path) for path in weights} | _whole(set(sizes) - weights, sizes)
    files, unsettled = [], []
    for path, nbytes in sizes.items():
        verdict, wrong = _judge(arrivals, path, nbytes, listed[path], found[path])
        files.append(verdict)
        unsettled += wrong
    word = Word.MISMATCH if unsettled else Word.MATCH
    report = VerifyReport(word, tuple(files), tuple(unsettled))
    notes = tuple(f"note     {file.path.name}: {note}" for file in files for note in file.notes)
    return replace(report, trust=(*trust_lines(report, meta, source.release), *notes))


def _whole(paths: set[Path], sizes: Mapping[Path, int]) -> dict[Path, dict[str, str]]:
    wanted = {
        (path, name): Wanted((Extent(path, 0, sizes[path]),), name)
        for path in paths
        for name in ALGORITHMS
    }
    found = read_digests(wanted.values())
    return {path: {name: found[wanted[path, name]].hex for name in ALGORITHMS} for path in paths}


def _judge(
    arrivals: Arrivals, path: Path, nbytes: int, claims: list[Claim], found: Mapping[str, str]
) -> tuple[FileVerdict, list[Settled]]:
    """What is known of one file: its pieces, and the digests of the whole where they are known."""
    meta = arrivals.meta
    pieces = arrivals.covering(path, 0, nbytes)
    n_here = sum(arrivals.has(index) for index in pieces)
    algorithm = arrivals.pieces[pieces[0]].digest.algorithm if pieces else "sha1"
    coverage = [Coverage(meta.reference, algorithm, len(pieces), len(pieces), nbytes)]
    notes, unsettled = [], []
    if n_here < len(pieces):
        notes.append(f"{len(pieces) - n_here} pieces were hashed and used by an earlier run")
    for claim in claims:
        name, digest = claim.digest.algorithm, found.get(claim.digest.algorithm)
        if digest is None:
            notes.append(
                f"{name} of {claim.reference} NOT COVERED: the bytes did not come in the order of "
                "the file in one run; the pieces' digests are the proof"
            )
            continue
        matches = digest == claim.digest.hex
        coverage.append(Coverage(claim.reference, name, 1, int(matches), nbytes))
        if not matches:
            unsettled.append(
                Settled(
                    Word.MISMATCH, claim.reference, name, claim.digest.hex, digest, claim.extents
                )
            )
    tally = Tally(mismatch=nbytes) if unsettled else Tally(match=nbytes)
    word = Word.MISMATCH if unsettled else Word.MATCH
    recorded = tuple(Digest(name, found[name]) for name in RECORDED if name in found)
    return (
        FileVerdict(path, nbytes, word, tally, tuple(coverage), (), recorded, tuple(notes)),
        unsettled,
    )
