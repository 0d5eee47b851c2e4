"""The page of `moetool route`: the text coloured by expert, and what each layer does with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moetool.cli.console import safe
from moetool.cli.page import page

if TYPE_CHECKING:
    from moetool.cli.route import RouteReport
    from moetool.experts.trace import Trace

MOST_TOKENS = 4096  # shown as text; the sums are of all

_BODY = """
<p class="soft" id="about"></p>
<p><label>layer <input type="range" id="layer" min="0" value="0"> <b id="layer-name"></b></label>
<label>colour by <select id="rank"></select></label>
<label><input type="checkbox" id="only-changed" disabled> only what changed</label></p>
<p id="legend"></p>
<div id="text"></div>
<h2>This layer</h2>
<div id="numbers" class="soft"></div>
<div class="pair"><div><h3>choices</h3><div id="bars"></div></div>
<div><h3>chosen together</h3><div class="wide" id="together"></div></div>
<div><h3>tokens it likes most</h3><div id="likes"></div></div></div>
<h2>All layers</h2>
<div class="wide" id="layers"></div>
<h2>If only some experts were held in memory</h2>
<div class="wide" id="cache"></div>
<div id="changes"></div>
"""

_STYLE = """
#text { white-space: pre-wrap; line-height: 1.9; border: 1px solid var(--line); padding: .8rem;
  max-height: 32rem; overflow-y: auto; }
#text span { border-radius: .2rem; } #text .faint { opacity: .25; }
#text .changed { text-decoration: underline wavy; }
#legend button { margin: 0 .4rem .3rem 0; border: 1px solid var(--line); border-radius: .3rem;
  color: inherit; font: inherit; cursor: pointer; }
#legend button.on { outline: 2px solid var(--ink); }
.pair { display: flex; flex-wrap: wrap; gap: 2.5rem; } h3 { font-size: .95rem; }
.bar { display: flex; align-items: center; gap: .5rem; font-size: .85rem; }
.bar i { display: inline-block; height: .9rem; }
"""

_SCRIPT = """
const E = data.n_experts, L = data.layers.length, K = data.k, T = data.tokens.length;
const hue = (expert) => Math.round(360 * expert / E);
const tint = (expert, weight) => `hsl(${hue(expert)} 75% 50% / ${0.15 + 0.5 * weight})`;
let layer = 0, rank = 0, only = null;
const expertOf = (t, r) => data.experts[layer][t * K + r];
const weightOf = (t, r) => data.weights[layer][t * K + r] / 100;
const changedAt = (t) => data.changed !== null && data.changed[layer][t] === 1;

at('about').textContent = `${data.about} Each token is coloured by an expert that it went to; ` +
  'the stronger the colour, the larger the weight.';
at('layer').max = L - 1;
for (let r = 0; r < K; r++) make('option', r === 0 ? 'the best expert' : `expert number ${r + 1}`,
  at('rank')).value = r;
if (data.changed !== null) at('only-changed').disabled = false;

const spans = data.tokens.map((text, t) => make('span', text, at('text')));
if (data.n_tokens > T) make('p', `The first ${T} of ${data.n_tokens} tokens; all are counted.`,
  at('text')).className = 'soft';
const buttons = [];
for (let e = 0; e < E; e++) {
  const button = make('button', `expert ${e}`, at('legend'));
  button.style.backgroundColor = tint(e, 1);
  button.addEventListener('click', () => { only = only === e ? null : e; show(); });
  buttons.push(button);
}

const showText = () => spans.forEach((span, t) => {
  const expert = expertOf(t, rank), weight = weightOf(t, rank);
  span.style.backgroundColor = tint(expert, weight);
  const chosen = [];
  for (let r = 0; r < K; r++) {
    chosen.push(`expert ${expertOf(t, r)}: ${data.weights[layer][t * K + r]} %`);
  }
  span.title = `token ${t}, layer ${data.layers[layer].layer}\\n${chosen.join('\\n')}`;
  const hidden = (only !== null && expert !== only) ||
    (at('only-changed').checked && !changedAt(t));
  span.className = `${hidden ? 'faint' : ''} ${changedAt(t) ? 'changed' : ''}`;
});

const showLayer = () => {
  const it = data.layers[layer];
  at('layer-name').textContent = it.layer;
  at('numbers').textContent = `balance ${it.balance.toFixed(3)}, heaviest ` +
    `${it.heaviest.toFixed(2)} times the mean, best expert's share ${percent(it.top1_share)}, ` +
    `weight entropy ${it.weight_entropy.toFixed(3)}, ` +
    `${percent(it.again)} of choices as the token before`;
  at('bars').replaceChildren();
  const most = Math.max(...it.load), all = it.load.reduce((a, b) => a + b, 0);
  it.load.forEach((count, e) => {
    const line = make('div', null, at('bars'));
    line.className = 'bar';
    make('span', e, line);
    const bar = make('i', null, line);
    bar.style.width = `${12 * count / Math.max(most, 1)}rem`;
    bar.style.backgroundColor = tint(e, 1);
    make('span', `${count} (${percent(count / Math.max(all, 1))})`, line);
  });
  at('together').replaceChildren();
  const rows = it.together, cells = table(at('together'), ['', ...rows.keys()],
    rows.map((row, i) => [i, ...row.map((n, j) => i === j ? '' : n)]), 'cells');
  const largest = Math.max(1, ...rows.flatMap((row, i) => row.filter((_, j) => i !== j)));
  rows.forEach((row, i) => row.forEach((n, j) => {
    if (i !== j) paint(cells.rows[i + 1].cells[j + 1], n / largest);
  }));
  at('likes').replaceChildren();
  for (let e = 0; e < E; e++) {
    const liked = data.favourites.filter((f) => f.layer === it.layer && f.expert === e);
    const told = liked.map((f) => `\\u201c${f.text}\\u201d ${f.lift.toFixed(1)}\\u00d7`);
    if (liked.length) make('div', `${e}: ${told.join('  ')}`, at('likes'));
  }
};

const show = () => {
  buttons.forEach((button, e) => { button.className = only === e ? 'on' : ''; });
  showText();
  showLayer();
};
at('layer').addEventListener('input', (event) => { layer = Number(event.target.value); show(); });
at('rank').addEventListener('input', (event) => { rank = Number(event.target.value); show(); });
at('only-changed').addEventListener('input', show);

const overview = table(at('layers'), ['layer', ...Array(E).keys()],
  data.layers.map((it) => [it.layer, ...it.load]), 'cells');
const top = Math.max(1, ...data.layers.flatMap((it) => it.load));
data.layers.forEach((it, l) => it.load.forEach((n, e) => {
  const cell = overview.rows[l + 1].cells[e + 1];
  paint(cell, n / top);
  cell.addEventListener('click', () => { layer = l; only = e; at('layer').value = l; show(); });
}));

table(at('cache'), ['slots a layer', 'memory', 'hits, least recently used', 'hits, most used held',
  'missed a token', ...data.links], data.cache);
if (data.changes !== null) {
  make('h2', `Against ${data.changes.path}`, at('changes'));
  make('p', `${percent(data.changes.untouched)} of the tokens go to the same experts in every ` +
    'layer.', at('changes'));
  table(at('changes'),
    ['layer', 'same experts', 'same best', 'changed here first', 'weights moved'],
    data.changes.layers.map((it) => [it.layer, percent(it.same_set), percent(it.same_best),
      percent(it.first), percent(it.weight)]));
}
show();
"""


def route_page(
    report: RouteReport, trace: Trace, texts: Sequence[str], other: Trace | None,
    cache: tuple[Sequence[str], Sequence[Sequence[str]]],
) -> str:  # fmt: skip
    """The whole page; ``cache`` has the titles of the links and the rows, as text."""
    shown = slice(0, MOST_TOKENS)
    routed = trace.routed
    layers = range(len(report.layers))
    changed = None
    if other is not None:
        same = (
            routed.experts_TLA[shown].sort(-1).values
            == other.routed.experts_TLA[shown].sort(-1).values
        ).all(-1)
        changed = (~same).int().T.tolist()
    data: dict[str, Any] = {
        "about": f"{report.n_tokens} tokens through {safe(report.path)}, {len(report.layers)} "
        f"layers of {report.n_experts} experts, {report.n_experts_per_tok} for each token.",
        "tokens": [_visible(text) for text in texts[shown]],
        "n_tokens": report.n_tokens,
        "n_experts": report.n_experts,
        "k": report.n_experts_per_tok,
        "experts": [routed.experts_TLA[shown, layer].flatten().tolist() for layer in layers],
        "weights": [
            (100 * routed.weights_TLA[shown, layer]).round().int().flatten().tolist()
            for layer in layers
        ],
        "layers": report.layers,
        "favourites": report.favourites,
        "links": list(cache[0]),
        "cache": [list(row) for row in cache[1]],
        "changes": report.changes,
        "changed": changed,
    }
    return page("moetool route", _BODY, _SCRIPT, data, _STYLE)


def _visible(text: str) -> str:
    """Line breaks are kept; nothing else that a reader cannot see is."""
    return "".join(char if char == "\n" else safe(char) for char in text)
