"""q8_0 stays packed in memory: the same weights, the same text, half the bytes."""

from __future__ import annotations

import pytest
import torch

from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import Recognized, recognize
from moetool.arch.schema import expand
from moetool.convert.plan import derive_steps
from moetool.convert.stream import stream, to_torch
from moetool.formats import open_checkpoint
from moetool.model import kernels
from moetool.model.kernels import Choice, linear, stay_packed, widened
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer
from moetool.model.outlook import Work, foresee
from moetool.model.packed import Packed
from moetool.quant import decode
from moetool.tensors import Catalog, DType, TensorInfo

CPU = torch.device("cpu")


def blocks_of(weights):
    """Q8_0 as ggml's reference makes it, but for ties."""
    groups = weights.float().reshape(-1, 32)
    scale = (groups.abs().amax(1, keepdim=True) / 127).half()
    whole = (groups / scale.float().clamp(min=1e-30)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), whole.view(torch.uint8)], 1)


class Stored:
    """A checkpoint in memory."""

    def __init__(self, data, infos):
        self.data, self.catalog = data, Catalog("gguf", infos, {})

    def read(self, name, start=0, stop=None):
        return self.data[name][start:stop]


@pytest.fixture(scope="module")
def quantised(tiny_release):
    """The trained release as a GGUF in memory, its matrices in q8_0; and what it is."""
    with open_checkpoint(tiny_release) as source:
        known = recognize(source.catalog, source.directory)
        convention = MIXTRAL.convention("gguf")
        layout = expand(convention, known.args)
        data, infos = {}, {}
        for step in derive_steps(source.catalog, known.layout, layout, known.args):
            name, info = step.target.name, step.target
            data[name], infos[name] = b"".join(stream(source, step)), info
            if len(info.shape) > 1 and info.dtype is DType.BF16:
                matrix = to_torch(data[name], info.dtype, info.shape)
                data[name] = blocks_of(matrix).numpy().tobytes()
                infos[name] = TensorInfo(name, DType.Q8_0, info.shape)
    return Stored(data, infos), Recognized(MIXTRAL, convention, known.args, layout)


@pytest.fixture
def opened(quantised):
    """Open its weights."""
    stores = []

    def make(**options):
        stores.append(open_weights(*quantised, CPU, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def write(weights, n=24):
    """Tokens by the largest logit, and the last logits."""
    args = weights.known.args
    model = Transformer(args, weights)
    cache = model.new_cache(n + 4)
    tokens = torch.tensor([1, 5, 9, 300])
    written = []
    for _ in range(n):
        logits = model.forward(tokens, cache)[-1]
        tokens = logits.argmax()[None]
        written.append(int(tokens))
    return written, logits


def test_the_weights_are_those_of_the_format():
    random = torch.Generator().manual_seed(3)
    data = torch.randint(256, (5, 4 * 34), dtype=torch.uint8, generator=random)
    found, expected = Packed(data).widen(), decode(data.flatten(), DType.Q8_0).view(5, 128)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    assert torch.equal(Packed(data)[1:3].data, data[1:3])


@pytest.mark.parametrize("n_rows", [1, 5, 40])
@pytest.mark.parametrize("packed_to", [0, 8])
def test_products_are_those_of_the_decoded_matrix(monkeypatch, n_rows, packed_to):
    """In tiles that do not divide the rows, or compiled; never rounded to 16 bits."""
    monkeypatch.setattr(kernels, "TILE_NBYTES", 192 * 4 * 7)
    monkeypatch.setattr(kernels, "LARGE_NUMEL", 0)
    monkeypatch.setattr(kernels, "chosen_for", lambda _dtype: Choice(packed_to=packed_to))
    random = torch.Generator().manual_seed(n_rows)
    w = Packed(blocks_of(torch.randn(80, 192, generator=random)).view(80, -1))
    x = torch.randn(n_rows, 192, generator=random).bfloat16()
    expected = x.double() @ w.widen().double().T
    found = widened(x.float(), w)
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert torch.equal(linear(x, w), found.bfloat16())


def test_matrices_are_held_packed_and_all_else_as_before(opened, quantised):
    packed, decoded = opened(), opened(dtype=torch.float32)
    kinds = {name: type(packed.matrix(name)) for name in packed.steps}
    for name, kind in kinds.items():
        is_plain = "norm" in name or name.endswith("gate.weight")
        assert kind is (torch.Tensor if is_plain else Packed)
        assert type(decoded.matrix(name)) is torch.Tensor
        held = packed.matrix(name)
        exact = held if is_plain else held.widen()
        assert torch.equal(exact.float(), decoded[name])  # rows of heads in their order
        assert torch.equal(packed[name], exact if is_plain else exact.bfloat16())


def test_memory_is_counted_packed(opened, quantised):
    checkpoint, known = quantised
    packed, decoded = opened(), opened(packed=False)
    held = sum(packed.matrix(name).nbytes for name in packed.steps)
    assert held == packed.nbytes == packed.nbytes_read == checkpoint.catalog.nbytes
    assert packed.nbytes < 0.55 * decoded.nbytes
    assert opened(budget=packed.nbytes).resident
    assert foresee(packed, known.args, Work(8, 8)).held_nbytes == packed.nbytes
    small = opened(budget=packed.nbytes // 4)
    assert foresee(small, known.args, Work(8, 8)).token_nbytes < small.nbytes_stored


def test_rows_of_the_embedding_are_decoded_when_they_are_taken(opened, quantised):
    checkpoint, _ = quantised
    index, name = torch.tensor([7, 3, 7]), "tok_embeddings.weight"
    whole, small = opened(), opened(budget=checkpoint.catalog.nbytes // 4)
    found = small.rows(name, index)
    assert small.nbytes_read == 2 * checkpoint.catalog.tensors["token_embd.weight"].row_nbytes
    assert torch.equal(found, whole.rows(name, index))
    assert torch.equal(found, whole[name][index])


@pytest.mark.parametrize("packed_to", [0, 1])
def test_the_text_is_that_of_decoded_weights(opened, quantised, monkeypatch, packed_to):
    """By tiles and by compiled loops; from memory, and read again for every token."""
    checkpoint, known = quantised
    exact = opened(dtype=torch.float32)
    exact.known = known
    expected, logits = write(exact)
    monkeypatch.setattr(kernels, "LARGE_NUMEL", 0)
    monkeypatch.setattr(kernels, "chosen_for", lambda _dtype: Choice(packed_to=packed_to))
    found = []
    for budget in (None, checkpoint.catalog.nbytes // 2):
        packed = opened(budget=budget)
        packed.known = known
        assert isinstance(packed.matrix("output.weight"), Packed)
        found.append(write(packed))
    assert found[0][0] == expected
    assert torch.equal(found[0][1], found[1][1])
    assert (found[0][1] - logits).abs().max() < 0.1 * logits.std()


def test_packed_is_what_trying_found_no_slower(monkeypatch):
    """And never where the ground truth is asked for, or a GPU computes."""
    monkeypatch.setattr(kernels, "chosen_for", lambda _dtype: Choice(packed=False))
    large = kernels.LARGE_NUMEL
    assert stay_packed(CPU, torch.bfloat16, large - 1)
    assert not stay_packed(CPU, torch.bfloat16, large)
    assert not stay_packed(CPU, torch.float32, large - 1)
    assert not stay_packed(torch.device("cuda"), torch.bfloat16, large - 1)
