"""A byte range is named by layer, expert, matrix and rows."""

from pathlib import Path

import pytest

from moetool.extents import Extent
from moetool.proof.locate import locate_in
from moetool.tensors import Catalog

FILE = Path("weights")


@pytest.fixture
def laid_out(in_layout):
    """The tensors of a layout one after another in one file, behind a header of 100 bytes."""

    def make(name):
        checkpoint, layout = in_layout(name)
        extents, at = {}, 100
        for info in checkpoint.catalog.tensors.values():
            extents[info.name] = Extent(FILE, at, info.nbytes)
            at += info.nbytes
        return Catalog("", checkpoint.catalog.tensors, extents), layout

    return make


def test_a_byte_in_a_separate_expert(laid_out):
    """One byte is one row of one matrix."""
    catalog, layout = laid_out("mistral")
    name = "layers.1.feed_forward.experts.2.w2.weight"
    at = catalog.extents[name].offset + 3 * 40 * 2 + 7
    (found,) = locate_in(catalog, layout, Extent(FILE, at, 1))
    assert found.describe() == f"layers.1 expert 2 w2 row 3 ({name})"


def test_a_range_across_stacked_experts(laid_out):
    """Rows of a stacked tensor are counted within their expert."""
    catalog, layout = laid_out("hf-fused")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    start = catalog.extents[name].offset + 78 * 24 * 2
    found = locate_in(catalog, layout, Extent(FILE, start, 4 * 24 * 2))
    assert [(f.what, f.start, f.stop) for f in found] == [
        ("layers.0 expert 0 w3", 38, 40),
        ("layers.0 expert 1 w1", 0, 2),
    ]


def test_bytes_of_no_tensor_are_the_files_own(laid_out):
    """A header is named as what it is, beside the tensor that the range reaches."""
    catalog, layout = laid_out("mistral")
    found = locate_in(catalog, layout, Extent(FILE, 90, 20))
    assert found[0].what == "tok_embeddings"
    assert found[1].describe() == "weights: header, directory or padding"


def test_without_a_known_layout_the_stored_name_remains(laid_out):
    """An unknown model still has tensors and rows."""
    catalog, _ = laid_out("mistral")
    found = locate_in(catalog, {}, catalog.extents["norm.weight"])
    assert found[0].describe() == "norm.weight rows 0-23"
