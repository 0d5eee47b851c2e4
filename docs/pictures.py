"""Draw the pictures of the documentation from the tiny release: who reads what, who gives what.

python docs/pictures.py

The same commands draw them for any model: `moetool route --picture`, `moetool experts ablate
--picture`. Values come from a sum of floats, so a machine of another kind may move a last digit.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

from moetool.cli.app import run
from moetool.cli.heat_map import svg
from moetool.release.fixture import find_fixture

FOLDER = Path(__file__).parent / "pictures"


def pictures() -> dict[Path, str]:
    """What every picture should be."""
    release = find_fixture()
    text = release.torrent.parent / "smoke_text.txt"
    words = [str(release.directory), "--text", str(text), "--device", "cpu", "--dtype", "float32"]
    routed = _document(["route", *words])
    ablated = _document(["experts", "ablate", *words, "--all", "--top-k", "none"])
    layers = range(len(routed["layers"]))
    load = [[n / routed["n_tokens"] for n in layer["load"]] for layer in routed["layers"]]
    costs = {(one["layer"], one["expert"]): one["delta"] for one in ablated["exact"]}
    cost = [[max(costs[layer, e], 0.0) for e in range(8)] for layer in layers]
    reap = {(one["layer"], one["expert"]): one["reap"] for one in ablated["saliency"]}
    guess = [[reap[layer, e] for e in range(8)] for layer in layers]
    return {
        FOLDER / "load.svg": svg(load, layers, "who reads the text", "share of the tokens"),
        FOLDER / "saliency.svg": svg(guess, layers, "what each gives: a guess", "reap"),
        FOLDER / "cost.svg": svg(cost, layers, "what losing one costs", "nats a token"),
    }


def _document(words: list[str]) -> dict[str, list[dict[str, float]]]:
    said = io.StringIO()
    with redirect_stdout(said):
        code = run([*words, "--json", "--quiet"])
    if code:
        raise SystemExit(code)
    return json.loads(said.getvalue())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, drawn in pictures().items():
        path.write_text(drawn, encoding="utf-8")
