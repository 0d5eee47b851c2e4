"""A part of a release as a user meets it: what is here is used, what is not is NOT COVERED."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest

from moetool.extents import Extent
from moetool.files.partial import write_partial
from moetool.formats import open_checkpoint
from moetool.release.fixture import find_fixture
from moetool.release.torrent.serve import seed

NAME = "layers.0.feed_forward.experts.2.w3.weight"


@pytest.fixture(scope="module")
def tiny():
    return find_fixture()


@pytest.fixture(scope="module")
def fetched(tiny, tmp_path_factory):
    """Expert 2 of every layer and the routers, fetched once; tests that change it copy it."""
    from moetool.cli.app import run

    out = tmp_path_factory.mktemp("fetched") / "part"
    with seed(tiny.torrent, tiny.directory) as peer:
        words = ["fetch", tiny.torrent, "--out", out, "--peer", peer.peer, "--no-dht", "--quiet"]
        assert run([*map(str, words), "--only", "experts.2,router"]) == 0
    return out


@pytest.fixture
def part(fetched, tmp_path):
    return shutil.copytree(fetched, tmp_path / "part")


def test_one_line_fetches_a_part_and_says_how_much_and_how_to_go_on(moetool, tiny, tmp_path):
    with seed(tiny.torrent, tiny.directory) as peer:
        words = ["fetch", tiny.torrent, "--out", "part", "--peer", peer.peer, "--no-dht"]
        done = moetool(*words, "--only", "layers.2.experts.2", "--only", "tokenizer", check=0)
        assert "a part of the release is here: " in done.stdout
        assert "by layers.2.experts.2, tokenizer" in done.stdout
        assert "NOT COVERED  " in done.stdout
        rest = f"--out {tmp_path / 'part'}"
        assert "all the rest: moetool fetch 'magnet:?xt=urn:btih:" in done.stdout
        assert rest in done.stdout
        report = json.loads(moetool(*words, "--only", "router", "--json", check=0).stdout)
        assert (report["schema"], report["version"], report["ok"]) == (
            "moetool.fetch-only", 1, True,
        )  # fmt: skip
        assert report["only"] == ["layers.2.experts.2", "tokenizer", "router"]
        assert report["fetched"]["payload"] < report["held_nbytes"] < report["nbytes"]
        assert "MATCH  " in moetool(*words, check=0).stdout
        done = moetool(*words, "--only", "router", check=0)
        assert "all of the release is here" in done.stdout
    assert "part" in moetool("inspect", check=0).stderr  # the release fetched last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", ""], "wants what to fetch"),
        (["--only", "router", "--convert", "gguf"], "a conversion needs all of a model"),
    ],
)
def test_what_cannot_be_meant_is_2_and_leaves_nothing(moetool, tiny, tmp_path, words, said):
    done = moetool("fetch", tiny.torrent, "--out", "part", "--no-dht", *words, check=2)
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_inspect_says_what_is_here_and_what_is_not(moetool, fetched):
    done = moetool("inspect", fetched, check=0)
    assert "by --only experts.2, router" in done.stdout
    assert "parameters       7,481,600" in done.stdout  # the whole model, from its headers
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["here", "layers.0-3.feed_forward.experts.2.w1-3.weight", "x12", "1.50", "MiB"] in lines
    assert ["NOT", "COVERED", "norm.weight", "x1", "512", "B"] in lines
    presence = json.loads(moetool("inspect", fetched, "--json", check=0).stdout)["presence"]
    assert presence["only"] == ["experts.2", "router"]
    groups = [presence[kind] for kind in ("here", "in_part", "absent")]
    assert sum(group["count"] for kind in groups for group in kind) == 127
    assert presence["rest"].startswith("moetool fetch 'magnet:")
    with open_checkpoint(fetched) as checkpoint:
        held = sum(checkpoint.held(name) for name in checkpoint.catalog.tensors)
        whole = [checkpoint.catalog.tensors[n] for n in checkpoint.catalog.tensors
                 if checkpoint.holds(n)]  # fmt: skip
    assert sum(group["nbytes"] for group in presence["here"]) == sum(i.nbytes for i in whole)
    assert presence["in_part_nbytes"] == held - sum(info.nbytes for info in whole)


def test_inspect_of_a_whole_release_says_nothing_of_parts(moetool, tiny):
    report = json.loads(moetool("inspect", tiny.directory, "--json", check=0).stdout)
    assert report["presence"] is None


def test_verify_counts_what_is_not_covered(moetool, fetched):
    done = moetool("verify", fetched, check=0)
    assert done.stdout.splitlines()[-1].startswith("NOT COVERED  4 files")
    report = json.loads(moetool("verify", fetched, "--json", check=0).stdout)
    weights = next(file for file in report["files"] if file["path"].endswith(".pth"))
    assert weights["word"] == "NOT COVERED"
    pieces = next(cover for cover in weights["coverage"] if cover["algorithm"] == "sha1")
    assert pieces["claims"] == pieces["matched"] > 20
    assert pieces["absent"] + pieces["claims"] == 229
    assert weights["tally"]["match"] + weights["tally"]["not_covered"] == weights["nbytes"]
    crcs = next(cover for cover in weights["coverage"] if cover["algorithm"] == "crc32")
    assert crcs["claims"] == crcs["matched"] >= 12 + 4
    assert [file["word"] for file in report["files"] if file is not weights] == ["MATCH"] * 3


def _change(folder, name, change):
    with open_checkpoint(folder) as checkpoint:
        extent = checkpoint.catalog.extents[name]
    with extent.path.open("r+b") as file:
        content = bytearray(file.read())
        content[extent.offset : extent.end] = change(content[extent.offset : extent.end])
        file.seek(0)
        file.write(content)


def _flipped(content):
    content[40 * 512 + 6] ^= 0x20  # row 40 of 256 bf16
    return content


def test_a_flipped_byte_of_what_is_here_is_a_mismatch_with_tensor_and_row(moetool, part):
    _change(part, NAME, _flipped)
    done = moetool("verify", part, check=3)
    assert "layers.0 expert 2 w3 rows 0-" in done.stdout.replace("row ", "rows ")
    assert "MISMATCH" in done.stdout
    assert NAME in done.stdout


def test_bytes_written_into_a_hole_change_nothing(moetool, part):
    """The record says what was fetched, not what lies there."""
    with open_checkpoint(part) as checkpoint:
        extent = checkpoint.catalog.extents["layers.2.feed_forward.experts.6.w1.weight"]
        assert not checkpoint.held("layers.2.feed_forward.experts.6.w1.weight")
    with extent.path.open("r+b") as file:
        file.seek(extent.offset)
        assert file.read(100) == bytes(100)
        file.seek(extent.offset)
        file.write(b"\1" * 100)
    moetool("verify", part, check=0)


def test_scan_looks_at_what_is_here(moetool, part):
    done = moetool("scan", part, check=0)
    report = json.loads(moetool("scan", part, "--json", check=0).stdout)
    assert report["n_tensors"] >= 12 + 4
    missed = sum(group["n_tensors"] for group in report["not_covered"])
    assert missed + report["n_tensors"] == 127
    assert [group["reason"] for group in report["not_covered"]] == ["not fetched"]
    assert "NOT COVERED  bf16, not fetched: " in done.stdout
    _change(part, NAME, lambda content: bytes(len(content)))
    done = moetool("scan", part, check=3)
    assert NAME in done.stdout


def test_diff_compares_what_both_have(moetool, tiny, part, tmp_path):
    done = moetool("diff", tiny.directory, part, check=0)
    assert "NOT COVERED  nothing differs in what is here" in done.stdout
    assert "NOT COVERED  not fetched: layers.0-3.attention.wq.weight (4)" in done.stdout
    assert "only in A" not in done.stdout
    report = json.loads(moetool("diff", part, part, "--json", check=0).stdout)
    assert (report["verdict"], report["ok"]) == ("NOT COVERED", True)
    assert report["n_compared"] + len(report["structure"]["absent"]) == 127
    _change(part, NAME, _flipped)
    done = moetool("diff", tiny.directory, part, check=3)
    assert "DIFFERENT" in done.stdout
    assert NAME in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "PART", "--to", "safetensors", "--out", "made"],
        ["convert", "PART", "--to", "gguf", "--out", "made", "--dtype", "q8_0"],
        ["generate", "PART", "--prompt", "Once"],
        ["smoke-test", "PART"],
        ["eval", "PART", "--text", "text.txt"],
        ["imatrix", "PART", "--text", "text.txt", "--out", "made.gguf"],
        ["identity", "PART"],
        ["experts", "stats", "PART"],
        ["experts", "permute", "PART", "--seed", 1, "--out", "made"],
        ["route", "PART", "--prompt", "Once"],
        ["certify", "PART", "PART"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_needs_all_is_refused_before_the_first_byte(moetool, fetched, tmp_path, words):
    (tmp_path / "text.txt").write_text("Once upon a time. " * 30)
    words = [fetched if word == "PART" else word for word in words]
    done = moetool(*words, check=4)
    assert done.stdout == ""
    assert "tensors that are needed were not fetched" in done.stderr
    assert "not here: layers.0-3.attention.wq.weight x4" in done.stderr
    assert "hint: moetool fetch 'magnet:?xt=urn:btih:" in done.stderr
    assert f"--out {fetched}" in done.stderr
    assert not list(tmp_path.glob("made*"))


def test_an_expert_that_is_here_is_extracted(moetool, tiny, tmp_path):
    """Nothing else is needed; what lacks is asked for by name, and then it works."""
    extract = ["experts", "extract", "part", "--layer", 1, "--expert", 2, "--out"]
    with seed(tiny.torrent, tiny.directory) as peer:
        reach = ["--peer", peer.peer, "--no-dht", "--out", "part"]
        moetool("fetch", tiny.torrent, *reach, "--only", "layers.1.experts.2", check=0)
        done = moetool(*extract, "mine.safetensors", check=4)
        assert "not here: layers.1.feed_forward.gate.weight x1" in done.stderr
        assert not list(tmp_path.glob("*.safetensors"))
        named = shlex.split(done.stderr.partition("hint: ")[2])
        only = named[named.index("--only") :]
        assert only[::2] == ["--only"] * 2
        moetool("fetch", tiny.torrent, *reach, *only, check=0)
    moetool(*extract, "mine.safetensors", check=0)
    whole = ["experts", "extract", tiny.directory, "--layer", 1, "--expert", 2]
    moetool(*whole, "--out", "theirs.safetensors", check=0)
    assert (tmp_path / "mine.safetensors").read_bytes() == (
        tmp_path / "theirs.safetensors"
    ).read_bytes()


def test_what_lacks_little_is_asked_for_by_name(moetool, tiny, tmp_path):
    """The command in the hint gets just what is missing."""
    with seed(tiny.torrent, tiny.directory) as peer:
        reach = ["--peer", peer.peer, "--no-dht", "--out", "part"]
        moetool("fetch", tiny.torrent, *reach, "--only", "layers.0-3,norms,output", check=0)
        with open_checkpoint(tmp_path / "part") as checkpoint:
            assert not checkpoint.holds("tok_embeddings.weight")
        done = moetool("convert", "part", "--to", "safetensors", "--out", "hf", check=4)
        assert "not here: tok_embeddings.weight x1" in done.stderr
        assert "1 of 127 tensors" in done.stderr
        moetool("fetch", tiny.torrent, *reach, "--only", "embeddings", check=0)
    moetool("convert", "part", "--to", "safetensors", "--out", "hf", check=0)
    moetool("certify", tiny.directory, "hf", check=0)


def test_a_part_that_lacks_no_tensor_is_converted(moetool, tiny, tmp_path):
    """Holes between the weights are in nobody's way."""
    folder = shutil.copytree(tiny.directory, tmp_path / "part")
    sizes = {path: path.stat().st_size for path in folder.iterdir()}
    with open_checkpoint(folder) as checkpoint:
        hole = checkpoint.catalog.extents[NAME].offset - 64  # its local header, and before
    weights = folder / "consolidated.00.pth"
    here = [Extent(path, 0, nbytes) for path, nbytes in sizes.items() if path != weights]
    here += [Extent(weights, 0, hole), Extent(weights, hole + 64, sizes[weights] - hole - 64)]
    write_partial(folder, "magnet:?xt=urn:btih:0", ["*"], sizes, here)
    moetool("convert", folder, "--to", "safetensors", "--out", "hf", check=0)
    moetool("certify", tiny.directory, "hf", check=0)


def test_a_plan_says_what_was_not_fetched(moetool, fetched, tmp_path):
    words = ["convert", fetched, "--to", "gguf", "--dry-run", "--out", tmp_path / "made"]
    report = json.loads(moetool(*words, "--json", check=0).stdout)
    assert len(report["gaps"]) == 1
    assert report["gaps"][0].startswith("consolidated.00.pth: ")
    assert report["gaps"][0].endswith("of 14,997,062 bytes were not fetched")


@pytest.mark.parametrize("command", ["verify", "scan", "inspect"])
def test_a_copy_without_the_record_does_not_pass_for_whole(moetool, fetched, tmp_path, command):
    """The zip's local headers are holes too."""
    copy = shutil.copytree(fetched, tmp_path / "copy", ignore=shutil.ignore_patterns(".moetool"))
    done = moetool(command, copy)
    assert done.returncode in {3, 4}
    assert "zeros lie in its place" in done.stderr


def test_a_hole_between_headers_that_are_there_fails_its_crc(moetool, tiny, tmp_path):
    copy = shutil.copytree(tiny.directory, tmp_path / "copy")
    _change(copy, NAME, lambda content: bytes(len(content)))
    done = moetool("verify", copy, check=3)
    assert "crc32" in done.stdout
    assert "layers.0 expert 2 w3" in done.stdout
    assert NAME in moetool("scan", copy, check=3).stdout
    moetool("convert", copy, "--to", "safetensors", "--out", "hf", check=3)


def test_repair_and_seed_know_parts(moetool, tiny, part):
    _change(part, NAME, _flipped)
    done = moetool("repair", part, "--from", tiny.directory, "--offline", check=0)
    assert "layers.0 expert 2 w3" in done.stdout
    assert NAME not in moetool("verify", part, check=0).stdout
    done = moetool("seed", part, "--bind", "127.0.0.1", check=4)
    assert "seeding needs all" in done.stderr
    done = moetool("publish", part, check=4)
    assert "publishing needs all" in done.stderr
