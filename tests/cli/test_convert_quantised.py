"""`moetool convert --dtype q4_k_m`: one step to a quantised GGUF, its error and certificate."""

import json
from array import array

import pytest

from moetool.cli.app import run
from moetool.convert.job import prepare
from moetool.convert.synthetic import GEOMETRIES, random_source, write_full_geometry
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint
from moetool.formats.imatrix import Entry, Imatrix, write_imatrix

TINY = GEOMETRIES["tiny"]
TO_GGUF = ("--to", "gguf", "--dtype", "q4_k_m")


@pytest.fixture(scope="module")
def raw(tmp_path_factory, tiny_release):
    """A random raw checkpoint on disk, with a vocabulary."""
    out = tmp_path_factory.mktemp("source") / "raw"
    vocabulary = (tiny_release / "tokenizer.model").read_bytes()
    prepare(random_source(TINY, 0, vocabulary), find_target("pth", "mistral"), out).run()
    return out


@pytest.fixture
def convert(raw, tmp_path, capsys):
    """Run the command in this process; a refusal leaves nothing."""

    def go(*words, check=0, source=raw):
        capsys.readouterr()
        out = tmp_path / "out"
        code = run(["convert", str(source), "--out", str(out), *map(str, words)])
        told = capsys.readouterr()
        assert code == check, told.err
        assert out.exists() == (code == 0 and "--dry-run" not in words)
        assert "Traceback" not in told.err
        return told

    return go


def planned(convert, *words):
    """The types that are planned, by tensor."""
    found = json.loads(convert(*TO_GGUF, *words, "--dry-run", "--json").out)
    return {step["target"]["name"]: step["target"]["dtype"]
            for shard in found["shards"] for step in shard["steps"]}  # fmt: skip


def test_from_pth_to_q4_k_m_with_its_error_and_certificate(convert, raw, tmp_path, capsys):
    """One command; what it says on the screen and in the folder, and that it is not easily said."""
    shown = convert(*TO_GGUF).out
    (header,) = [line.split() for line in shown.splitlines() if line.startswith("quantised ")]
    assert header[1:4] == ["count", "type", "relative"]
    (gate,) = [line.split() for line in shown.splitlines() if line.startswith("blk.#.ffn_gate_e")]
    assert gate[:3] == ["blk.#.ffn_gate_exps.weight", "x2", "q4_k"]
    assert 0.05 < float(gate[3]) < 0.09
    assert 0.99 < float(gate[5]) < 1
    assert gate[6] in {"blk.0.ffn_gate_exps.weight", "blk.1.ffn_gate_exps.weight"}
    assert shown.rstrip().endswith("\nQUANTISED")
    record = json.loads((tmp_path / "out" / "moetool-certificate.json").read_text())
    assert record["verdict"] == "QUANTISED"
    assert run(["verify", str(tmp_path / "out")]) == 0
    swap_experts(tmp_path / "out" / "out.gguf", "blk.0.ffn_up_exps.weight")
    capsys.readouterr()
    assert run(["certify", str(raw), str(tmp_path / "out" / "out.gguf")]) == 3
    told = capsys.readouterr().out
    assert told.rstrip().endswith("\nDIFFERENT")
    assert sum(" CHANGED: " in line for line in told.splitlines()) == 2  # two experts' w3


def swap_experts(path, name):
    """The first two experts of a layer in each other's place."""
    with open_checkpoint(path) as checkpoint:
        extent, info = checkpoint.catalog.extents[name], checkpoint.catalog.tensors[name]
    n = info.nbytes // info.shape[0]
    raw = path.read_bytes()
    at, middle, end = (extent.offset + k * n for k in range(3))
    path.write_bytes(raw[:at] + raw[middle:end] + raw[at:middle] + raw[end:])


def test_as_json_it_is_the_same_table(convert):
    report = json.loads(
        convert("--to", "gguf", "--dtype", "Q8_0", "--json", "--no-certificate").out
    )
    roles = {role["tensors"]: role for role in report["casts"]["quantised"]}
    assert roles["output.weight"].keys() >= {"rel_rms", "max_abs", "cosine", "worst"}
    assert {role["dtype"] for role in roles.values()} == {"q8_0"}
    assert all(0.003 < role["rel_rms"] < 0.008 for role in roles.values())
    assert "out.gguf" in report["files"]


USAGE = {
    "a type that is none": (("--to", "gguf", "--dtype", "nonsense"), "no --dtype 'nonsense'"),
    "blocks in safetensors": (("--to", "safetensors", "--dtype", "q4_k_m"),
                              "a safetensors file has no q4_k_m"),
    "blocks in a pth": (("--to", "pth", "--dtype", "q8_0"), "a pth file has no q8_0"),
    "a matrix without a mix": (("--to", "gguf", "--imatrix", "i.gguf"), "change a mix"),
    "a pattern without a mix": (("--to", "gguf", "--dtype", "bf16", "--tensor-type", "a=q8_0"),
                                "change a mix"),
    "a regex that is none": ((*TO_GGUF, "--tensor-type", "ffn_(=q8_0"), "not a regex"),
    "a type in a pattern that is none": ((*TO_GGUF, "--tensor-type", "ffn_=q9"), "no type 'q9'"),
    "a pattern without a type": ((*TO_GGUF, "--tensor-type", "ffn_down"), "expected REGEX=TYPE"),
    "a pattern for one expert": (
        (*TO_GGUF, "--tensor-type", r"blk\.0\.ffn_down\.3=q8_0"), "matches no tensor"),
    "a pattern for the router": ((*TO_GGUF, "--tensor-type", "ffn_gate_inp=q8_0"),
                                 "norms and the router stay f32"),
    "an output type that is none": ((*TO_GGUF, "--output-type", "q7"), "no type 'q7'"),
}  # fmt: skip


@pytest.mark.parametrize("case", USAGE)
def test_what_cannot_be_meant_is_usage(case, convert):
    """Exit 2 with what is wrong and what there is, before anything is read or written."""
    words, said = USAGE[case]
    told = convert(*words, check=2).err
    assert said in told
    assert "hint: " in told


def test_an_expert_cannot_have_a_type_of_its_own_and_it_says_why(convert):
    told = convert(*TO_GGUF, "--tensor-type", r"ffn_down_exps\.3=q8_0", check=2).err
    assert "stores all experts of a layer as one tensor with one type" in " ".join(told.split())


def test_types_that_are_asked_for(convert):
    """By pattern, for output and embedding, and without exceptions."""
    assert planned(convert)["output.weight"] == "q6_k"
    found = planned(convert, "--tensor-type", r"blk\.1\.ffn_=q5_1", "--tensor-type", "ffn_=q3_k",
                    "--output-type", "F16", "--embedding-type", "q8_0")  # fmt: skip
    assert found["blk.1.ffn_up_exps.weight"] == "q5_1"
    assert found["blk.0.ffn_up_exps.weight"] == "q3_k"
    assert found["blk.0.ffn_gate_inp.weight"] == "f32"
    assert (found["output.weight"], found["token_embd.weight"]) == ("f16", "q8_0")
    assert set(planned(convert, "--pure").values()) == {"q4_k", "f32"}


def imatrix(path, columns):
    ones = array("f", [1.0]) * columns
    write_imatrix(path, Imatrix({"blk.0.attn_q.weight": Entry(ones, (4,))}, ("text",), 1, 4))
    return path


def test_an_importance_matrix_is_used_and_named(convert, tmp_path):
    told = convert(*TO_GGUF, "--imatrix", imatrix(tmp_path / "i.gguf", 256), "--no-certificate")
    assert "without an entry" in told.err
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.catalog.metadata["quantize.imatrix.file"] == "i.gguf"


def test_an_importance_matrix_of_another_model_is_refused(convert, tmp_path):
    told = convert(*TO_GGUF, "--imatrix", imatrix(tmp_path / "i.gguf", 128), check=4).err
    assert "blk.0.attn_q.weight: the tensor has 1 x 256, the entry 1 x 128" in told
    convert(*TO_GGUF, "--imatrix", tmp_path / "none.gguf", check=5)


def test_the_size_of_8x7b_is_known_before(tmp_path, capsys):
    """28.45 GB, which is 4.87 bits a weight: from the headers alone, with nothing written."""
    write_full_geometry(GEOMETRIES["8x7b"], tmp_path / "full")
    words = ["convert", str(tmp_path / "full"), *TO_GGUF, "--dry-run", "--json"]
    assert run(words) in {0, 5}  # 5 where the disk is smaller
    plan = json.loads(capsys.readouterr().out)
    assert plan["nbytes"] == 28_447_727_616
    assert round(plan["nbytes"] / 1e9, 2) == 28.45
    (size,) = plan["files"].values()
    assert 0 < size - plan["nbytes"] < 100_000  # its header; here without a vocabulary
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_planned_size_is_the_size(convert, tmp_path):
    """Of each part, vocabulary and all, and as they are named and numbered."""
    words = (*TO_GGUF, "--max-shard-size", "1MB", "--no-certificate", "--json")
    planned = json.loads(convert(*words, "--dry-run").out)["files"]
    assert next(iter(planned)) == f"out-00001-of-{len(planned):05d}.gguf"
    assert len(planned) > 1
    convert(*words)
    written = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.gguf")}
    assert written == planned
