"""A catalog is recognised by all its names and shapes, or refused with all findings."""

import json

import pytest

from moetool.arch import spelling
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import match_names, read_json, recognize
from moetool.arch.schema import expand
from moetool.errors import BadHeader, InconsistentCheckpoint, UnknownConvention
from moetool.tensors import Catalog, DType, TensorInfo


def catalog_of(name, args):
    convention = MIXTRAL.convention(name)
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


@pytest.mark.parametrize(
    ("stranger", "family"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "Phi-3.5-MoE"),
        ("model.layers.0.mlp.shared_experts.gate_proj.weight", "DeepSeek"),
        ("model.layers.0.mlp.gate.e_score_correction_bias", "MiniMax"),
        ("model.layers.0.self_attn.q_norm.weight", "Qwen3"),
        ("layers.0.feed_forward.w1.weight", "dense Mistral"),
    ],
)
def test_look_alikes_are_refused_by_name(stranger, family, small_args):
    """Mixtral's names with a stranger among them are another family."""
    names = [*expand(MIXTRAL.convention("hf"), small_args), stranger]
    with pytest.raises(UnknownConvention, match=family):
        match_names(names)


def test_a_mixtral_named_model_of_another_type_is_refused(small_args, tmp_path):
    """Phi-3.5-MoE's config says phimoe; its router is another."""
    config = spelling.to_config_json(small_args, "bfloat16") | {"model_type": "phimoe"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownConvention, match="phimoe"):
        recognize(catalog_of("hf", small_args), tmp_path)


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
