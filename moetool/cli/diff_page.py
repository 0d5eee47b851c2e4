"""A comparison as one page that needs nothing else: a picture, tables, no script, no network.

The picture has a column for each layer and a row for each expert, and rows for the router, the
attention and the norms; a cell's colour is the worst relative RMS in it. Every name is escaped:
a checkpoint may come from anybody.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from moetool.arch.schema import Role, Slot
from moetool.cli.console import safe, size
from moetool.cli.diff_text import collapse_names, number, worst_row

if TYPE_CHECKING:
    from moetool.proof.diff.report import DiffReport, TensorDifference

MAX_ROWS = 200
# The upper bound of the relative RMS, and what the legend says.
STEPS = ((0.0, "equal"), (1e-6, "≤ 1e-6"), (1e-4, "≤ 1e-4"), (1e-2, "≤ 1e-2"), (0.1, "≤ 0.1"),
         (1.0, "≤ 1"), (math.inf, "> 1 or not finite"))  # fmt: skip
ROWS = (
    ("router", {Role.ROUTER}),
    ("attention", {Role.WQ, Role.WK, Role.WV, Role.WO}),
    ("norms", {Role.ATTENTION_NORM, Role.FFN_NORM}),
)
ENDS = (Role.TOK_EMBEDDINGS, Role.NORM, Role.OUTPUT)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #ffffff; --line: #d5d5dc;
  --s0: #e9eef0; --s1: #cfe3f5; --s2: #9cc5ea; --s3: #f5d38a; --s4: #f0a34f; --s5: #dd5f3c;
  --s6: #a3123a; --good: #11703c; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ea; --paper: #16171b; --line: #3a3b43;
  --s0: #26292f; --s1: #24405c; --s2: #2f6499; --s3: #8a6a1c; --s4: #b8701f; --s5: #d4512f;
  --s6: #ff4d7d; --good: #5bd08c; --bad: #ff8a80; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; }
table.list td, table.list th { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; vertical-align: top; overflow-wrap: anywhere; }
table.picture td { width: 1.1rem; min-width: 1.1rem; height: 1.1rem; padding: 0;
  border: 1px solid var(--paper); }
table.picture th { font-size: .75rem; font-weight: 400; padding-right: .5rem; }
.s0 { background: var(--s0); } .s1 { background: var(--s1); } .s2 { background: var(--s2); }
.s3 { background: var(--s3); } .s4 { background: var(--s4); } .s5 { background: var(--s5); }
.s6 { background: var(--s6); }
.none { background: repeating-linear-gradient(45deg, var(--line) 0 2px, transparent 2px 5px); }
.legend span { display: inline-block; padding: 0 .3rem; margin-right: .8rem; }
.legend i { display: inline-block; width: 1rem; height: 1rem; vertical-align: -.15rem;
  margin-right: .3rem; }
"""


def page(report: DiffReport) -> str:
    """The whole page."""
    good = "good" if report.ok else "bad"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>moetool diff: {_text(report.verdict)}</title><style>{_STYLE}</style></head><body>",
        f'<h1>moetool diff: <span class="{good}">{_text(report.verdict)}</span></h1>',
        _sides(report),
        _damage(report),
        _experts(report),
        _structure(report),
        "<h2>Where the values differ</h2>",
        _legend(),
        _picture(report),
        _roles(report),
        _worst(report),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _text(value: object) -> str:
    """Printable and escaped."""
    return escape(safe(value), quote=True)


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]], title: str) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    if not body:
        return ""
    head = "".join(f"<th>{_text(text)}</th>" for text in titles)
    heading = f"<h2>{_text(title)}</h2>" if title else ""
    return (
        f'{heading}<div class="wide"><table class="list"><tr>{head}</tr>{body}</table></div>'
    )  # fmt: skip


def _sides(report: DiffReport) -> str:
    rows = [
        (name, side.path, side.layout, side.file_format, "/".join(side.dtypes), size(side.nbytes))
        for name, side in (("A", report.a), ("B", report.b))
    ]
    return _table(["", "checkpoint", "layout", "format", "types", "weights"], rows, "")


def _damage(report: DiffReport) -> str:
    rows = [(d.kind, d.text, d.where, "; ".join(d.details)) for d in report.damage]
    return _table(["damage", "what", "where", "details"], rows, "Named damage")


def _experts(report: DiffReport) -> str:
    rows = [
        (o.layer, " ".join(map(str, o.order)), f"router {o.router}", f"matched by {o.by}")
        for o in report.experts
    ]
    titles = ["layer", "experts of A in the order of B", "rows of the router", ""]
    return _table(titles, rows, "Order of experts")


def _structure(report: DiffReport) -> str:
    found = report.structure
    rows: list[tuple[object, ...]] = [
        (s.name, s.a, s.b, "changes what is computed" if s.changes_maths else "")
        for s in found.settings
    ]
    rows += [(name, "there", "missing", "") for name in collapse_names(found.only_a)]
    rows += [(name, "missing", "there", "") for name in collapse_names(found.only_b)]
    rows += [(s.name, list(s.a), list(s.b), s.words) for s in found.shapes]
    rows += [(f"{t.n_tensors} tensors stored as", t.a, t.b, "") for t in found.types]
    return _table(["structure", "A", "B", ""], rows[:MAX_ROWS], "Structure")


def _legend() -> str:
    marks = "".join(
        f'<span><i class="s{level}"></i>{_text(words)}</span>'
        for level, (_, words) in enumerate(STEPS)
    )
    return (
        '<p class="legend">Relative RMS of the worst tensor: '
        f'{marks}<span><i class="none"></i>not compared</span></p>'
    )


def _picture(report: DiffReport) -> str:
    layers = range(min(report.a.n_layers, report.b.n_layers))
    experts = range(max(report.a.n_experts, report.b.n_experts))
    compared = frozenset(report.structure.common)
    titles = [f"expert {expert}" for expert in experts] or ["feed-forward"]
    titles += [title for title, _ in ROWS]
    cells = _cells(report, compared)
    head = "".join(f"<th>{layer}</th>" for layer in layers)
    body = "".join(
        f"<tr><th>{_text(title)}</th>"
        + "".join(_cell(cells.get((title, layer)), f"layers.{layer} {title}") for layer in layers)
        + "</tr>"
        for title in titles
    )
    ends = "".join(
        f"<tr><th>{role.value}</th>{_cell(_level_of(report, compared, role), role.value)}</tr>"
        for role in ENDS
    )
    return (
        f'<div class="wide"><table class="picture"><tr><th>layer</th>{head}</tr>{body}</table>'
        f'<table class="picture">{ends}</table></div>'
    )


Found = tuple[float, str]  # the worst relative RMS, and the tensor


def _cells(report: DiffReport, compared: frozenset[Slot]) -> dict[tuple[str, int], Found]:
    """The worst tensor by row of the picture and layer; nothing where nothing was compared."""
    cells: dict[tuple[str, int], Found] = {}
    worst = {tensor.slot: tensor for tensor in report.tensors}
    for slot in compared:
        if slot.layer is not None:
            place = (_row(slot), slot.layer)
            cells[place] = max(cells.get(place, (-1.0, "")), _found(worst.get(slot)))
    return cells


def _row(slot: Slot) -> str:
    """The row of the picture in which a tensor is."""
    if slot.expert is not None:
        return f"expert {slot.expert}"
    return next((title for title, roles in ROWS if slot.role in roles), "feed-forward")


def _level_of(report: DiffReport, compared: frozenset[Slot], role: Role) -> Found | None:
    slot = Slot(role)
    if slot not in compared:
        return None
    return _found(next((tensor for tensor in report.tensors if tensor.slot == slot), None))


def _found(tensor: TensorDifference | None) -> Found:
    return (tensor.severity, tensor.name) if tensor else (0.0, "")


def _cell(found: Found | None, title: str) -> str:
    if found is None:
        return f'<td class="none" title="{_text(title)}: not compared"></td>'
    distance, name = found
    level = next(index for index, (most, _) in enumerate(STEPS) if distance <= most)
    level = max(level, int(bool(name)))  # a difference too small for a number is one
    said = f"{number(distance if math.isfinite(distance) else None)} in {name}" if name else "equal"
    return f'<td class="s{level}" title="{_text(title)}: {_text(said)}"></td>'


def _roles(report: DiffReport) -> str:
    rows = [
        (g.role, g.n_tensors, g.n_differing, number(g.worst_rel_rms) if g.n_differing else "",
         g.worst or "")
        for g in report.roles
    ]  # fmt: skip
    return _table(["role", "tensors", "differ", "worst relative RMS", "in"], rows, "By role")


def _worst(report: DiffReport) -> str:
    titles = ["tensor", "differ", "relative RMS", "largest", "cosine", "ulp", "first row", "damage"]
    rows = [worst_row(tensor) for tensor in report.tensors[:MAX_ROWS]]
    return _table(titles, rows, "Worst tensors")
