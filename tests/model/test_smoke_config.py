"""L0: which release a geometry belongs to, and what is said where nothing is known."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import pytest

from moetool.convert.synthetic import GEOMETRIES
from moetool.model.smoke import LayerView, Verdict, config
from moetool.model.smoke.checks import judge
from moetool.model.smoke.subject import GEOMETRY, Subject, find_release
from moetool.model.tokenizer import open_tokenizer
from moetool.release.fixture import find_fixture
from moetool.release.manifest import by_info_hash, known_releases
from moetool.reports import plain


@pytest.fixture
def verdicts(random_checkpoint, recognized):
    def make(tokenizer=None, release=None, **changes):
        args = replace(recognized().args, **changes)
        subject = Subject(random_checkpoint(args), recognized(args=args), tokenizer, release)
        return {check.name: check for check in (each(subject) for each in config.CHECKS)}

    return make


def test_a_release_is_found_by_what_shapes_show():
    assert find_release(GEOMETRIES["8x7b"]).name == "mixtral-8x7b-32kseqlen"
    assert find_release(GEOMETRIES["8x22b"]).name == "mixtral-8x22b"
    # What no shape shows does not hide the release that it is judged by.
    wrong = replace(GEOMETRIES["8x7b"], rope_theta=1e4, n_experts_per_tok=1, norm_eps=1e-6)
    assert find_release(wrong).name == "mixtral-8x7b-32kseqlen"


@pytest.mark.parametrize("name", GEOMETRY)
def test_another_shape_is_another_model(name):
    args = GEOMETRIES["8x7b"]
    assert find_release(replace(args, **{name: getattr(args, name) * 2})) is None


@pytest.mark.parametrize("release", [r for r in known_releases() if r.model], ids=lambda r: r.name)
def test_what_is_recorded_of_a_release_is_complete(release):
    assert set(release.model) == {*GEOMETRY, *config.VALUES}
    low, high = release.smoke.loss
    assert 0 < low < high
    text = resources.files("moetool.model") / "texts" / f"{release.smoke.text}.txt"
    assert len(text.read_text(encoding="utf-8")) > 1500
    assert release.smoke.prompt


def test_the_shipped_text_of_the_tiny_release_is_the_one_its_loss_was_measured_on():
    measured = find_fixture().torrent.parent / "smoke_text.txt"
    shipped = resources.files("moetool.model") / "texts" / "tiny-mixtral.txt"
    assert shipped.read_bytes() == measured.read_bytes()


def test_what_is_recorded_of_the_tiny_release_is_what_was_published(golden):
    release = by_info_hash(golden["infohash"])
    assert release.name == "tiny-mixtral-8x1m"
    assert {file.path for file in release.files} == {*golden["files"]} - {f"{release.name}.torrent"}
    for file in release.files:
        published = golden["files"][file.path]
        assert file.nbytes == published["bytes"]
        assert {digest.algorithm: digest.hex for digest in file.digests} == {
            algorithm: published[algorithm] for algorithm in ("md5", "sha256")
        }


def test_nothing_known_is_not_covered_and_no_failure(verdicts):
    found = verdicts()
    for name in (*config.VALUES, "tokenizer", "tokenizer digest", "round trips", "special ids"):
        assert found[name].verdict is Verdict.NOT_COVERED, name
    assert found["tensors"].verdict is found["shapes"].verdict is Verdict.PASS


def test_a_tokenizer_of_another_size_fails(verdicts, tiny_release, random_checkpoint):
    tokenizer = open_tokenizer(random_checkpoint().catalog, tiny_release)
    found = verdicts(tokenizer)
    assert found["vocabulary"].verdict is Verdict.FAIL
    assert found["vocabulary"].detail == "768 pieces, 72 rows in the embedding"
    assert verdicts(tokenizer, vocab_size=768)["vocabulary"].verdict is Verdict.PASS


def test_a_value_is_compared_with_the_release_and_says_where_it_came_from(verdicts):
    release = find_release(GEOMETRIES["8x7b"])
    found = verdicts(release=release, rope_theta=1e4, assumed=("rope_theta",))
    assert found["rope_theta"].verdict is Verdict.FAIL
    assert found["rope_theta"].detail == (
        "10000 (assumed, no file says it), mixtral-8x7b-32kseqlen has 1e+06"
    )
    assert found["norm_eps"].verdict is Verdict.PASS
    assert found["max_seq_len"].verdict is Verdict.FAIL


def test_even_load_has_the_most_entropy():
    assert loaded((5,) * 8).entropy == 3.0
    assert loaded((40, 0, 0, 0)).entropy == 0.0
    assert 0 < loaded((30, 10, 0, 0)).entropy < 1
    assert loaded(()).entropy == 0.0  # of a dense layer


def loaded(load):
    return LayerView(1.0, 1.0, load, digest_attention="", digest_experts="")


def test_a_check_is_plain_data():
    check = judge("L0", "it", ok=None, detail="nothing to compare with")
    assert json.loads(json.dumps(plain(check)))["verdict"] == "NOT COVERED"
