"""A recipe says what was asked for, in header, manifest and notes; and what had to give way."""

from __future__ import annotations

import json
from array import array

import pytest

from moetool.convert.job import prepare
from moetool.convert.quantised.mixes import Quantization, parse_overrides
from moetool.convert.quantised.recipe import Recipe
from moetool.convert.synthetic import random_source
from moetool.convert.targets import find_target
from moetool.errors import Refused, UsageFault
from moetool.formats import open_checkpoint
from moetool.formats.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
from moetool.tensors import DType


@pytest.fixture
def small_args(small_args, changed_args):
    return changed_args(small_args, dim=256, head_dim=64, hidden_dim=288)


@pytest.fixture
def job(small_args, tmp_path):
    """Prepare a conversion of random weights; nothing is written."""

    def make(recipe, kind=("gguf", None)):
        source = random_source(small_args, 0, None)
        return prepare(source, find_target(*kind), tmp_path / "out", recipe=recipe)

    return make


def types(job):
    return {step.target.name: step.target.dtype.label for step in job.plan.steps}


def imatrix(path, names=(("blk.1.ffn_down_exps.weight", 3, 288), ("output.weight", 1, 256))):
    """A file of an importance matrix, read back; values of an entry tell matrix and column."""
    entries = {}
    for name, n, columns in names:
        values = [1 + matrix + column / 1000 for matrix in range(n) for column in range(columns)]
        entries[name] = Entry(array("f", values), (1,) * n)
    write_imatrix(path, Imatrix(entries, ("a text",), 7, 64))
    return read_imatrix(path), path


def test_the_plan_has_the_types_of_the_mix(job):
    found = types(job(Recipe(Quantization("q4_k_m"))))
    assert found["blk.0.attn_q.weight"] == "q4_k"
    assert found["output.weight"] == "q6_k"
    assert found["blk.0.attn_norm.weight"] == found["blk.0.ffn_gate_inp.weight"] == "f32"


def test_rows_that_fill_no_blocks_are_told_of(job):
    """288 is no multiple of 256; nothing gives way silently."""
    made = job(Recipe(Quantization("q4_k_m")))
    assert types(made)["blk.0.ffn_down_exps.weight"] == "q5_0"
    assert (
        "blk.0.ffn_down_exps.weight: rows of 288 fill no blocks of q4_k, so it becomes q5_0"
        in made.notes
    )
    assert not any("rows of" in note for note in job(Recipe(Quantization("q8_0"))).notes)


def test_only_a_gguf_has_a_recipe(job):
    for kind in (("safetensors", "hf"), ("pth", "mistral")):
        with pytest.raises(UsageFault, match="has no q4_0: quantised blocks are GGUF's"):
            job(Recipe(Quantization("q4_0")), kind)


def test_what_was_asked_for_is_an_option_of_the_work(tmp_path):
    """In the words of the command line; another matrix of the same name is another work."""
    plain = Recipe(Quantization("q4_k_m"))
    assert plain.options() == {"dtype": "q4_k_m"}
    weights = imatrix(tmp_path / "a.gguf")
    asked = Quantization("q4_0", parse_overrides(["ffn_=q8_0"]), True, DType.F16, DType.Q5_1, True)
    found = Recipe(asked, weights).options()
    digest = found["imatrix"].pop("weights_sha256")
    assert found == {
        "dtype": "q4_0", "tensor_types": ["ffn_=q8_0"], "pure": True, "output_type": "f16",
        "embedding_type": "q5_1", "imatrix": {"file": "a.gguf"},
    }  # fmt: skip
    (tmp_path / "b").mkdir()
    other = imatrix(tmp_path / "b" / "a.gguf", [("output.weight", 1, 256)])
    assert Recipe(asked, other).options()["imatrix"]["weights_sha256"] != digest
    assert Recipe(asked, weights).options()["imatrix"]["weights_sha256"] == digest


def test_the_header_names_the_mix_and_the_matrix(tmp_path):
    read, path = imatrix(tmp_path / "a.gguf")
    assert Recipe(Quantization("q5_k_s")).metadata() == {"general.file_type": ("u32", 16)}
    assert Recipe(Quantization("q2_k"), (read, path)).metadata() == {
        "general.file_type": ("u32", 10),
        "quantize.imatrix.file": ("str", "a.gguf"),
        "quantize.imatrix.dataset": ("str", "a text"),
        "quantize.imatrix.entries_count": ("u32", 2),
        "quantize.imatrix.chunks_count": ("u32", 7),
    }


def test_each_expert_has_its_own_columns(job, tmp_path):
    """One vector for each part, in the order of the parts; none where there is no entry."""
    recipe = Recipe(Quantization("q8_0", has_imatrix=True), imatrix(tmp_path / "a.gguf"))
    made = job(recipe)
    found = recipe.importance(made.plan)
    assert set(found) == {"blk.1.ffn_down_exps.weight", "output.weight"}
    columns = found["blk.1.ffn_down_exps.weight"]
    assert [len(each) for each in columns] == [288] * 3
    assert [round(float(each[5]), 3) for each in columns] == [1.005, 2.005, 3.005]
    assert any("without an entry" in note for note in made.notes)


def test_a_matrix_of_another_model_is_refused(job, tmp_path):
    """By the names and sizes of all entries that do not fit, before anything is written."""
    wrong = [("blk.0.ffn_down_exps.weight", 3, 256), ("output.weight", 2, 256)]
    made = job(Recipe(Quantization("q8_0", has_imatrix=True), imatrix(tmp_path / "a.gguf", wrong)))
    with pytest.raises(Refused, match="2 entries of the importance matrix") as refused:
        made.run()
    assert [finding.split(":")[0] for finding in refused.value.findings] == [n for n, *_ in wrong]
    assert not list(tmp_path.glob("out*"))


def test_the_file_and_the_manifest_say_it(job, tmp_path):
    recipe = Recipe(Quantization("q8_0", has_imatrix=True), imatrix(tmp_path / "a.gguf"))
    job(recipe).run()
    with open_checkpoint(tmp_path / "out") as checkpoint:
        metadata = checkpoint.catalog.metadata
    assert metadata["general.file_type"] == 7
    assert metadata["quantize.imatrix.chunks_count"] == 7
    manifest = json.loads((tmp_path / "out" / "moetool-manifest.json").read_text())
    assert manifest["options"]["dtype"] == "q8_0"
    assert manifest["options"]["imatrix"]["file"] == "a.gguf"
