"""The same words mean the same weights in every layout."""

from __future__ import annotations

import json

import pytest

from moetool.arch.mistral import DENSE
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import recognize
from moetool.arch.schema import expand
from moetool.arch.select import KINDS, select, split_selectors
from moetool.arch.spelling import to_config_json, to_params_json
from moetool.errors import UsageFault
from moetool.extents import Extent
from moetool.tensors import Catalog, DType, TensorInfo

LAYOUTS = [convention.name for convention in MIXTRAL.conventions if "gguf" not in convention.name]


@pytest.fixture
def model(in_layout, small_args, tmp_path):
    """The catalog of a small model in a layout, and its recognised form."""

    def make(name="mistral"):
        (tmp_path / "params.json").write_text(json.dumps(to_params_json(small_args)))
        (tmp_path / "config.json").write_text(json.dumps(to_config_json(small_args, "bfloat16")))
        checkpoint, _ = in_layout(name)
        catalog = checkpoint.catalog
        return catalog, tmp_path, recognize(catalog, tmp_path)

    return make


def _slots(model, *selectors):
    """The weights all of whose bytes are chosen; no other is touched."""
    catalog, directory, recognized = model
    spans = select(catalog, directory, split_selectors(selectors))
    chosen = {
        (span.name, row)
        for span in spans
        for row in range(span.start // catalog.tensors[span.name].row_nbytes,
                         span.stop // catalog.tensors[span.name].row_nbytes)
    }  # fmt: skip
    assert len({span.name for span in spans}) <= len(spans)
    whole, touched = set(), set()
    for name, stored in recognized.layout.items():
        for cell in stored.cells:
            rows = {(name, row) for row in range(cell.start, cell.stop)}
            whole |= {cell.slot} if rows <= chosen else set()
            touched |= {cell.slot} if rows & chosen else set()
    assert whole == touched
    return {str(slot) for slot in whole}


CASES = {
    ("layers.1",): lambda s: s.layer == 1,
    ("layers.0-1",): lambda s: s.layer in {0, 1},
    ("experts.2",): lambda s: s.expert == 2,
    ("experts.0-1",): lambda s: s.expert in {0, 1},
    ("layers.1.experts.2",): lambda s: (s.layer, s.expert) == (1, 2),
    ("layers.0-1.experts.0-2",): lambda s: s.expert is not None,
    ("experts",): lambda s: s.expert is not None,
    ("router",): lambda s: s.role.value == "router",
    ("layers.0.attention",): lambda s: s.layer == 0 and s.role.value in {"wq", "wk", "wv", "wo"},
    ("norms",): lambda s: s.role.is_norm,
    ("embeddings",): lambda s: s.role.value == "tok_embeddings",
    ("output",): lambda s: s.role.value == "output",
    ("layers.1.w2",): lambda s: (s.layer, s.role.value) == (1, "w2"),
    ("tokenizer",): lambda _: False,
    ("router,layers.0.experts.1", "output"): lambda s: (
        s.role.value in {"router", "output"} or (s.layer, s.expert) == (0, 1)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_words_are_of_roles_layers_and_experts(model, layout, words):
    found = model(layout)
    slots = {cell.slot for stored in found[2].layout.values() for cell in stored.cells}
    assert _slots(found, *words) == {str(slot) for slot in slots if CASES[words](slot)}


def test_other_words_are_patterns_of_stored_names(model):
    assert _slots(model(), "layers.*.attention.w[qk].weight", "norm.weight") == {
        "layers.0 wq", "layers.0 wk", "layers.1 wq", "layers.1 wk", "norm",
    }  # fmt: skip
    assert _slots(model("hf"), "model.layers.0.*") == _slots(model("hf"), "layers.0")


def test_every_kind_has_tensors(model):
    found = model()
    assert all(_slots(found, kind) for kind in KINDS)


@pytest.mark.parametrize(
    "word",
    ["layers.2", "layers.0-2", "layers.1-0", "experts.3", "layers.5.experts.0", "layers", "layers.",
     "layers.x", "layers.0.", "7.router", "layers.0.tokenizer", "no.such.*", "Router",
     "layers.0.embeddings", "experts.1.w1", "layers.00000"],
)  # fmt: skip
def test_what_names_nothing_is_told_what_there_is(model, word):
    catalog, directory, _ = model()
    with pytest.raises(UsageFault) as caught:
        select(catalog, directory, ("router", word))
    assert repr(word) in caught.value.what
    said = "\n".join(caught.value.findings)
    assert "layers 0-1, experts 0-2" in said
    assert "router, attention" in said
    assert "tok_embeddings.weight" in said
    assert caught.value.exit_code == 2


def test_a_dense_model_has_no_experts(small_args, changed_args, tmp_path):
    args = changed_args(small_args, n_experts=0, n_experts_per_tok=0)
    (tmp_path / "params.json").write_text(json.dumps(to_params_json(args)))
    infos = {
        name: TensorInfo(name, DType.BF16, stored.shape)
        for name, stored in expand(DENSE.raw, args).items()
    }
    catalog = Catalog("pth", infos, {})
    assert len(select(catalog, tmp_path, ("layers.1",))) == 9
    for word in ("experts", "experts.0", "router"):
        with pytest.raises(UsageFault) as caught:
            select(catalog, tmp_path, (word,))
        assert "no experts" in caught.value.findings[0]


@pytest.mark.parametrize("texts", [[""], ["router,"], [",router"], ["router", " "]])
def test_an_empty_selector_is_none(texts):
    with pytest.raises(UsageFault, match="wants what to fetch"):
        split_selectors(texts)


def test_selectors_are_taken_once():
    texts = ["router, experts.2", "experts.2", "router"]
    assert split_selectors(texts) == ("router", "experts.2")
    assert split_selectors([]) == ()


def test_of_an_unknown_model_names_can_be_chosen_and_nothing_else(tmp_path):
    infos = [TensorInfo(f"block.{n}.kernel", DType.F32, (4, 4)) for n in range(3)]
    catalog = Catalog(
        "safetensors", {info.name: info for info in infos},
        {info.name: Extent(tmp_path / "w", 64 * n, 64) for n, info in enumerate(infos)},
    )  # fmt: skip
    spans = select(catalog, tmp_path, ("block.[02].*",))
    assert [(span.name, span.start, span.stop) for span in spans] == [
        ("block.0.kernel", 0, 64), ("block.2.kernel", 0, 64),
    ]  # fmt: skip
    with pytest.raises(UsageFault) as caught:
        select(catalog, tmp_path, ("layers.0",))
    assert "not recognised" in caught.value.findings[0]
