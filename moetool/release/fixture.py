"""Where the trained tiny release lies: inside an installed package, or in the repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moetool.errors import UsageFault

NAME = "tiny-mixtral-8x1m"

_PLACES = (
    Path(__file__).parents[1] / "_fixture",
    Path(__file__).parents[2] / "fixtures" / "tiny-mixtral",
)


@dataclass(frozen=True, slots=True)
class Fixture:
    """The tiny release: its folder, its .torrent, and its magnet links by form."""

    directory: Path
    torrent: Path
    magnets: Path


def find_fixture() -> Fixture:
    """Find the tiny release.

    Raises:
        UsageFault: this installation came without it.
    """
    for place in _PLACES:
        if (place / NAME).is_dir():
            return Fixture(place / NAME, place / f"{NAME}.torrent", place / "magnets.json")
    raise UsageFault(
        "the tiny release is not part of this installation",
        hint="install from a wheel or a clone of the repository",
    )
