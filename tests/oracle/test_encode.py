"""What we encode is what ggml's own quantisers write, bit for bit, compiled and in plain torch.

On weights of every kind that float32 has, huge ones and subnormal ones among them. The long form,
MOETOOL_QUANT=long, has 10^7 weights for each type instead of a few hundred thousand.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from moetool.formats.gguf_types import TENSOR_TYPES
from moetool.quant import ENCODERS, decode, encode, q2_k, q4_1, q5_1, quicker, six_bits
from moetool.quant.fits import IMPORTANCE_GRID
from moetool.tensors import DType
from tests.quant.families import NAMES, all_families, family_of

pytestmark = pytest.mark.oracle
llama_cpp = pytest.importorskip("llama_cpp", reason="the llama extra is not installed")

NUMBERS = {dtype: number for number, dtype in TENSOR_TYPES.items()}
LONG = os.environ.get("MOETOOL_QUANT") == "long"
COLUMNS = 768  # three blocks of 256
ROWS = 10**7 // (len(NAMES) * COLUMNS) + 1 if LONG else 5  # of each family
IMPORTANCE = ("uneven", "ones", "often zero")


@pytest.fixture(scope="module")
def ggml():
    """ggml's own quantiser, as llama-quantize calls it for each chunk of rows."""
    library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.rglob("libggml-base.*"))))
    call = library.ggml_quantize_chunk
    call.restype = ctypes.c_size_t
    call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3,
                     ctypes.c_void_p)  # fmt: skip

    def quantise(x, dtype, importance=None):
        library.ggml_quantize_init(NUMBERS[dtype])
        stored = torch.empty(len(x), dtype.nbytes(x.shape[1]), dtype=torch.uint8)
        weights = None if importance is None else importance.data_ptr()
        nbytes = call(NUMBERS[dtype], x.data_ptr(), stored.data_ptr(), 0, *x.shape, weights)
        assert nbytes == stored.numel()
        return stored

    return quantise


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    """How our codecs compute."""
    if request.param == "plain":
        monkeypatch.setattr(quicker, "are_compiled", lambda: False)
    elif find_spec("numba") is None:
        pytest.skip("numba is not installed")
    return request.param


def importance(name):
    dice = torch.Generator().manual_seed(5)
    some = torch.empty(COLUMNS).exponential_(generator=dice) ** 3
    return {"uneven": some, "ones": torch.ones(COLUMNS),
            "often zero": torch.where(some < 0.4, 0.0, some)}[name]  # fmt: skip


# Two tiny weights count and thirty large ones do not: under the scale that fits the two, the
# others lie a hundred million levels below.
DEGENERATE = torch.cat((torch.tensor([-4e-10, -2e-8]), torch.linspace(-0.6, -0.5, 30)))[None]
TWO = torch.tensor([0.4, 0.1] + 30 * [0.0])


@pytest.fixture
def as_installed(ggml, monkeypatch):
    """Levels are cut before they are rounded, but for a llama.cpp that is older than that."""
    theirs = ggml(DEGENERATE, DType.Q4_1, TWO)
    if not torch.equal(encode(DEGENERATE, DType.Q4_1, TWO), theirs):
        for module in (q2_k, q4_1, q5_1, six_bits):
            monkeypatch.setattr(module, "IMPORTANCE_GRID", replace(IMPORTANCE_GRID, bounded=False))
    assert torch.equal(encode(DEGENERATE, DType.Q4_1, TWO), theirs)


by_type = pytest.mark.parametrize("dtype", ENCODERS, ids=lambda dtype: dtype.label)


def assert_same(ggml, dtype, rows, weight=None):
    """Equal bytes in every block that holds weights; a failure says of which they are.

    Where the scale of huge weights is NaN, nothing says which level a weight has.
    """
    x, n_wrong = all_families(rows, COLUMNS), Counter()
    for first in range(0, len(x), 2000):  # a few millions at a time
        piece = x[first : first + 2000]
        ours, theirs = encode(piece, dtype, weight), ggml(piece, dtype, weight)
        assert ours.shape == theirs.shape
        wrong = (ours != theirs).view(len(ours), -1, dtype.type_size).any(-1)
        for row, block in wrong.nonzero().tolist():
            stored = slice(block * dtype.type_size, (block + 1) * dtype.type_size)
            pair = [decode(found[row, stored].clone(), dtype) for found in (ours, theirs)]
            if not all(weights.isnan().all() for weights in pair):
                n_wrong[family_of(first + row, rows)] += 1
    assert n_wrong == {}, f"of {rows * COLUMNS // dtype.block_size} blocks in each family"


@by_type
def test_every_block_is_ggmls(ggml, way, dtype):
    assert_same(ggml, dtype, ROWS)


@by_type
@pytest.mark.parametrize("name", IMPORTANCE)
def test_every_weighed_block_is_ggmls(ggml, way, as_installed, dtype, name):
    assert_same(ggml, dtype, max(ROWS // len(IMPORTANCE), 2), importance(name))
