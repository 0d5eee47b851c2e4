"""What the terminal says of a routing, and the table of the cache in the page's words too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.cli.console import Column, Console, safe, size
from moetool.cli.heat_map import print_heat_map

if TYPE_CHECKING:
    from moetool.cli.route import RouteReport
    from moetool.experts.changes import Changes
    from moetool.experts.summary import Favourite, LayerRouting
    from moetool.experts.what_if import CacheRow, Pace

MOST_LIKED = 12  # experts whose favourite tokens are printed
FEW = 100  # tokens a second; below that a fraction says something


def shares(report: RouteReport) -> list[list[float]]:
    """Each expert's share of the tokens of a layer, which sum to k."""
    return [[count / report.n_tokens for count in layer.load] for layer in report.layers]


def render_route(console: Console, report: RouteReport) -> None:
    """Heat map, layers, favourites, cache, and what changed."""
    k, n_experts = report.n_experts_per_tok, report.n_experts
    if report.continuation:
        console.line(f"{safe(report.continuation)}\n")
    print_heat_map(console, shares(report), [layer.layer for layer in report.layers],
                   "percent of the choices")  # fmt: skip
    console.line()
    columns = [Column("layer", right=True), Column("balance", right=True),
               Column("heaviest", right=True), Column("best's share", right=True),
               Column("undecided", right=True), Column("as before", right=True),
               Column("most together"), Column("unused")]  # fmt: skip
    console.table(columns, [_layer_cells(layer, report.n_tokens) for layer in report.layers])
    console.line(
        f"an even router: balance 1, heaviest 1; without memory as before {k / n_experts:.1%}, a "
        f"pair together {k * (k - 1) / (n_experts * max(n_experts - 1, 1)):.1%} of the tokens\n"
    )
    _render_liked(console, report)
    titles = ["slots", "memory", "hits", "pinned", "missed/token", *link_titles(report)]
    console.line("if only some experts of each layer were in memory:", "bold")
    console.table([Column(title, right=True) for title in titles],
                  [cache_cells(row) for row in report.cache])  # fmt: skip
    if report.changes:
        _render_changes(console, report.changes)
    console.line(
        f"\n{report.n_tokens} tokens in windows of {report.window}, on {report.device} in "
        f"{report.dtype}"
    )


def _layer_cells(layer: LayerRouting, n_tokens: int) -> tuple[str, ...]:
    pairs = [
        (count, i, j)
        for i, row in enumerate(layer.together)
        for j, count in enumerate(row)
        if i < j
    ]
    count, i, j = max(pairs, default=(0, 0, 0))
    return (
        str(layer.layer), f"{layer.balance:.3f}", f"{layer.heaviest:.2f}",
        f"{layer.top1_share:.1%}", f"{layer.weight_entropy:.3f}", f"{layer.again:.1%}",
        f"{i}+{j} {count / n_tokens:.1%}" if count else "",
        " ".join(map(str, layer.unused)),
    )  # fmt: skip


def _render_liked(console: Console, report: RouteReport) -> None:
    """The experts whose favourite token says most, strongest first."""
    by_expert: dict[tuple[int, int], list[Favourite]] = {}
    for liked in report.favourites:
        by_expert.setdefault((liked.layer, liked.expert), []).append(liked)
    ranked = sorted(by_expert.items(), key=lambda item: -item[1][0].lift)[:MOST_LIKED]
    if not ranked:
        return
    rows = [
        (layer, expert, "  ".join(f"{liked.text!r} x{liked.lift:.1f}" for liked in each))
        for (layer, expert), each in ranked
    ]
    console.table([Column("layer", right=True), Column("expert", right=True),
                   Column("tokens it gets more often than others")], rows)  # fmt: skip
    console.line()


def link_titles(report: RouteReport) -> list[str]:
    """A column of the cache for each bandwidth."""
    paces = report.cache[0].paces if report.cache else ()
    return [f"tok/s at {size(pace.nbytes_s)}/s" for pace in paces]


def cache_cells(row: CacheRow) -> list[str]:
    """A row of the cache, as text."""
    return [
        str(row.slots), size(row.held_nbytes), f"{row.hit_rate:.1%}", f"{row.pinned_hit_rate:.1%}",
        size(row.missed_nbytes_per_token), *map(_pace, row.paces),
    ]  # fmt: skip


def _pace(pace: Pace) -> str:
    return f"{pace.tokens_s:,.0f}" if pace.tokens_s >= FEW else f"{pace.tokens_s:.2g}"


def _render_changes(console: Console, changes: Changes) -> None:
    console.line(f"\nagainst {safe(changes.path)}:", "bold")
    columns = [Column(title, right=True) for title in
               ("layer", "same experts", "same best", "changed here first", "choices kept",
                "weights moved", "margin", "of flips")]  # fmt: skip
    rows = [
        (layer.layer, f"{layer.same_set:.2%}", f"{layer.same_best:.2%}", f"{layer.first:.2%}",
         f"{layer.kept:.2%}", f"{layer.weight:.2%}",
         "" if layer.margin is None else f"{layer.margin:.3g}",
         "" if layer.flip_margin is None else f"{layer.flip_margin:.3g}")
        for layer in changes.layers
    ]  # fmt: skip
    console.table(columns, rows)
    console.line(f"{changes.untouched:.2%} of the tokens go to the same experts in every layer")
    for flip in changes.flips[:3]:
        console.line(
            f"  token {flip.position} {safe(repr(flip.token))} in layer {flip.layer}: experts "
            f"{' '.join(map(str, flip.a))}, there {' '.join(map(str, flip.b))}, margin "
            f"{flip.margin:.3g}"
        )
