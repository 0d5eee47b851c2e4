"""A checkpoint seen with some experts computes what it does whole when the others are masked."""

import pytest
import torch

from moetool.arch.recognize import recognize
from moetool.arch.schema import Role, Slot
from moetool.convert.job import open_source, prepare
from moetool.convert.quantised.mixes import Quantization
from moetool.convert.quantised.recipe import Recipe
from moetool.convert.targets import find_dtype, find_target
from moetool.errors import UsageFault
from moetool.experts.masked import MaskedTransformer
from moetool.experts.selection import select
from moetool.formats import open_checkpoint
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer
from moetool.proof.canonical import see

LAYOUTS = ("mistral", "mistral-packed", "hf", "hf-fused", "gguf", "q8_0")
KEPT = ((0, 1, 4, 6), (1, 2, 3, 5), (0, 3, 6, 7), (2, 4, 5, 7))


@pytest.fixture(scope="module", params=LAYOUTS)
def stored(request, tmp_path_factory, tiny_release):
    """The trained tiny release in a layout."""
    if request.param == "mistral":
        return tiny_release
    out = tmp_path_factory.mktemp("selection") / request.param
    quantised = request.param == "q8_0"
    target = find_target(*(("gguf", None) if quantised else (None, request.param)))
    recipe = Recipe(Quantization("q8_0")) if quantised else None
    with open_checkpoint(tiny_release) as checkpoint:
        prepare(open_source(checkpoint), target, out, dtype=find_dtype("keep"),
                recipe=recipe).run()  # fmt: skip
    return out


def logits_of(checkpoint, recognized, tokens, masked=None):
    weights = open_weights(checkpoint, recognized, torch.device("cpu"), torch.float32)
    model = Transformer(recognized.args, weights)
    if masked:
        model = MaskedTransformer(model, masked)
    found = model.forward(torch.tensor(tokens), model.new_cache(len(tokens)))
    weights.close()
    return found


def test_fewer_experts_are_masked_ones_and_another_order_changes_nothing(stored, tokens):
    """In every layout, blocks of q8_0 included."""
    with open_checkpoint(stored) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)
        fewer, seen = select(checkpoint, recognized, KEPT)
        assert seen.args.n_experts == 4
        assert set(fewer.catalog.tensors) == set(seen.layout)
        masked = {layer: frozenset(range(8)) - set(kept) for layer, kept in enumerate(KEPT)}
        expected = logits_of(checkpoint, recognized, tokens, masked)
        whole = logits_of(checkpoint, recognized, tokens)
        assert (whole - expected).abs().max() > 0.1  # taking experts out is seen
        torch.testing.assert_close(logits_of(fewer, seen, tokens), expected, atol=1e-4, rtol=0)
        reversed_ = tuple(tuple(range(8))[::-1] for _ in KEPT)
        turned, seen = select(checkpoint, recognized, reversed_)
        torch.testing.assert_close(logits_of(turned, seen, tokens), whole, atol=1e-4, rtol=0)


def test_every_range_is_the_stored_one(stored):
    """Read in odd pieces, by either way, the bytes are those of the chosen experts."""
    with open_checkpoint(stored) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)
        kept = ((5, 0, 2), (7, 6, 5), (0, 1, 2), (3, 1, 7))
        chosen, seen = select(checkpoint, recognized, kept)
        ours, whole = see(chosen, seen), see(checkpoint, recognized)
        for layer, experts in enumerate(kept):
            for new, old in enumerate(experts):
                for role in (Role.W1, Role.W2, Role.W3):
                    assert b"".join(map(bytes, ours.read(Slot(role, layer, new)))) == b"".join(
                        map(bytes, whole.read(Slot(role, layer, old)))
                    )
            rows = b"".join(map(bytes, ours.read(Slot(Role.ROUTER, layer))))
            router = b"".join(map(bytes, whole.read(Slot(Role.ROUTER, layer))))
            size = len(router) // 8
            assert rows == b"".join(router[e * size : (e + 1) * size] for e in experts)
        for name, info in chosen.catalog.tensors.items():
            entire = chosen.read(name)
            assert len(entire) == info.nbytes
            start, stop = info.nbytes // 7, info.nbytes // 7 + info.nbytes // 2 + 1
            assert chosen.read(name, start, stop) == entire[start:stop]
            assert chosen.read(name, start, start) == b""
            buffer = bytearray(stop - start)
            chosen.read_into(name, start, memoryview(buffer))
            assert buffer == entire[start:stop]


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (((0, 1),) * 3, "3 layers are named, there are 4"),
        (((0, 1), (0, 1), (0, 1), (0, 1, 2)), "would keep 2 or 3"),
        (((0, 1), (0, 8), (0, 1), (0, 1)), "layer 1 has no expert 8"),
        (((0, 0), (0, 1), (0, 1), (0, 1)), "layer 0 names an expert twice"),
        (((0,),) * 4, "fewer than a token's 2"),
    ],
)
def test_what_cannot_be_chosen(opened, kept, said):
    _, checkpoint, recognized, _ = opened
    with pytest.raises(UsageFault) as caught:
        select(checkpoint, recognized, kept)
    assert said in " ".join(caught.value.findings)
