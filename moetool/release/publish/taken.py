"""Digests of pieces taken while files are written: then nothing of them is read again.

    convert ─bytes, front to back─> file
                    └─> SHA-1 of each piece, root of each piece's leaves ─> publish

What cannot be told beforehand is not guessed: `publish.run` chooses the length of a piece by what
lies in the folder, and what was taken for another length, or of a file that changed since, is not
asked for. It is read then, as ever, so the torrent is the same in any case.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from moetool.release.publish.forms import hybrid_wanted
from moetool.release.torrent.create import choose_piece_length
from moetool.release.verify.digests import HASHES, BlockHash
from moetool.release.verify.hashing import Computed

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.release.publish.run import Plan
    from moetool.release.verify.hashing import Wanted


class FilePieces:
    """Both digests of each piece of a file; each may be fed from a thread of its own."""

    def __init__(self, piece_length: int) -> None:
        self.sha1 = BlockHash(HASHES["sha1"], piece_length)
        self.merkle = BlockHash(HASHES["sha256-merkle"], piece_length)

    def settled(self, wanted: list[Wanted]) -> dict[Wanted, Computed]:
        """The digests, by what is wanted of this file: a SHA-1 and a root for each piece, in turn.

        Call it once: the padding of the last piece is hashed here.
        """
        self.sha1.update(memoryview(bytes(wanted[-2].zeros if wanted else 0)))
        pairs = zip(self.sha1.finish(), self.merkle.finish(), strict=True)
        hexes = chain.from_iterable(pairs)
        return {want: Computed(hex=found) for want, found in zip(wanted, hexes, strict=True)}


class TakenPieces:
    """What was taken of the files of one folder, which will have about ``nbytes`` bytes in all."""

    def __init__(self, nbytes: int) -> None:
        self.piece_length = choose_piece_length(nbytes)
        self._files: dict[str, tuple[FilePieces, tuple[int, int]]] = {}

    def begin(self) -> FilePieces:
        """The digests of one file more, from its first byte on."""
        return FilePieces(self.piece_length)

    def keep(self, path: Path, pieces: FilePieces) -> None:
        """Take note of a finished file; it may move with its folder, and not change any more."""
        self._files[path.name] = pieces, _state(path)

    def known(self, made: Plan) -> dict[Wanted, Computed]:
        """What publishing a folder wants and is known; ask once."""
        found: dict[Wanted, Computed] = {}
        if made.v1_only or made.piece_length != self.piece_length:
            return found
        for file in made.files:
            pieces, state = self._files.get(file.path, (None, None))
            if pieces is not None and state == _state(made.folder / file.path):
                wanted = hybrid_wanted(made.folder, [file], made.piece_length, len(made.listing))
                found |= pieces.settled(list(wanted))
        return found


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
