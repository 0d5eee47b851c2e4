"""What is proven of files that were read while they came, and of which holes are left.

Every piece was hashed before a byte of it was used; of that nothing has to be read again. Digests
of whole files are taken in the order of their bytes, while the pieces are here. A file whose pieces
came in another order, or in two runs, has none: then its RELEASE md5 is NOT COVERED, and that is
said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.extents import Claim, Digest, Extent
from moetool.release.verify.coverage import Tally
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
    from moetool.release.live.streams import Streams
    from moetool.release.source import Source

ALGORITHMS = ("md5", *RECORDED)


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
