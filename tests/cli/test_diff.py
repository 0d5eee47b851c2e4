"""`moetool diff` as it is typed: what it says, its exit codes, its document and its page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from moetool.cli.app import run
from moetool.convert.job import open_source, prepare
from moetool.convert.stream import to_bytes, to_torch
from moetool.convert.targets import find_target
from moetool.formats import create, open_checkpoint


@pytest.fixture
def changed(published, tmp_path):
    """Rewrite tensors of the published raw checkpoint, and convert the result to HF's layout."""

    def make(change, name="changed"):
        raw = tmp_path / f"{name}-raw"
        raw.mkdir()
        with open_checkpoint(published.folder) as checkpoint:
            infos = tuple(checkpoint.catalog.tensors.values())
            tensors = {i.name: to_torch(checkpoint.read(i.name), i.dtype, i.shape) for i in infos}
        change(tensors)
        sink = create(raw / "consolidated.00.pth", infos, {})
        for info in infos:
            sink.write(info.name, [to_bytes(tensors[info.name])])
        sink.close()
        (raw / "params.json").write_bytes((published.folder / "params.json").read_bytes())
        out = tmp_path / name
        with open_checkpoint(raw) as checkpoint:
            prepare(open_source(checkpoint), find_target("safetensors", "hf"), out).run()
        return out

    return make


def nudge(tensors):
    tensors["layers.1.feed_forward.experts.2.w3.weight"][3, 4] += 0.25


def renumber(tensors):
    for layer in (0, 1):
        stem = f"layers.{layer}.feed_forward"
        tensors[f"{stem}.gate.weight"] = tensors[f"{stem}.gate.weight"][[1, 0, 2]]
        for matrix in ("w1", "w2", "w3"):
            one, other = (f"{stem}.experts.{expert}.{matrix}.weight" for expert in (0, 1))
            tensors[one], tensors[other] = tensors[other], tensors[one]


def swap(tensors):
    for expert in range(3):
        w1, w3 = (f"layers.0.feed_forward.experts.{expert}.{m}.weight" for m in ("w1", "w3"))
        tensors[w1], tensors[w3] = tensors[w3], tensors[w1]


def test_the_same_model_in_two_layouts_is_equal(moetool, published, changed):
    done = moetool("diff", published.folder, changed(lambda _tensors: None), check=0)
    assert "EQUAL  the same values in every tensor: 35 tensors compared" in done.stdout
    assert "damage" not in done.stdout


def test_all_layouts_of_the_trained_release_are_equal(moetool, tiny_release, tmp_path):
    for layout in ("hf", "hf-fused", "mistral-packed", "gguf"):
        assert run(["tiny", str(tmp_path / layout), "--layout", layout, "--trained"]) == 0
        moetool("diff", tiny_release, tmp_path / layout, "--quiet", check=0)


def test_shards_are_no_difference(moetool, tiny_release, tmp_path):
    out = tmp_path / "sharded"
    moetool("convert", tiny_release, "--to", "safetensors", "--max-shard-size", "3MB", "--out", out)
    assert len([*out.glob("*.safetensors")]) > 3
    moetool("diff", tiny_release, out, check=0)


def test_one_changed_value_is_found(moetool, published, changed):
    done = moetool("diff", published.folder, changed(nudge), check=3)
    name = "layers.1.feed_forward.experts.2.w3.weight"
    (row,) = (line.split() for line in done.stdout.splitlines() if line.startswith(name))
    assert (row[1], row[3], row[6]) == ("1/960", "0.25", "3")
    assert "DIFFERENT  not the same model" in done.stdout


def test_a_tolerance_lets_small_differences_pass(moetool, published, changed):
    b = changed(nudge)
    done = moetool("diff", published.folder, b, "--tolerance", "0.5", check=0)
    assert "WITHIN TOLERANCE" in done.stdout
    moetool("diff", published.folder, b, "--tolerance", "0.001", check=3)
    moetool("diff", published.folder, b, "--tolerance", "-1", check=2)


def test_renumbered_experts_are_the_same_model(moetool, published, changed):
    b = changed(renumber)
    done = moetool("diff", published.folder, b, check=0)
    assert "RENUMBERED  the same model, experts renumbered" in done.stdout
    assert "in layers 0-1: those of A in the order of B are 1 0 2" in done.stdout
    moetool("diff", published.folder, b, "--exact-order", check=3)


def test_damage_is_named(moetool, published, changed):
    done = moetool("diff", published.folder, changed(swap), check=3)
    line = "damage: w1 and w3 (gate and up) are swapped (layers 0, experts 0-2, w1 w3)"
    assert line in done.stdout


def test_the_document_is_one(moetool, published, changed):
    def nan(tensors):
        tensors["norm.weight"][5] = float("nan")

    def refuse(word):
        raise AssertionError(word)

    done = moetool("diff", published.folder, changed(nan), "--json", check=3)
    found = json.loads(done.stdout, parse_constant=refuse)  # NaN and Infinity are no JSON
    assert (found["schema"], found["version"], found["ok"]) == ("moetool.diff", 1, False)
    assert found["verdict"] == "DIFFERENT"
    (tensor,) = found["tensors"]
    assert (tensor["name"], tensor["rel_rms"], tensor["nan_b"]) == ("norm.weight", None, 1)
    assert tensor["slot"] == {"role": "norm", "layer": None, "expert": None}
    assert [(d["kind"], d["details"]) for d in found["damage"]] == [
        ("nan", ["norm: 1 value in value 5"])
    ]


def test_a_missing_path_is_a_usage_fault(moetool, published, tmp_path):
    moetool("diff", published.folder, tmp_path / "nothing", check=2)
    moetool("diff", published.folder, check=2)


def test_what_is_no_checkpoint_is_refused(moetool, published, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    done = moetool("diff", published.folder, tmp_path / "model.safetensors", "--json", check=4)
    assert json.loads(done.stdout)["ok"] is False


class Page(HTMLParser):
    """Counts tags, and keeps their attributes and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag):
        return [attrs for found, attrs in self.tags if found == tag]


def test_the_page_shows_where_and_loads_nothing(moetool, published, changed, tmp_path):
    page_file = tmp_path / "page.html"
    moetool("diff", published.folder, changed(nudge), "--html", page_file, check=3)
    text = page_file.read_text(encoding="utf-8")
    page = Page(text)
    (policy,) = (m["content"] for m in page.named("meta") if "content" in m and "http-equiv" in m)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import", text)
    cells = {attrs["title"]: attrs["class"] for attrs in page.named("td") if "title" in attrs}
    assert len(cells) == 2 * (3 + 3) + 3
    hit = next(title for title in cells if title.startswith("layers.1 expert 2"))
    assert "experts.2.w3.weight" in hit
    assert cells[hit] not in {"s0", "none"}
    assert all(kind == "s0" for title, kind in cells.items() if title != hit)
    assert "prefers-color-scheme: dark" in text


def test_a_hostile_name_stays_text(moetool, published, changed, tmp_path):
    hostile = "<script>alert(1)<\N{FRACTION SLASH}script>&\"'\u202e"
    b = changed(nudge, hostile)
    page_file = tmp_path / "page.html"
    done = moetool("diff", published.folder, b, "--html", page_file, check=3)
    page = Page(page_file.read_text(encoding="utf-8"))
    assert not page.named("script")
    assert any("<script>alert(1)<" in text for text in page.texts)
    assert "\u202e" not in page_file.read_text(encoding="utf-8") + done.stdout


def test_a_page_does_not_replace_weights(moetool, published):
    weights = published.folder / "consolidated.00.pth"
    before = weights.read_bytes()
    moetool("diff", published.folder, published.folder, "--html", weights, check=2)
    assert weights.read_bytes() == before


def test_a_thousand_names_are_a_few_lines(moetool, published, tmp_path):
    folder = tmp_path / "short"
    folder.mkdir()
    kept = [f"layers.1.{name}" for name in ("attention.wq.weight", "attention_norm.weight")]
    with open_checkpoint(published.folder) as checkpoint:
        infos = [
            i for i in checkpoint.catalog.tensors.values() if not i.name.startswith("layers.1")
        ]
        infos += [checkpoint.catalog.tensors[name] for name in kept]
        sink = create(folder / "consolidated.00.pth", infos, {})
        for info in infos:
            sink.write(info.name, [bytes(checkpoint.read(info.name))])
        sink.close()
    (folder / "params.json").write_bytes((published.folder / "params.json").read_bytes())
    done = moetool("diff", published.folder, folder, check=3)
    assert "only in A: layers.1.feed_forward.experts.0-2.w1-3.weight (9)" in done.stdout
    assert done.stdout.count("only in A") == 6


def test_progress_and_notes_keep_off_the_result(moetool, published, changed, tmp_path):
    page_file = tmp_path / "page.html"
    b = changed(lambda _tensors: None)
    done = moetool("diff", published.folder, b, "--html", page_file, check=0)
    assert "wrote" in done.stderr
    assert "wrote" not in done.stdout
    quiet = moetool("diff", published.folder, b, "--html", page_file, "--quiet", check=0)
    assert quiet.stderr == ""
