"""`moetool smoke-test` as a user and as a script sees it."""

from __future__ import annotations

import json
import shutil

import pytest

from moetool.cli.smoke_test import strip


@pytest.fixture
def copy(tiny_release, tmp_path):
    """A copy of the release that may be damaged."""
    target = tmp_path / "copy"
    shutil.copytree(tiny_release, target)
    return target


def write_into(folder, tensor, data, offset=0):
    """Write over the first bytes of a tensor, where the file has them."""
    from moetool.formats import open_checkpoint

    with open_checkpoint(folder) as checkpoint:
        extent = checkpoint.catalog.extents[tensor]
    with extent.path.open("r+b") as file:
        file.seek(extent.offset + offset)
        file.write(data)


def test_the_release_passes_and_talks(moetool, tiny_release):
    done = moetool("smoke-test", tiny_release, "--prompt", "Once", "--max-tokens", 12, check=0)
    for words in ("loss band", "router load", "peak memory", "tokens/s", "\nOnce"):
        assert words in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("PASS: ")
    assert "FAIL  " not in done.stdout


def test_json_is_one_document_with_the_text_inside(moetool, tiny_release):
    done = moetool("smoke-test", tiny_release, "--max-tokens", 8, "--json", check=0)
    report = json.loads(done.stdout)
    assert (report["schema"], report["version"], report["ok"]) == ("moetool.smoke-test", 1, True)
    assert report["release"] == "tiny-mixtral-8x1m"
    assert report["continuation"]["text"]
    assert len(report["continuation"]["tokens"]) <= 8
    assert {check["level"] for check in report["checks"]} == {"L0", "L1", "L3"}
    assert {check["verdict"] for check in report["checks"]} == {"PASS"}
    load = report["layers"][0]["load"]
    assert sum(load) == 2 * report["figures"]["text_tokens"]


@pytest.mark.parametrize(("file_format", "layout"), [("safetensors", "hf"), ("gguf", "gguf")])
def test_a_converted_release_says_the_same_to_the_last_bit(
    moetool, tiny_release, tmp_path, file_format, layout
):
    out = tmp_path / layout
    moetool("convert", tiny_release, "--out", out, "--to", file_format, "--layout", layout, check=0)
    raw, converted = (
        json.loads(moetool("smoke-test", path, "--max-tokens", 12, "--json", check=0).stdout)
        for path in (tiny_release, out)
    )
    assert converted["layout"] == layout
    assert raw["continuation"] == converted["continuation"]
    assert raw["layers"] == converted["layers"]
    levels = [[c for c in report["checks"] if c["level"] == "L3"] for report in (raw, converted)]
    assert levels[0] == levels[1]


def test_one_nan_is_exit_3_and_named(moetool, copy):
    write_into(copy, "layers.1.feed_forward.experts.2.w3.weight", b"\xc0\x7f", offset=2)
    done = moetool("smoke-test", copy, check=3)
    assert "layers.1 expert 2 w3 row 0 column 1" in done.stdout
    assert "not finite" in done.stderr


def test_json_stays_json_where_values_are_nan(moetool, copy):
    write_into(copy, "norm.weight", b"\xc0\x7f")

    def refuse(name):
        raise AssertionError(name)

    done = moetool("smoke-test", copy, "--json", check=3)
    report = json.loads(done.stdout, parse_constant=refuse)
    assert report["continuation"] is None
    failed = {check["name"] for check in report["checks"] if check["verdict"] == "FAIL"}
    assert failed >= {"no NaN", "finite layers", "loss"}


def test_theta_10000_in_params_json_is_exit_3(moetool, copy):
    params = json.loads((copy / "params.json").read_text())
    (copy / "params.json").write_text(json.dumps({**params, "rope_theta": 10000}))
    done = moetool("smoke-test", copy, "--max-tokens", 0, "--json", check=3)
    report = json.loads(done.stdout)
    failed = {check["name"] for check in report["checks"] if check["verdict"] == "FAIL"}
    assert failed == {"rope_theta", "loss band"}
    assert report["continuation"] is None


def test_another_tokenizer_is_exit_3(moetool, copy):
    """The score of one piece changes in its last bit: only the digest can tell."""
    path = copy / "tokenizer.model"
    data = bytearray(path.read_bytes())
    score = data.index(b"\x15", data.index("▁the".encode()))  # field 2, fixed32, behind the piece
    data[score + 1] ^= 1
    path.write_bytes(data)
    done = moetool("smoke-test", copy, "--max-tokens", 0, "--json", check=3)
    verdicts = {check["name"]: check["verdict"] for check in json.loads(done.stdout)["checks"]}
    assert verdicts.pop("tokenizer digest") == "FAIL"
    assert verdicts.pop("loss band") == "NOT COVERED"
    assert set(verdicts.values()) == {"PASS"}


def test_a_torn_file_is_refused(moetool, copy):
    weights = copy / "consolidated.00.pth"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    done = moetool("smoke-test", copy, check=4)
    assert "hint:" in done.stderr


def test_a_config_of_another_model_is_refused_with_all_findings(moetool, copy):
    params = json.loads((copy / "params.json").read_text())
    (copy / "params.json").write_text(json.dumps({**params, "dim": 512}))
    done = moetool("smoke-test", copy, check=4)
    assert "expected shape" in done.stderr


def test_a_gpu_that_is_not_there_is_exit_5(moetool, tiny_release):
    done = moetool(
        "smoke-test", tiny_release, "--device", "cuda:7", env={"CUDA_VISIBLE_DEVICES": ""}, check=5
    )
    assert "hint: --device cpu" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words", [("--device", "gpu"), ("--dtype", "int8"), ("--temperature", "-1")]
)
def test_senseless_options_are_exit_2(moetool, tiny_release, words):
    moetool("smoke-test", tiny_release, *words, check=2)


def test_without_a_tokenizer_ids_are_used_and_a_prompt_is_refused(moetool, copy):
    (copy / "tokenizer.model").unlink()
    done = moetool("smoke-test", copy, "--max-tokens", 4, "--json", check=0)
    report = json.loads(done.stdout)
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["loss"] == verdicts["tokenizer"] == "NOT COVERED"
    assert verdicts["cached = one pass"] == verdicts["finite layers"] == "PASS"
    assert len(report["continuation"]["tokens"]) == 4
    moetool("smoke-test", copy, "--prompt", "Once", check=4)


def test_a_seed_makes_sampled_text_repeatable(moetool, tiny_release):
    words = ("--temperature", 1.5, "--seed", 1, "--max-tokens", 16, "--json")
    texts = [
        json.loads(moetool("smoke-test", tiny_release, *words).stdout)["continuation"]["text"]
        for _ in range(2)
    ]
    assert texts[0] == texts[1] != ""


def test_the_strip_reads_without_colour():
    assert strip((10, 10, 10, 10)) == "▄▄▄▄"
    assert strip((0, 1, 0, 999)) == " ▁ █"
    assert strip((0, 0)) == "  "


def test_beside_its_source_a_conversion_is_equal_to_the_last_bit(moetool, tiny_release, tmp_path):
    out = tmp_path / "out"
    moetool("convert", tiny_release, "--to", "gguf", "--out", out, "-q", check=0)
    done = moetool("smoke-test", out, "--against", tiny_release, "--max-tokens", 0, check=0)
    assert "equal to the last bit" in done.stdout


def test_beside_its_source_one_bit_is_found(moetool, tiny_release, copy):
    """A mantissa bit that no loss can show: the tensor, and the part that computes otherwise."""
    write_into(copy, "layers.1.feed_forward.experts.6.w3.weight", b"\x01", offset=1)
    done = moetool("smoke-test", copy, "--against", tiny_release, "--max-tokens", 0, "--json",
                   check=3)  # fmt: skip
    failed = {c["name"]: c for c in json.loads(done.stdout)["checks"] if c["verdict"] == "FAIL"}
    assert failed["same values"]["value"] == ["layers.1 expert 6 w3"]
    assert failed["lockstep"]["detail"].startswith("layers.1 expert 6")
    moetool("smoke-test", copy, "--against", tmp_absent(copy), check=2)


def tmp_absent(folder):
    return folder.with_name("absent")
