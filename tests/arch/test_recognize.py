"""A catalog is recognised by all its names and shapes, or refused with all findings."""

import json
from dataclasses import replace

import pytest

from moetool.arch import spelling
from moetool.arch.mistral import DENSE
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import read_json, recognize, recognize_part
from moetool.arch.schema import expand
from moetool.convert.synthetic import GEOMETRIES
from moetool.errors import BadHeader, InconsistentCheckpoint, UnknownConvention
from moetool.tensors import Catalog, DType, TensorInfo


def catalog_of(name, args, architecture=MIXTRAL):
    convention = architecture.convention(name)
    infos = {n: TensorInfo(n, DType.BF16, s.shape) for n, s in expand(convention, args).items()}
    metadata = {key: value for key, (_, value) in spelling.to_gguf(args).items()}
    metadata["general.architecture"] = "llama"
    return Catalog(convention.file_format, infos, {}, metadata)


def write_side_files(directory, args):
    (directory / "params.json").write_text(json.dumps(spelling.to_params_json(args)))
    (directory / "config.json").write_text(json.dumps(spelling.to_config_json(args, "bfloat16")))


@pytest.mark.parametrize("name", [convention.name for convention in MIXTRAL.conventions])
def test_each_convention_is_recognised(name, small_args, tmp_path):
    """The names choose the table, the side files the hyperparameters."""
    write_side_files(tmp_path, small_args)
    found = recognize(catalog_of(name, small_args), tmp_path)
    assert found.convention.name == name
    assert found.args.dim == small_args.dim


def test_all_findings_are_listed_at_once(small_args, tmp_path):
    """Missing and mis-shaped tensors come together, by name."""
    write_side_files(tmp_path, small_args)
    catalog = catalog_of("mistral", small_args)
    tensors = dict(catalog.tensors)
    del tensors["layers.0.attention.wq.weight"]
    wrong = "layers.1.feed_forward.experts.2.w2.weight"
    tensors[wrong] = TensorInfo(wrong, DType.BF16, (40, 24))
    with pytest.raises(InconsistentCheckpoint) as caught:
        recognize(Catalog("pth", tensors, {}), tmp_path)
    assert caught.value.findings == (
        "missing layers.0.attention.wq.weight",
        f"{wrong}: expected shape [24, 40], got [40, 24]",
    )


def test_layers_beyond_the_declared_ones_are_unexpected(small_args, changed_args, tmp_path):
    """A params.json of a smaller model does not silently drop layers."""
    write_side_files(tmp_path, changed_args(small_args, n_layers=1))
    with pytest.raises(InconsistentCheckpoint) as caught:
        recognize(catalog_of("mistral", small_args), tmp_path)
    assert all(finding.startswith("unexpected layers.1.") for finding in caught.value.findings)


def test_a_mixtral_named_model_of_another_type_is_refused(small_args, tmp_path):
    """Phi-3.5-MoE's config says phimoe; its router is another."""
    config = spelling.to_config_json(small_args, "bfloat16") | {"model_type": "phimoe"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownConvention, match=r"Phi-3\.5-MoE: a sparsemixer router"):
        recognize(catalog_of("hf", small_args), tmp_path)


def test_a_type_that_nobody_knows_is_refused_too(small_args, tmp_path):
    """Mixtral's names and shapes under a type of tomorrow are not taken for Mixtral."""
    config = spelling.to_config_json(small_args, "bfloat16") | {"model_type": "mixtral_next"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownConvention, match="mixtral_next"):
        recognize(catalog_of("hf", small_args), tmp_path)


@pytest.mark.parametrize("name", [convention.name for convention in DENSE.conventions])
def test_each_dense_convention_is_recognised(name, dense_args, tmp_path):
    """Names and hyperparameters together choose the dense family."""
    write_side_files(tmp_path, dense_args)
    found = recognize(catalog_of(name, dense_args, DENSE), tmp_path)
    assert (found.architecture, found.convention.name) == (DENSE, name)
    assert found.args.sliding_window == 16
    assert found.args.rope_theta == 1e4


def test_dense_names_with_a_mixtures_hyperparameters_are_refused(small_args, dense_args, tmp_path):
    """A params.json that lies beside the wrong weights is told apart at once."""
    write_side_files(tmp_path, small_args)
    with pytest.raises(InconsistentCheckpoint, match="the hyperparameters have 3 experts"):
        recognize(catalog_of("mistral", dense_args, DENSE), tmp_path)
    write_side_files(tmp_path, dense_args)
    with pytest.raises(InconsistentCheckpoint, match="the hyperparameters have no experts"):
        recognize(catalog_of("mistral", small_args), tmp_path)


@pytest.mark.parametrize("vocab_size", [32000, 32768])
def test_8x22b_is_recognised_in_its_own_form(vocab_size, tmp_path):
    """1,739 tensors of consolidated.safetensors: vocabulary of the base model and of v0.3."""
    args = replace(GEOMETRIES["8x22b"], vocab_size=vocab_size)
    write_side_files(tmp_path, args)
    catalog = catalog_of("mistral", args)
    found = recognize(Catalog("safetensors", catalog.tensors, {}), tmp_path)
    assert len(catalog.tensors) == 1739
    assert found.args.n_params == {32000: 140_620_634_112, 32768: 140_630_071_296}[vocab_size]
    assert found.args.max_seq_len == 65536


def test_without_side_file_the_next_step_is_said(small_args, tmp_path):
    """Shapes alone do not tell heads and experts per token."""
    with pytest.raises(InconsistentCheckpoint, match=r"no params\.json") as caught:
        recognize(catalog_of("mistral", small_args), tmp_path)
    assert "params.json" in caught.value.hint


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 1, "a": 2}', "\udcff", "[" * 100_000])
def test_side_files_that_are_no_object_are_refused(text, tmp_path):
    """Torn, doubled and deep JSON is a refusal, not a traceback."""
    path = tmp_path / "params.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadHeader):
        read_json(path)


def gguf_with_vocabulary(args, **changes):
    """A GGUF's catalog with a vocabulary of pieces and 256 bytes."""
    catalog = catalog_of("gguf", args)
    n_words = args.vocab_size - 256
    values = {
        "model": "llama",
        "tokens": [*(f"w{i}" for i in range(n_words)), *(f"<0x{i:02X}>" for i in range(256))],
        "scores": [-float(i) for i in range(args.vocab_size)],
        "token_type": [1] * n_words + [6] * 256,
    } | changes
    found = {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}
    return Catalog("gguf", catalog.tensors, {}, {**catalog.metadata, **found})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": [0.0] * 300}, "all scores are alike"),
        ({"scores": None}, "0 entries of tokenizer.ggml.scores"),
        ({"token_type": [1] * 300}, "256 tokens are spelled as bytes, 0 marked as such"),
        ({"token_type": [1] * 299}, "299 entries of tokenizer.ggml.token_type"),
        ({"tokens": ["a", "b"]}, "2 tokens for a vocabulary of 300"),
        ({"tokens": ["a"] * 300}, "299 tokens are there twice"),
        ({"tokens": None}, "0 tokens for a vocabulary of 300"),
        ({"model": None}, "no tokenizer.ggml.model"),
        ({"token_type": None}, "0 entries of tokenizer.ggml.token_type"),
        ({"eos_token_id": 300}, "eos_token_id is 300 of 300 tokens"),
    ],
)
def test_a_gguf_that_llama_cpp_would_tokenise_wrongly_is_refused(
    changes, said, small_args, changed_args, tmp_path
):
    """What loads there without a word, and changes the ids, is named here."""
    args = changed_args(small_args, vocab_size=300)
    assert recognize(gguf_with_vocabulary(args), tmp_path).args.vocab_size == 300
    with pytest.raises(InconsistentCheckpoint) as caught:
        recognize(gguf_with_vocabulary(args, **changes), tmp_path)
    assert any(said in finding for finding in caught.value.findings)


def test_a_gguf_that_lacks_one_layers_experts_is_refused(small_args, tmp_path):
    """llama.cpp loads it and talks nonsense."""
    catalog = catalog_of("gguf", small_args)
    tensors = dict(catalog.tensors)
    del tensors["blk.1.ffn_gate_exps.weight"]
    with pytest.raises(InconsistentCheckpoint) as caught:
        recognize(Catalog("gguf", tensors, {}, catalog.metadata), tmp_path)
    assert caught.value.findings == ("missing blk.1.ffn_gate_exps.weight",)


def test_a_part_is_recognised_as_what_the_whole_will_be(small_args, tmp_path):
    """Tensors that are not here yet are no fault; strangers and wrong shapes are."""
    write_side_files(tmp_path, small_args)
    whole = recognize(catalog_of("hf", small_args), tmp_path)
    tensors = catalog_of("hf", small_args).tensors
    few = dict(list(tensors.items())[3:9])
    part = recognize_part(Catalog("safetensors", few, {}), tmp_path, few, "hf")
    assert part == whole
    assert recognize_part(Catalog("safetensors", {}, {}), tmp_path, (), "hf") == whole
    with pytest.raises(InconsistentCheckpoint) as caught:
        recognize_part(Catalog("safetensors", {}, {}), tmp_path, [*tensors, "lm_head.weight",
                       "model.layers.2.input_layernorm.weight"], "hf")  # fmt: skip
    assert caught.value.findings == ("unexpected model.layers.2.input_layernorm.weight",)
    name = "model.norm.weight"
    wrong = Catalog("safetensors", {name: TensorInfo(name, DType.BF16, (7,))}, {})
    with pytest.raises(InconsistentCheckpoint, match="1 tensors do not fit"):
        recognize_part(wrong, tmp_path, [name], "hf")


@pytest.mark.parametrize("name", [convention.name for convention in DENSE.conventions])
def test_mistral_7b_is_recognised_at_its_true_size(name, tmp_path):
    """291 tensors in each layout, theta 1e4 and the window from whatever lies beside them."""
    write_side_files(tmp_path, GEOMETRIES["7b"])
    found = recognize(catalog_of(name, GEOMETRIES["7b"], DENSE), tmp_path)
    assert len(found.layout) == 291
    assert found.args.n_params == 7_241_732_096
    assert (found.args.rope_theta, found.args.sliding_window) == (1e4, 4096)
