"""The one template of pages with a script: self-contained, offline, nothing trusted.

    data     one JSON document in a script element that browsers do not run; ``<`` is escaped in it
    script   ours, allowed by its digest; it writes what it read as text, never as markup
    style    ours, allowed by its digest
    policy   nothing else: no network, no other script, no form, no frame

A page can be saved, mailed and opened from a file. What a checkpoint calls its tokens and tensors
stays text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetool.cli.console import safe
from moetool.errors import UsageFault
from moetool.reports import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moetool.cli.console import Console

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #ffffff; --line: #d5d5dc;
  --soft: #6a6a74; --accent: #2f6499; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ea; --paper: #16171b; --line: #3a3b43;
  --soft: #a0a0ab; --accent: #8fc1f0; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.soft { color: var(--soft); } .wide { overflow-x: auto; }
table { border-collapse: collapse; }
th { text-align: left; font-weight: 600; }
td, th { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; vertical-align: top; }
table.cells td { width: 1.9rem; height: 1.5rem; padding: 0; border: 1px solid var(--paper);
  text-align: center; font-size: .72rem; cursor: default; }
table.cells th { font-size: .75rem; font-weight: 400; padding: 0 .5rem 0 0; border: 0; }
label { margin-right: 1.2rem; } input[type=range] { vertical-align: middle; width: 16rem; }
"""

# What every script begins with: the data, and ways to build a page of text only.
PRELUDE = """
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const at = (id) => document.getElementById(id);
const make = (kind, text, parent) => {
  const made = document.createElement(kind);
  if (text !== undefined && text !== null) made.textContent = String(text);
  if (parent) parent.append(made);
  return made;
};
const table = (parent, titles, rows, kind) => {
  const made = make('table', null, parent);
  if (kind) made.className = kind;
  const head = make('tr', null, made);
  for (const title of titles) make('th', title, head);
  for (const row of rows) {
    const line = make('tr', null, made);
    for (const cell of row) make('td', cell, line);
  }
  return made;
};
const scale = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const shade = (share) => {
  const at = Math.min(Math.max(share, 0), 1) * (scale.length - 1);
  const low = Math.min(Math.floor(at), scale.length - 2);
  return scale[low].map((x, i) => Math.round(x + (scale[low + 1][i] - x) * (at - low)));
};
const paint = (cell, share) => {
  const [r, g, b] = shade(share);
  cell.style.backgroundColor = `rgb(${r}, ${g}, ${b})`;
  cell.style.color = 0.299 * r + 0.587 * g + 0.114 * b < 128 ? '#ffffff' : '#000000';
};
const percent = (share) => `${(100 * share).toFixed(1)} %`;
"""


def page(title: str, body: str, script: str, data: object, style: str = "") -> str:
    """The whole page.

    Args:
        title: shown above it; it may hold names from files.
        body: our own markup, without any such name.
        script: runs behind `PRELUDE`, which gives it ``data``.
        data: what the script shows; dataclasses and tuples as `moetool.reports` writes them.
        style: rules behind those that all pages share.
    """
    # In a function of its own: a window has names like top that a script cannot declare again.
    code, rules = f"(() => {{{PRELUDE}{script}}})();", STYLE + style
    policy = (
        f"default-src 'none'; script-src '{_digest(code)}'; style-src '{_digest(rules)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    name = escape(safe(title), quote=True)
    return "\n".join([
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{name}</title><style>{rules}</style></head><body>",
        f"<h1>{name}</h1>",
        body,
        f'<script type="application/json" id="data">{_json(data)}</script>',
        f"<script>{code}</script></body></html>\n",
    ])  # fmt: skip


def check_target(path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Refuse before the work what cannot be written after it, or would replace weights.

    Raises:
        UsageFault: the file has no name of its kind, or no folder to be in.
    """
    if path is None:
        return
    if path.suffix not in suffixes:
        raise UsageFault(
            f"such a file has a name that ends in {' or '.join(suffixes)}",
            where=str(path),
            hint=f"give {path.stem}{suffixes[0]}",
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageFault(
            "no such folder, or a folder itself",
            where=str(path),
            hint="make the folder first, or name another file",
        )


def write_targets(console: Console, files: Iterable[tuple[Path, bytes]]) -> None:
    """Write what was asked for, each file whole or not at all, and say so."""
    from moetool.durable import write_durably

    for path, content in files:
        write_durably(path, content)
        console.note(f"wrote {safe(path)}")


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _json(data: object) -> str:
    """No ``<``, and so no end of the element, whatever a text in it says."""
    made: Any = plain(data)
    text = json.dumps(made, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c")
