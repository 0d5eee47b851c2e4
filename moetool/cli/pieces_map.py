"""The pieces of a download in one line of block characters: which parts are here."""

from __future__ import annotations

from collections.abc import Sequence

SHADES = " ░▒▓█"
PLAIN_SHADES = " .:+#"
MIN_WIDTH = 10


def pieces_map(have: Sequence[bool], width: int, *, plain: bool = False) -> str:
    """Draw ``have`` (a bool for each piece) over ``width`` columns; plain: ASCII only.

    A column stands for a run of pieces and is full only when each of them is here. Empty where
    there is nothing to draw, or no room.
    """
    columns = min(width - 2, len(have))
    if columns < min(MIN_WIDTH, len(have)) or not have:
        return ""
    shades = PLAIN_SHADES if plain else SHADES
    cells = []
    for column in range(columns):
        run = have[column * len(have) // columns : (column + 1) * len(have) // columns]
        cells.append(shades[_level(sum(run), len(run), len(shades) - 1)])
    return f"[{''.join(cells)}]" if plain else f"▕{''.join(cells)}▏"


def _level(here: int, pieces: int, full: int) -> int:
    """From 0 for none to ``full`` for all; some is neither."""
    if here in {0, pieces}:
        return full if here else 0
    return min(full - 1, max(1, here * full // pieces))


def as_hex(have: Sequence[bool]) -> str:
    """The same for programs: a bit for each piece, the first one highest, as peers tell it."""
    bits = "".join("1" if here else "0" for here in have)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").hex() if bits else ""
