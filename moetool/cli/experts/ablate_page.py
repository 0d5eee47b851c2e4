"""The page of `moetool experts ablate`: saliency by criterion, exact costs, loss against top-k."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.cli.console import safe
from moetool.cli.page import page

if TYPE_CHECKING:
    from moetool.cli.experts.ablate import AblateReport

_BODY = """
<p class="soft" id="about"></p>
<p><label>colour by <select id="criterion"></select></label></p>
<div class="wide" id="map"></div>
<p class="soft" id="meaning"></p>
<h2>What losing one costs</h2>
<p class="soft" id="agreement"></p>
<div class="wide" id="exact"></div>
<h2>Experts for each token</h2>
<div id="top-k"></div>
"""

_STYLE = """
.bar { display: flex; align-items: center; gap: .5rem; }
.bar i { display: inline-block; height: .9rem; background: var(--accent); }
"""

_SCRIPT = """
const meanings = {
  reap: 'reap: mean of router weight times output norm, over the tokens that came ' +
    '(arXiv 2510.13999)',
  norm: 'norm: mean output norm over the tokens that came (arXiv 2606.15716)',
  mass: 'mass: router weight times output norm, added up over all tokens',
  frequency: 'frequency: the share of tokens that came',
  delta: 'delta: the loss without the expert less the loss with it, where it was measured',
};
at('about').textContent = data.about;
const exact = new Map(data.exact.map((one) => [`${one.layer}:${one.expert}`, one]));
const valueOf = (one, name) => {
  if (name !== 'delta') return one[name];
  const found = exact.get(`${one.layer}:${one.expert}`);
  return found === undefined ? null : found.delta;
};
for (const name of Object.keys(meanings)) {
  if (name !== 'delta' || data.exact.length) make('option', name, at('criterion')).value = name;
}
const show = () => {
  const name = at('criterion').value;
  at('meaning').textContent = meanings[name];
  at('map').replaceChildren();
  const values = data.saliency.map((one) => valueOf(one, name));
  const largest = Math.max(1e-12, ...values.filter((value) => value !== null));
  const rows = [];
  for (let layer = 0; layer < data.n_layers; layer++) {
    rows.push([layer, ...values.slice(layer * data.n_experts, (layer + 1) * data.n_experts)
      .map((value) => value === null ? '' : value.toPrecision(3))]);
  }
  const cells = table(at('map'), ['layer', ...Array(data.n_experts).keys()], rows, 'cells');
  values.forEach((value, i) => {
    const cell = cells.rows[1 + Math.floor(i / data.n_experts)].cells[1 + i % data.n_experts];
    if (value !== null) paint(cell, value / largest);
    const one = data.saliency[i];
    cell.title = `layer ${one.layer} expert ${one.expert}: ${one.n_tokens} tokens, ` +
      `reap ${one.reap.toPrecision(4)}, norm ${one.norm.toPrecision(4)}`;
  });
};
at('criterion').addEventListener('input', show);
show();

const ranked = [...data.exact].sort((x, y) => x.delta - y.delta);
table(at('exact'), ['layer', 'expert', '\\u0394loss', '\\u00b1', 'perplexity times'],
  ranked.map((one) => [one.layer, one.expert, one.delta.toFixed(5), one.error.toFixed(5),
    Math.exp(one.delta).toFixed(4)]));
if (data.agreement !== null) {
  at('agreement').textContent =
    `Spearman's rank correlation of reap and exact cost: ${data.agreement.toFixed(2)}`;
}
const largest = Math.max(1e-12, ...data.top_k.map((row) => row.loss));
for (const row of data.top_k) {
  const line = make('div', null, at('top-k'));
  line.className = 'bar';
  make('span', row.n_experts_per_tok, line);
  make('i', null, line).style.width = `${24 * row.loss / largest}rem`;
  make('span', `${row.loss.toFixed(4)} \\u00b1 ${row.error.toFixed(4)}`, line);
}
"""


def ablate_page(report: AblateReport) -> str:
    """The whole page."""
    data = {
        "about": f"{safe(report.path)} on {report.n_tokens} tokens of {safe(report.text)}: loss "
        f"{report.loss:.4f} nats a token.",
        "n_layers": report.n_layers,
        "n_experts": report.n_experts,
        "saliency": report.saliency,
        "exact": report.exact,
        "agreement": report.agreement,
        "top_k": report.top_k,
    }
    return page("moetool experts ablate", _BODY, _SCRIPT, data, _STYLE)
