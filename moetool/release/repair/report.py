"""What a repair found and did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.extents import Extent
    from moetool.release.torrent.watch import Peer


@dataclass(frozen=True, slots=True)
class BadPiece:
    """A piece that was wrong, the bytes of it that were, and where the right ones came from.

    ``healed_by`` is "copy", "swarm" or None: still wrong. In a dry run it says from where the
    piece would come. ``extents`` is all of the piece where nobody could compare it.
    """

    index: int
    nbytes: int
    extents: tuple[Extent, ...]
    healed_by: str | None = None


@dataclass(frozen=True, slots=True)
class OddSize:
    """A file whose size was not the promised one; ``found`` is None where it was missing."""

    path: Path
    found: int | None
    promised: int


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The outcome; ``payload`` counts bytes that came over the network.

    ``to_fetch`` is how many the pieces have that no copy holds, ``named`` says what lies at the
    bytes that were wrong, ``left`` counts the pieces that are.
    """

    schema: ClassVar[str] = "moetool.repair"
    version: ClassVar[int] = 1

    path: Path
    reference: str
    dry_run: bool
    pieces: int
    bad: tuple[BadPiece, ...] = ()
    sizes: tuple[OddSize, ...] = ()
    to_fetch: int = 0
    payload: int = 0
    banned: tuple[Peer, ...] = ()
    notes: tuple[str, ...] = ()
    named: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when every piece is as promised now."""
        return self.left == 0 and not (self.dry_run and self.sizes)

    @property
    def left(self) -> int:
        """The pieces that are wrong still."""
        return sum(self.dry_run or piece.healed_by is None for piece in self.bad)
