"""`moetool route` as a user and as a script see it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest

from moetool.cli.heat_map import png, svg
from moetool.cli.page import page

TEXT = "Once upon a time there was a brave fox. 3 + 4 = 7\nwidth = height + 2\n" * 4


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def route(moetool, tiny_release, *words, **more):
    return moetool("route", tiny_release, "--device", "cpu", "--dtype", "float32", *words, **more)


def test_everything_at_once(moetool, tiny_release, text, tmp_path):
    """One pass gives the document, the file, the page and both pictures, and they agree."""
    done = route(moetool, tiny_release, "--text", text, "--out", "r.npz", "--html", "r.html",
                 "--picture", "r.svg", "--picture", "r.png", "--json", check=0)  # fmt: skip
    report = json.loads(done.stdout)
    assert (report["schema"], report["ok"], report["n_experts"]) == ("moetool.route", True, 8)
    experts = np.load(tmp_path / "r.npz")["experts"]
    assert experts.shape == (report["n_tokens"], 4, 2)
    for layer in report["layers"]:
        counted = np.bincount(experts[:, layer["layer"]].ravel(), minlength=8)
        assert layer["load"] == counted.tolist()
        assert sum(layer["load"]) == 2 * report["n_tokens"]
    assert [row["slots"] for row in report["cache"]] == list(range(2, 9))
    rates = [row["hit_rate"] for row in report["cache"]]
    assert rates == sorted(rates)
    told = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text())[1])
    assert np.array_equal(np.array(told["experts"]).reshape(4, -1, 2), experts.swapaxes(0, 1))
    assert "".join(told["tokens"]).removeprefix("<s>").lstrip() == TEXT
    assert ET.fromstring((tmp_path / "r.svg").read_text()).tag.endswith("svg")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_that_reads_without_colour(moetool, tiny_release, text):
    """Shades and numbers; with colour the text is the same."""
    plain = route(moetool, tiny_release, "--text", text, check=0, env={"NO_COLOR": "1"}).stdout
    coloured = route(moetool, tiny_release, "--text", text, check=0, env={"FORCE_COLOR": "1"})
    assert "\x1b" not in plain
    assert "█" in plain
    assert "\x1b[" in coloured.stdout
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured.stdout) == plain
    assert plain.splitlines()[1].split()[0] == "0"


def test_a_prompt_and_what_is_written_behind_it(moetool, tiny_release):
    """The continuation is generate's own."""
    prompt = "Once upon a time there was"
    report = json.loads(route(moetool, tiny_release, "--prompt", prompt, "--continue", 9, "--json",
                              check=0).stdout)  # fmt: skip
    written = moetool("generate", tiny_release, "--device", "cpu", "--dtype", "float32",
                      "--prompt", prompt, "--max-tokens", 9, "--json", check=0).stdout  # fmt: skip
    assert report["continuation"] == json.loads(written)["text"]


def test_compared_with_a_quantised_one(moetool, tiny_release, text, tmp_path):
    """A q4 chooses otherwise here and there, at small margins; with itself nothing changes."""
    moetool("convert", tiny_release, "--to", "gguf", "--dtype", "q4_0", "--out", "q4",
            "--no-certificate", check=0)  # fmt: skip
    found = json.loads(route(moetool, tiny_release, "--text", text, "--compare", tmp_path / "q4",
                             "--html", "r.html", "--json", check=0).stdout)["changes"]  # fmt: skip
    assert 0.5 < found["untouched"] < 1
    changed = [layer for layer in found["layers"] if layer["flip_margin"] is not None]
    assert changed
    assert all(layer["flip_margin"] < layer["margin"] for layer in changed)
    told = re.search(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text())[1]
    assert any(map(any, json.loads(told)["changed"]))
    same = route(moetool, tiny_release, "--text", text, "--compare", tiny_release, "--json",
                 check=0).stdout  # fmt: skip
    assert json.loads(same)["changes"]["untouched"] == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "either --text FILE or --prompt"),
        (("--prompt", "a", "--text", "no.txt"), 2, "either --text FILE or --prompt"),
        (("--text", "no.txt"), 2, "no such file"),
        (("--prompt", "a", "--out", "r.json"), 2, "ends in .npz"),
        (("--prompt", "a", "--picture", "r.pth"), 2, "ends in .svg or .png"),
        (("--prompt", "a", "--html", "none/r.html"), 2, "no such folder"),
        (("--prompt", "a", "--bandwidth", "fast"), 2, "no size"),
        (("--prompt", "a", "--compare", "none"), 2, "no such file"),
    ],
)
def test_refused_before_anything_is_read(moetool, tiny_release, words, code, said):
    done = route(moetool, tiny_release, *words, check=code)
    assert said in done.stderr
    assert not done.stdout


def test_a_page_trusts_nothing():
    """A hostile name stays data; the policy allows our script and style by digest, and no more."""
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    made = page(hostile, "<div id='x'></div>", "at('x').textContent = data.name;",
                {"name": hostile})  # fmt: skip
    assert hostile not in made
    assert "<img" not in made
    assert json.loads(re.search(r'id="data">(.*?)</script>', made)[1])["name"] == hostile
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', made)[1]
    for kind, tag in (("script", "<script>"), ("style", "<style>")):
        content = made.split(tag, 1)[1].split(f"</{kind}>", 1)[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "://" not in made
    assert "unsafe" not in policy


def test_scripts_write_text_only():
    """No page builds markup from strings, and none has a style or a handler in its markup."""
    from moetool.cli import route_page

    for source in (page("t", route_page._BODY, route_page._SCRIPT, {}, route_page._STYLE),):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval", source)
        assert not re.search(r"<[a-z][^>]* (style|on[a-z]+)=", source)


def test_pictures_hold_the_values():
    """The PNG decodes to the cells' colours; the SVG has a rectangle with a title for each cell."""
    values = [[0.0, 2.0], [1.0, 0.5]]
    drawn = ET.fromstring(svg(values, [4, 5], "<t>&", "share"))
    titles = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}title")]
    fills = [each.get("fill") for each in drawn.iter("{http://www.w3.org/2000/svg}rect")][1:5]
    assert fills == ["#440154", "#fde725", "#21918c", "#3b528b"]
    assert titles == ["layer 4 expert 0: 0", "layer 4 expert 1: 2", "layer 5 expert 0: 1",
                      "layer 5 expert 1: 0.5"]  # fmt: skip
    raw = png(values)
    length = int.from_bytes(raw[33:37])
    lines = zlib.decompress(raw[41 : 41 + length])
    width = 1 + 2 * 16 * 3
    assert len(lines) == 32 * width
    assert lines[1:4] == bytes((68, 1, 84))
    assert lines[1 + 16 * 3 : 4 + 16 * 3] == bytes((253, 231, 37))
    assert lines[16 * width + 1 : 16 * width + 4] == bytes((33, 145, 140))


def test_hostile_tokens_stay_text(moetool, tiny_release, tmp_path, monkeypatch):
    """A vocabulary may come from anybody: no control reaches the terminal, no markup the page."""
    from moetool.model.tokenizer import Tokenizer

    hostile = "</script><b>\x1b[31m\u202e[bold]"
    monkeypatch.setattr(Tokenizer, "piece", lambda *_: (hostile, 0.0, False, False))
    words = ("--prompt", "a a a a a a", "--compare", tiny_release, "--html", "r.html")
    said = route(moetool, tiny_release, *words, check=0, env={"NO_COLOR": "1"}).stdout
    assert "\x1b" not in said
    assert "\u202e" not in said
    made = (tmp_path / "r.html").read_text()
    assert "<b>" not in made
    assert "\x1b" not in made
    told = json.loads(re.search(r'id="data">(.*?)</script>', made)[1])
    assert told["tokens"][0] == "</script><b>\\u001b[31m\\u202e[bold]"
    assert told["favourites"]
