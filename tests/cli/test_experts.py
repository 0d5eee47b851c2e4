"""`moetool experts` as a user and as a script see it."""

from __future__ import annotations

import json
import re

import pytest

from moetool.formats import open_checkpoint

TEXT = "Once upon a time there was a brave fox. 3 + 4 = 7\nwidth = height + 2\n" * 4
RUN = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def document(done):
    return json.loads(done.stdout)


def test_stats_and_similarity(moetool, tiny_release):
    """One document each; the table names nobody dead."""
    report = document(moetool("experts", "stats", tiny_release, "--spectra", 1, "--json", check=0))
    assert (report["schema"], len(report["experts"])) == ("moetool.experts.stats", 32)
    assert len(report["experts"][0]["matrices"]["w1"]["spectrum"]) == 1
    said = moetool("experts", "stats", tiny_release, "--spectra", 0, check=0).stdout
    assert "32 experts, 0 dead, 0 doubles" in said
    report = document(moetool("experts", "similarity", tiny_release, "--json", check=0))
    assert report["layers"][3]["cosines"][2][2] == pytest.approx(1)
    assert "most alike" in moetool("experts", "similarity", tiny_release, check=0).stdout


def test_ablate(moetool, tiny_release, text, tmp_path):
    """Saliency of all, the cost of those asked for, the loss against k, a page and a picture."""
    words = ("experts", "ablate", tiny_release, "--text", text, *RUN)
    report = document(moetool(*words, "--least", 1, "--most", 1, "--expert", "2:0,1", "--top-k",
                              "1..3", "--html", "a.html", "--picture", "a.png", "--json",
                              check=0))  # fmt: skip
    assert len(report["saliency"]) == 32
    measured = {(one["layer"], one["expert"]) for one in report["exact"]}
    ranked = sorted(report["saliency"], key=lambda one: one["reap"])
    ends = {(one["layer"], one["expert"]) for one in (ranked[0], ranked[-1])}
    assert measured == {(2, 0), (2, 1)} | ends
    assert [row["n_experts_per_tok"] for row in report["top_k"]] == [1, 2, 3]
    assert report["top_k"][1]["loss"] == pytest.approx(report["loss"], abs=1e-9)
    told = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "a.html").read_text())[1])
    assert told["exact"] == report["exact"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    said = moetool(*words, "--least", 2, "--most", 2, "--top-k", "none", check=0).stdout
    assert "agree in rank" in said
    assert "experts a token" not in said


def test_ablate_refuses(moetool, tiny_release, text):
    words = ("experts", "ablate", tiny_release, "--text", text, *RUN)
    for more, said in [
        (("--expert", "two"), "names no experts"),
        (("--expert", "9:0"), "no layer 9"),
        (("--expert", "0:8,1"), "cannot be taken out"),
        (("--top-k", "0..2"), "no range"),
        (("--html", "a.txt"), "ends in .html"),
    ]:
        assert said in moetool(*words, *more, check=2).stderr


def test_the_command_line_knows_all_criteria():
    from moetool.cli.experts import prune
    from moetool.experts.saliency import CRITERIA

    assert (*CRITERIA, prune.LOSS) == prune.CRITERIA


def test_rank_correlation():
    from moetool.cli.experts.ablate import spearman

    assert spearman([(1, 10), (2, 20), (3, 30)]) == pytest.approx(1)
    assert spearman([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1)
    assert spearman([(1, 1), (1, 2), (2, 3), (3, 4)]) == pytest.approx(0.9486833)
    assert spearman([(1, 1), (2, 2)]) is None
    assert spearman([(1, 1), (1, 2), (1, 3)]) is None


@pytest.mark.parametrize(
    ("to", "layout"),
    [("safetensors", "hf-fused"), ("pth", "mistral-packed"), ("pth", "mistral"), ("gguf", "gguf")],
)
def test_pruned_by_saliency_with_its_cost_in_the_manifest(
    moetool, tiny_release, text, tmp_path, to, layout
):
    """What eval says of the output is what the manifest promised; verify settles every file."""
    report = document(moetool("experts", "prune", tiny_release, "--keep", 5, "--text", text, *RUN,
                              "--to", to, "--layout", layout, "--out", "five", "--json",
                              check=0))  # fmt: skip
    assert report["written"]
    assert [len(experts) for experts in report["kept"]] == [5] * 4
    manifest = json.loads((tmp_path / "five" / "moetool-manifest.json").read_text())
    assert manifest["options"]["experts"] == report["kept"]
    found = manifest["measured"]
    assert (found["operation"], found["by"]) == ("prune", "reap")
    assert found["delta_loss"] == report["measured"]
    assert found["delta_loss"]["delta"] > 0
    scored = document(moetool("eval", "five", "--text", text, *RUN, "--json", check=0))
    assert scored["rows"][0]["scores"]["score"]["loss"] == pytest.approx(
        report["measured"]["pruned_loss"], abs=2e-4
    )
    seen = document(moetool("inspect", "five", "--json", check=0))
    assert seen["model"]["args"]["n_experts"] == 5
    moetool("verify", "five", check=0)


def test_pruned_by_a_list_and_by_both(moetool, tiny_release, text, tmp_path):
    """A list needs no text; with --keep the rest goes by what each costs alone."""
    words = ("experts", "prune", tiny_release)
    report = document(moetool(*words, "--drop", "all:1", "--drop", "all:6", "--out", "six",
                              "--json", check=0))  # fmt: skip
    assert report["kept"] == [[0, 2, 3, 4, 5, 7]] * 4
    assert report["measured"] is None
    assert json.loads((tmp_path / "six" / "moetool-manifest.json").read_text())["measured"] == {
        "operation": "prune", "by": "list", "delta_loss": None,
    }  # fmt: skip
    assert "not measured" in moetool(*words, "--drop", "all:1", "--dry-run", check=0).stdout
    report = document(moetool(*words, "--drop", "0:4", "--keep", 7, "--by", "loss", "--text", text,
                              *RUN, "--dry-run", "--json", check=0))  # fmt: skip
    assert report["kept"][0] == [0, 1, 2, 3, 5, 6, 7]
    assert not report["written"]
    assert not (tiny_release.parent / f"{tiny_release.name}-7-experts").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "how many experts to keep"),
        (("--keep", 6), 2, "measured on a text"),
        (("--keep", 6, "--text", "none.txt"), 2, "no such file"),
        (("--drop", "1:0"), 2, "files have one count"),
        (("--drop", "all:9"), 2, "not there"),
        (("--drop", "all:0,1,2,3,4,5,6"), 2, "fewer than a token's 2"),
        (("--drop", "one"), 2, "names no experts"),
        (("--drop", "all:0", "--to", "zip"), 2, "cannot write"),
        (("--drop", "all:0", "--by", "luck"), 2, "no criterion"),
        (("--keep", 9, "--text", "text.txt"), 2, "8 are there"),
        (("--keep", 8, "--drop", "1:0", "--text", "text.txt"), 2, "7 are there"),
        (("--keep", 1, "--text", "text.txt"), 2, "a token needs 2"),
    ],
)
def test_prune_refuses(moetool, tiny_release, tmp_path, text, words, code, said):
    """With a next step, and nothing begun."""
    done = moetool("experts", "prune", tiny_release, *words, "--out", "out", check=code)
    assert said in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / "out").exists()


def test_prune_goes_on_and_does_not_overwrite(moetool, tiny_release, tmp_path):
    """What is there stays; other experts in a begun folder are another plan."""
    words = ("experts", "prune", tiny_release, "--out", "out")
    moetool(*words, "--drop", "all:0", check=0)
    moetool(*words, "--drop", "all:0", check=7)
    moetool(*words, "--drop", "all:0", "--dry-run", check=0)
    moetool(*words, "--drop", "all:1", "--force", check=0)
    assert (tmp_path / "out.old-1").is_dir()


def test_permuted_is_the_same_model(moetool, tiny_release, text, tmp_path):
    """RENUMBERED by the certificate and by diff, the same loss; back again by likeness."""
    words = ("experts", "permute")
    report = document(moetool(*words, tiny_release, "--seed", 3, "--to", "gguf", "--out", "turned",
                              "--json", check=0))  # fmt: skip
    assert report["certificate"]["verdict"] == "RENUMBERED"
    assert [sorted(order) for order in report["order"]] == [list(range(8))] * 4
    assert "RENUMBERED" in moetool("diff", tiny_release, "turned", check=0).stdout
    losses = [
        document(moetool("eval", path, "--text", text, *RUN, "--json", check=0))["rows"][0]
        for path in (tiny_release, "turned")
    ]
    ours, theirs = (row["scores"]["score"]["loss"] for row in losses)
    assert ours == pytest.approx(theirs, abs=1e-5)
    moetool(*words, "turned", "--like", tiny_release, "--to", "pth", "--out", "back", check=0)
    assert "EQUAL" in moetool("diff", tiny_release, "back", "--exact-order", check=0).stdout
    swapped = document(moetool(*words, tiny_release, "--order", "2:1,0,2,3,4,5,6,7", "--dry-run",
                               "--json", check=0))  # fmt: skip
    assert swapped["order"][2] == [1, 0, 2, 3, 4, 5, 6, 7]
    assert swapped["order"][0] == list(range(8))


def test_permute_refuses(moetool, tiny_release):
    words = ("experts", "permute", tiny_release)
    assert "give one of" in moetool(*words, check=2).stderr
    assert "give one of" in moetool(*words, "--seed", 1, "--order", "0:1", check=2).stderr
    assert "each of the 8 experts once" in moetool(*words, "--order", "0:1,0", check=2).stderr
    assert "no such file" in moetool(*words, "--like", "none", check=2).stderr


def test_extract(moetool, tiny_release, tmp_path):
    """Five tensors, the very values, and a note of what they are not."""
    words = ("experts", "extract", tiny_release, "--layer", 2, "--expert", 5)
    report = document(moetool(*words, "--out", "e.safetensors", "--json", check=0))
    assert "no model" in report["note"]
    with open_checkpoint(tiny_release) as whole, open_checkpoint(tmp_path / "e.safetensors") as one:
        assert one.catalog.metadata["moetool.note"] == report["note"]
        assert len(one.catalog.tensors) == 5
        for name in one.catalog.tensors:
            if not name.endswith("gate.row"):
                assert one.read(name) == whole.read(name)
        router = whole.read("layers.2.feed_forward.gate.weight")
        assert one.read("layers.2.feed_forward.gate.row") == router[5 * 512 : 6 * 512]
    assert "already" in moetool(*words, "--out", "e.safetensors", check=7).stderr
    assert "no expert 8" in moetool("experts", "extract", tiny_release, "--layer", 0, "--expert", 8,
                                    check=2).stderr  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.safetensors"]


def test_a_dense_model_has_no_experts(moetool, text):
    """Every command says so, and none with a traceback."""
    moetool("tiny", "dense", "--geometry", "tiny-dense", check=0)
    for words in (
        ("stats", "dense"),
        ("similarity", "dense"),
        ("ablate", "dense", "--text", text),
        ("prune", "dense", "--drop", "all:0", "--out", "x"),
        ("permute", "dense", "--seed", 1, "--out", "x"),
        ("extract", "dense", "--layer", 0, "--expert", 0),
    ):
        done = moetool("experts", *words, check=None)
        assert done.returncode in {2, 4}
        assert "hint:" in done.stderr, words
