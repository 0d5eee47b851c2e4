"""Layers x experts as a picture: on the terminal, as SVG for a page or a paper, as PNG.

A value is shown against the largest one. On the terminal each cell has a shade of its own and its
number, so it reads without colour too. Colours are those of viridis (matplotlib), which people who
see red and green alike can tell apart, and which print well in grey.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from moetool.cli.console import safe

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.cli.console import Console

Values = Sequence[Sequence[float]]  # a row for each layer, a column for each expert
Colour = tuple[int, int, int]
SCALE: tuple[Colour, ...] = (
    (68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37),
)  # fmt: skip
SHADES = " ░▒▓█"
MOST_NUMBERED = 24  # experts; beyond that a cell of a line has no room for a number
CELL, LEFT, TOP, BELOW = 22, 64, 46, 44  # of an SVG, in user units
PIXELS = 16  # of a cell of a PNG


def colour(share: float) -> Colour:
    """The colour of a value between 0 and 1."""
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(at), len(SCALE) - 2)
    r, g, b = (
        round(x + (y - x) * (at - low)) for x, y in zip(SCALE[low], SCALE[low + 1], strict=True)
    )
    return r, g, b


def print_heat_map(
    console: Console, values: Values, layers: Sequence[int], what: str, *, percent: bool = True
) -> None:
    """Print a line for each layer; ``what`` says what the numbers are.

    ``percent``: they are percent of their line; else the values themselves.
    """
    largest, n_experts = _largest(values), len(values[0])
    texts = [[_number(value, row, percent=percent) for value in row] for row in values]
    width = max(len(text) for row in texts for text in row)
    numbered = n_experts <= MOST_NUMBERED
    if numbered:
        titles = "".join(f"{expert:>{width + 1}} " for expert in range(n_experts))
        console.line(f"{'layer':>5} {titles} {what}", "bold")
    else:
        console.line(f"layer  {n_experts} experts, {what}", "bold")
    for layer, row, said in zip(layers, values, texts, strict=True):
        pieces: list[tuple[str, str | None]] = [(f"{layer:>5} ", None)]
        for value, text in zip(row, said, strict=True):
            share = value / largest
            shade = SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)]
            cell = f"{shade}{text:>{width}} " if numbered else shade
            pieces.append((cell, _style(share)))
        console.pieces(pieces)


def _number(value: float, row: Sequence[float], *, percent: bool) -> str:
    return f"{100 * value / (sum(row) or 1):3.0f}" if percent else f"{value:.3g}"


def _style(share: float) -> str:
    r, g, b = colour(share)
    dark = 0.299 * r + 0.587 * g + 0.114 * b < 128  # noqa: PLR2004  # half of full brightness
    return f"{'white' if dark else 'black'} on #{r:02x}{g:02x}{b:02x}"


def svg(values: Values, layers: Sequence[int], title: str, legend: str) -> str:
    """A picture of its own: one rectangle for each cell, whose tooltip has the value."""
    largest, n_experts = _largest(values), len(values[0])
    width = LEFT + CELL * max(n_experts, 12) + 12
    height = TOP + CELL * len(values) + BELOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"',
        f' width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="16" font-size="13">{_text(title)}</text>',
        f'<text x="{LEFT - 8}" y="{TOP - 6}" text-anchor="end">layer</text>',
    ]
    parts += [
        f'<text x="{LEFT + CELL * e + CELL // 2}" y="{TOP - 6}" text-anchor="middle">{e}</text>'
        for e in range(n_experts)
        if n_experts <= MOST_NUMBERED or e % 8 == 0
    ]
    for at, (layer, row) in enumerate(zip(layers, values, strict=True)):
        y = TOP + CELL * at
        parts.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{layer}</text>')
        for expert, value in enumerate(row):
            parts.append(
                f'<rect x="{LEFT + CELL * expert}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" '
                f'fill="{_hex(value / largest)}"><title>layer {layer} expert {expert}: '
                f"{value:.4g}</title></rect>"
            )
    parts += [*_scale_bar(height - BELOW + 12, largest, legend), "</svg>\n"]
    return "\n".join(parts)


def drawn(
    picture: Path, values: Values, layers: Sequence[int], title: str, legend: str
) -> tuple[Path, bytes]:
    """A heat map as the picture that its file's name asks for, .png or .svg."""
    if picture.suffix == ".png":
        return picture, png(values)
    return picture, svg(values, layers, title, legend).encode()


def _scale_bar(y: int, largest: float, legend: str) -> list[str]:
    steps = 10
    cells = [
        f'<rect x="{LEFT + 10 * at}" y="{y}" width="10" height="10" fill="{_hex(at / 9)}"/>'
        for at in range(steps)
    ]
    words = f"{_text(legend)}, 0 to {largest:.3g}"
    return [*cells, f'<text x="{LEFT + 10 * steps + 8}" y="{y + 9}">{words}</text>']


def png(values: Values) -> bytes:
    """The cells alone, 16 pixels each, in true colour (RFC 2083)."""
    largest = _largest(values)
    lines = []
    for row in values:
        line = b"\0" + b"".join(bytes(colour(value / largest)) * PIXELS for value in row)
        lines.append(line * PIXELS)
    width, height = PIXELS * len(values[0]), PIXELS * len(values)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    body = zlib.compress(b"".join(lines), 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data) for kind, data in ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _largest(values: Values) -> float:
    return max((value for row in values for value in row), default=0.0) or 1.0


def _hex(share: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour(share))


def _text(value: object) -> str:
    return escape(safe(value), quote=True)
