"""What differs before any value: settings, missing and extra tensors, shapes, types."""

from __future__ import annotations

import pytest
import torch

from moetool.arch.schema import Role
from moetool.errors import InconsistentCheckpoint, UnknownConvention


def extra_row(model):
    """One more token, as after adding a pad token."""
    for role in (Role.TOK_EMBEDDINGS, Role.OUTPUT):
        name = model.name(role)
        model.tensors[name] = torch.cat([model.tensors[name], torch.zeros(1, 24).bfloat16()])
    object.__setattr__(model.args, "vocab_size", 57)


def test_settings_that_change_the_maths_are_a_difference(written, diffed):
    report = diffed(written("mistral"), written("hf", rope_theta=1e4, n_experts_per_tok=1))
    assert not report.ok
    assert report.tensors == ()
    assert {(s.name, s.a, s.b, s.changes_maths) for s in report.structure.settings} == {
        ("rope_theta", 1e6, 1e4, True),
        ("n_experts_per_tok", 2, 1, True),
    }


def test_a_longer_context_is_told_and_no_difference(written, diffed):
    report = diffed(written("hf"), written("hf", max_seq_len=4096))
    assert report.ok
    (setting,) = report.structure.settings
    assert (setting.name, setting.changes_maths) == ("max_seq_len", False)


def test_other_types_of_the_same_values_are_no_difference(written, diffed):
    def wide(model):
        for name, tensor in model.tensors.items():
            model.tensors[name] = tensor.float()

    report = diffed(written("mistral"), written("hf", wide))
    assert report.verdict == "EQUAL"
    (kind,) = report.structure.types
    assert (kind.a, kind.b, kind.n_tensors) == ("bf16", "f32", 35)


def test_an_extra_row_of_the_embedding(written, diffed):
    report = diffed(written("mistral"), written("hf", extra_row))
    assert not report.ok
    assert report.tensors == ()
    assert [(s.name, s.words) for s in report.structure.shapes] == [
        ("tok_embeddings.weight", "B has 1 extra row (tokens); the 56 rows of both are equal"),
        ("output.weight", "B has 1 extra row (tokens); the 56 rows of both are equal"),
    ]
    assert report.n_compared == 33


def test_fewer_layers_and_experts_are_compared_as_far_as_they_go(written, diffed):
    report = diffed(written("mistral"), written("gguf", n_layers=1, n_experts=2))
    found = report.structure
    assert found.only_b == ()
    assert len(found.only_a) == 16 + 3
    assert "layers.1.attention.wq.weight" in found.only_a
    assert "layers.0.feed_forward.experts.2.w2.weight" in found.only_a
    (shape,) = found.shapes
    assert (shape.name, shape.words) == (
        "layers.0.feed_forward.gate.weight",
        "A has 1 extra row (experts); the 2 rows of both are equal",
    )
    assert report.tensors == ()
    assert report.n_compared == 2 + 1 + 6 + 6


@pytest.mark.parametrize("layout", ["mistral", "hf", "hf-fused", "gguf"])
def test_a_missing_tensor_is_named_and_the_rest_compared(written, diffed, layout):
    def drop(model):
        del model.tensors[model.name(Role.WK, 1)]
        model.get(Role.WV, 0)[0] = 0

    report = diffed(written("mistral"), written(layout, drop))
    assert report.structure.only_a == ("layers.1.attention.wk.weight",)
    assert report.n_compared == 34
    assert [damage.kind for damage in report.damage] == ["zeroed"]


@pytest.mark.parametrize("layout", ["mistral", "hf", "hf-fused", "gguf"])
@pytest.mark.parametrize("name", ["layers.7.attention.wq.weight", "strange.name"])
def test_an_extra_tensor_is_named_and_the_rest_compared(written, diffed, layout, name):
    def add(model):
        model.tensors[name] = torch.zeros(3, 4)

    report = diffed(written(layout, add), written("mistral"))
    assert report.structure.only_a == (name,)
    assert report.n_compared == 35
    assert not report.ok


def test_an_extra_tensor_of_both_sides_is_no_difference(written, diffed):
    def add(model):
        model.tensors["strange.name"] = torch.zeros(3)

    assert diffed(written("hf", add), written("hf", add)).ok


def test_a_tensor_of_another_shape_than_the_settings_say(written, diffed):
    def cut(model):
        name = model.name(Role.WO, 1)
        model.tensors[name] = model.tensors[name][:, :20].contiguous()

    report = diffed(written("mistral"), written("hf", cut))
    (shape,) = report.structure.shapes
    assert (shape.a, shape.b) == ((24, 32), (24, 20))
    assert shape.words == "B does not fit its settings"
    assert (report.structure.only_a, report.structure.only_b) == ((), ())


def test_a_missing_packed_tensor_is_all_its_experts(written, diffed):
    def drop(model):
        del model.tensors[model.name(Role.W2, 0, 0)]

    report = diffed(written("mistral"), written("hf-fused", drop))
    assert report.structure.only_a == tuple(
        f"layers.0.feed_forward.experts.{expert}.w2.weight" for expert in range(3)
    )


def test_what_is_no_mixtral_is_refused(written, diffed):
    def rename(model):
        model.tensors = {f"module.{name}": value for name, value in model.tensors.items()}

    with pytest.raises(UnknownConvention):
        diffed(written("mistral"), written("hf", rename))


def test_another_family_with_the_same_names_is_refused(written, diffed):
    b = written("hf", lambda model: model.tensors.update(extra=torch.zeros(2)))
    config = b / "config.json"
    config.write_text(config.read_text().replace('"mixtral"', '"phimoe"'))
    with pytest.raises(UnknownConvention, match=r"names are not known|phimoe"):
        diffed(written("mistral"), b)


def test_without_settings_it_is_refused(written, diffed):
    b = written("hf")
    (b / "config.json").unlink()
    with pytest.raises(InconsistentCheckpoint, match=r"no config\.json"):
        diffed(written("mistral"), b)
