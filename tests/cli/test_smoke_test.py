"""`moetool smoke-test` as a user and as a script sees it."""

from __future__ import annotations

import json
import shutil

import pytest

from moetool.cli.app import run
from moetool.cli.smoke_text import strip


@pytest.fixture
def copy(tiny_release, tmp_path):
    """A copy of the release that may be damaged."""
    target = tmp_path / "copy"
    shutil.copytree(tiny_release, target)
    return target


@pytest.fixture
def here(capsys):
    """Run the command in this process: exit code, stdout, stderr."""

    def invoke(*words):
        code = run(["smoke-test", *map(str, words)])
        done = capsys.readouterr()
        return code, done.out, done.err

    return invoke


@pytest.fixture
def looked(here):
    """Run with --json and no text: exit code, checks by name, and the whole report."""

    def invoke(*words):
        code, out, _ = here(*words, "--max-tokens", 0, "--json", "--quiet")
        report = json.loads(out)
        return code, {check["name"]: check for check in report.get("checks", ())}, report

    return invoke


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
    assert (report["schema"], report["version"], report["ok"]) == ("moetool.smoke-test", 2, True)
    assert report["release"] == "tiny-mixtral-8x1m"
    assert len(report["continuations"]) == 3
    for continuation in report["continuations"]:
        assert continuation["text"]
        assert len(continuation["tokens"]) <= 8
        assert continuation["entropy"] > 0
    assert {check["level"] for check in report["checks"]} == {"L0", "L1", "L3"}
    assert {check["verdict"] for check in report["checks"]} == {"PASS"}
    load = report["layers"][0]["load"]
    assert sum(load) == 2 * report["figures"]["text_tokens"] == 2 * len(report["text_tokens"])


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
    assert raw["continuations"] == converted["continuations"]
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
    assert report["continuations"] == []
    failed = {check["name"] for check in report["checks"] if check["verdict"] == "FAIL"}
    assert failed >= {"no NaN", "finite layers", "loss"}


def test_theta_10000_in_params_json_is_exit_3(moetool, copy):
    params = json.loads((copy / "params.json").read_text())
    (copy / "params.json").write_text(json.dumps({**params, "rope_theta": 10000}))
    done = moetool("smoke-test", copy, "--max-tokens", 0, "--json", check=3)
    report = json.loads(done.stdout)
    failed = {check["name"] for check in report["checks"] if check["verdict"] == "FAIL"}
    assert failed == {"rope_theta", "loss band"}
    assert report["continuations"] == []


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
    "words",
    [
        ("--device", "gpu"), ("--dtype", "int8"), ("--temperature", "-1"), ("--engine", "vllm"),
        ("--quick", "--long"), ("--quick", "--against", "."), ("--logits", "absent.npy"),
        ("--expect", "absent.json"),
    ],
)  # fmt: skip
def test_senseless_options_are_exit_2(here, tiny_release, words):
    assert here(tiny_release, *words)[0] == 2


def test_the_engines_that_can_be_named_are_those_that_there_are():
    from moetool.cli.smoke_test import ENGINES
    from moetool.model.smoke import engines

    assert tuple(engines.ENGINES) == ENGINES


def test_without_a_tokenizer_ids_are_used_and_a_prompt_is_refused(moetool, copy):
    (copy / "tokenizer.model").unlink()
    done = moetool("smoke-test", copy, "--max-tokens", 4, "--json", check=0)
    report = json.loads(done.stdout)
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["loss"] == verdicts["tokenizer"] == "NOT COVERED"
    assert verdicts["cached = one pass"] == verdicts["finite layers"] == "PASS"
    assert len(report["continuations"][0]["tokens"]) == 4
    moetool("smoke-test", copy, "--prompt", "Once", check=4)


def test_a_seed_makes_sampled_text_repeatable(moetool, tiny_release):
    words = ("--temperature", 1.5, "--seed", 1, "--max-tokens", 16, "--json")
    texts = [
        json.loads(moetool("smoke-test", tiny_release, *words).stdout)["continuations"][0]["text"]
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


def test_three_beginnings_are_continued_and_shown(here, tiny_release):
    code, out, _ = here(tiny_release, "--max-tokens", 4, "--quiet")
    assert code == 0
    assert out.count("nats of choice") == 3


def test_quick_reads_no_tensor_whole_and_says_so(looked, here, tiny_release):
    code, checks, report = looked(tiny_release, "--quick")
    assert code == 0
    assert {check["level"] for check in checks.values()} == {"L0", "L1", "L3"}
    unseen = {name for name, check in checks.items() if check["verdict"] == "NOT COVERED"}
    assert unseen == {"bits", "loss band", "cached = one pass"}
    assert report["figures"]["scan_nbytes"] == 0
    _, out, _ = here(tiny_release, "--quick", "--max-tokens", 3, "--quiet")
    assert "nats of choice" not in out  # one prompt, and it is streamed
    assert "\nOnce upon a time" in out


def test_what_was_recorded_is_expected(looked, tiny_release, copy, tmp_path):
    """Equal the second time; a mantissa bit is named; neither replaced nor read if malformed."""
    golden = tmp_path / "golden.json"
    code, checks, _ = looked(tiny_release, "--record", golden)
    assert (code, checks["golden"]["verdict"]) == (0, "NOT COVERED")
    code, checks, _ = looked(tiny_release, "--expect", golden)
    assert (code, checks["golden"]["level"], checks["golden"]["verdict"]) == (0, "L3", "PASS")
    write_into(copy, "layers.1.feed_forward.experts.6.w3.weight", b"\x01", offset=1)
    code, checks, _ = looked(copy, "--expect", golden)
    assert code == 3
    assert {n for n, check in checks.items() if check["verdict"] == "FAIL"} == {"golden"}
    assert checks["golden"]["value"] == "layers.1 experts"
    assert looked(tiny_release, "--record", golden)[0] == 7
    assert looked(tiny_release, "--expect", golden, "--dtype", "float32")[0] == 4
    assert looked(tiny_release, "--expect", golden, "--quick")[0] == 4
    golden.write_text(golden.read_text().replace("text", "test"))
    assert looked(tiny_release, "--expect", golden)[0] == 4


def test_logits_of_another_engine_are_read_from_a_file(looked, tiny_release, copy, tmp_path):
    """The tokens come from the report, the logits are ours; half a gate exchanged is a no."""
    import torch

    from moetool.cli.running import running
    from moetool.model.smoke.npy import write_floats

    report = looked(tiny_release, "--quick")[2]
    with running(tiny_release, "cpu", "float32", None) as opened:
        ids = torch.tensor(report["text_tokens"])
        logits = opened.model.forward(ids, opened.model.new_cache(len(ids)))
    write_floats(tmp_path / "all.npy", logits)
    write_floats(tmp_path / "last.npy", logits[-1])
    files = ("--logits", tmp_path / "all.npy", "--logits", tmp_path / "last.npy")
    code, checks, _ = looked(tiny_release, "--quick", *files)
    found = [checks[f"logits of {name}.npy"] for name in ("all", "last")]
    assert (code, {check["level"] for check in found}) == (0, {"L4"})
    assert {check["verdict"] for check in found} == {"PASS"}
    write_into(copy, "layers.1.feed_forward.experts.0.w1.weight", bytes(256 * 256 * 2))
    write_into(copy, "layers.1.feed_forward.experts.1.w1.weight", bytes(256 * 256 * 2))
    assert looked(copy, "--quick", *files)[0] == 3
    assert looked(tiny_release, *files)[0] == 4  # 910 tokens, not 128
    (tmp_path / "all.npy").write_bytes(b"\x93NUMPY")
    assert looked(tiny_release, "--quick", *files)[0] == 4


def test_needles_are_asked_for_with_long_only(looked, tiny_release):
    names = {f"needle at {size}" for size in (4096, 16384, 32768)}
    code, checks, _ = looked(tiny_release, "--long")
    assert code == 0
    assert {checks[name]["verdict"] for name in names} == {"NOT COVERED"}


def test_an_engine_that_cannot_read_the_format_is_not_covered(looked, tiny_release):
    words = ("--quick", "--engine", "transformers", "--engine", "llama.cpp")
    code, checks, _ = looked(tiny_release, *words)
    assert code == 0
    for name in ("transformers", "llama.cpp"):
        check = checks[f"logits of {name}"]
        assert (check["level"], check["verdict"]) == ("L4", "NOT COVERED")
