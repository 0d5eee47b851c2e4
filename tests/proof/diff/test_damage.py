"""Each damage that is known is done to a checkpoint in another layout, and must be named."""

from __future__ import annotations

import pytest
import torch

from moetool.arch.schema import Role

LAYOUTS = ("hf", "hf-fused", "gguf")
EXPERTS = range(3)


def kinds(report):
    return {damage.kind for damage in report.damage}


def only(report, kind):
    """The single damage of a report, which is of that kind."""
    assert not report.ok
    assert report.verdict == "DIFFERENT"
    assert [damage.kind for damage in report.damage] == [kind], report.damage
    return report.damage[0]


@pytest.mark.parametrize("layout", ["mistral", *LAYOUTS])
def test_the_same_model_is_equal_in_any_layout(written, diffed, layout):
    report = diffed(written("mistral"), written(layout))
    assert report.ok
    assert (report.verdict, report.tensors, report.damage) == ("EQUAL", (), ())
    assert report.n_compared == 35


@pytest.mark.parametrize("layout", ["mistral", *LAYOUTS])
def test_rope_permute_missing(written, diffed, halved, stores_halves, layout):
    """HF holds pairs where it should hold halves; or the raw one halves instead of pairs."""

    def change(model):
        for role, heads in ((Role.WQ, 4), (Role.WK, 2)):
            held = model.get(role, 1).clone()
            # Undoing the permute of H rows is the permute into H/2 pairs: 8 rows, 3 times is none.
            wrong = halved(halved(held, heads), heads) if stores_halves(layout) else None
            model.put(halved(held, heads) if wrong is None else wrong, role, 1)

    damage = only(diffed(written("mistral"), written(layout, change)), "rope-permute-missing")
    assert damage.layers == (1,)
    assert damage.where == "layers 1, wq wk"
    assert "missing" in damage.text


@pytest.mark.parametrize("layout", ["hf", "hf-fused"])
def test_rope_permute_doubled(written, diffed, halved, layout):
    def change(model):
        model.put(halved(model.get(Role.WK, 0).clone(), 2), Role.WK, 0)

    damage = only(diffed(written("mistral"), written(layout, change)), "rope-permute-doubled")
    assert damage.where == "layers 0, wk"
    assert "twice" in damage.text


def test_rope_permute_seen_from_the_other_side(written, diffed, halved):
    """A converted checkpoint that was permuted twice, against a raw one that is whole."""

    def change(model):
        model.put(halved(model.get(Role.WQ, 0).clone(), 4), Role.WQ, 0)

    report = diffed(written("hf", change), written("mistral"))
    assert kinds(report) & {"rope-permute-doubled", "rope-permute-missing"}


@pytest.mark.parametrize("layout", ["mistral", *LAYOUTS])
def test_gate_and_up_swapped(written, diffed, layout):
    def change(model):
        for expert in EXPERTS:
            w1, w3 = (model.get(role, 0, expert).clone() for role in (Role.W1, Role.W3))
            model.put(w3, Role.W1, 0, expert)
            model.put(w1, Role.W3, 0, expert)

    damage = only(diffed(written("mistral"), written(layout, change)), "gate-up-swapped")
    assert damage.where == "layers 0, experts 0-2, w1 w3"
    assert damage.n_tensors == 6


@pytest.mark.parametrize("layout", ["mistral", *LAYOUTS])
@pytest.mark.parametrize("turned", [False, True])
def test_w2_and_w3_swapped(written, diffed, layout, turned):
    """The bytes of one in the place of the other, or the transposed matrix."""

    def change(model):
        w2, w3 = (model.get(role, 1, 2).clone() for role in (Role.W2, Role.W3))
        model.put(w3.T if turned else w3, Role.W2, 1, 2)
        model.put(w2.T if turned else w2, Role.W3, 1, 2)

    damage = only(diffed(written("mistral"), written(layout, change)), "w2-swapped")
    assert damage.text.startswith("w2 and w3 are swapped")
    assert ("transposed" in damage.text) == turned
    assert damage.where == "layers 1, experts 2, w2 w3"


@pytest.mark.parametrize("layout", ["mistral", *LAYOUTS])
@pytest.mark.parametrize("hidden_dim", [40, 24])
def test_w2_transposed(written, diffed, layout, hidden_dim):
    """Also where w2 is square, and the shape says nothing."""

    def change(model):
        for expert in EXPERTS:
            model.put(model.get(Role.W2, 1, expert).T.clone(), Role.W2, 1, expert)

    a = written("mistral", hidden_dim=hidden_dim)
    report = diffed(a, written(layout, change, hidden_dim=hidden_dim))
    damage = only(report, "w2-transposed")
    assert damage.where == "layers 1, experts 0-2, w2"
    assert len(report.tensors) == 3


@pytest.mark.parametrize("layout", ["mistral", *LAYOUTS])
def test_w2_transposed_in_the_side_taken_as_right(written, diffed, monkeypatch, layout):
    """Also where a matrix is turned a few columns at a time."""
    monkeypatch.setattr("moetool.proof.diff.flows.HELD_NBYTES", 7 * 40 * 2)
    monkeypatch.setattr("moetool.proof.diff.flows.COPY_CHUNK", 3 * 40 * 2)

    def change(model):
        model.put(model.get(Role.W2, 1, 0).T.clone(), Role.W2, 1, 0)

    damage = only(diffed(written(layout, change), written("mistral")), "w2-transposed")
    assert damage.text == "w2 holds the matrix, and A the bytes of the transposed one"


def test_wo_transposed(written, diffed):
    def change(model):
        model.put(model.get(Role.WO, 0).T.clone(), Role.WO, 0)

    damage = only(diffed(written("hf-fused"), written("gguf", change)), "transposed")
    assert damage.text == "wo holds the bytes of the transposed matrix"


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize("layout", ["mistral", "hf", "hf-fused"])
def test_rows_of_gate_and_up_in_turn(written, diffed, layout, in_turn):
    def change(model):
        for expert in EXPERTS:
            w1, w3 = (model.get(role, 0, expert).clone() for role in (Role.W1, Role.W3))
            if in_turn:
                fused = torch.stack([w1, w3], dim=1).reshape(80, 24)
            else:
                fused = torch.cat([w1, w3]).view(40, 2, 24).transpose(0, 1).reshape(80, 24)
            model.put(fused[:40], Role.W1, 0, expert)
            model.put(fused[40:], Role.W3, 0, expert)

    damage = only(diffed(written("mistral"), written(layout, change)), "gate-up-order")
    assert damage.where == "layers 0, experts 0-2, w1 w3"


@pytest.mark.parametrize("layout", ["mistral", *LAYOUTS])
def test_a_layer_too_far(written, diffed, layout):
    """Layers 0 and 1 of B are layers 1 and 2 of A."""

    def change(model):
        for role in Role:
            for expert in EXPERTS if role.per_expert else [None]:
                if role.per_layer:
                    for layer in (0, 1):
                        model.put(model.get(role, layer + 1, expert).clone(), role, layer, expert)

    a = written("mistral", n_layers=3)
    damage = only(diffed(a, written(layout, change, n_layers=3)), "layer-moved")
    assert damage.text == "layer l of B holds what layer l+1 of A has"
    assert damage.layers == (0, 1)


@pytest.mark.parametrize("layout", ["mistral", "hf", "hf-fused"])
@pytest.mark.parametrize("back", [torch.bfloat16, torch.float16])
def test_a_cast_through_f16(written, diffed, layout, back):
    """Most values of bf16 survive it; those below its smallest do not."""
    tiny = torch.tensor([1e-9, 3.3e-6, -2e-8])

    def small(model):
        model.get(Role.WO, 0)[2, 4:7] = tiny

    def change(model):
        small(model)
        for name, tensor in model.tensors.items():
            model.tensors[name] = tensor.to(torch.float16).to(back)

    report = diffed(written("mistral", small), written(layout, change))
    damage = only(report, "cast-f16")
    assert damage.text == "B is A cast through f16"
    assert damage.where == "layers 0-1, experts 1, wo w1"  # a random value is that small, too
    found = {str(tensor.slot): tensor for tensor in report.tensors}
    assert found["layers.0 wo"].first_row == 2
    assert found["layers.0 wo"].differing == 3


@pytest.mark.parametrize("cut", [True, False])
def test_f32_through_bf16(written, diffed, cut):
    def wide(model):
        for name, tensor in model.tensors.items():
            model.tensors[name] = tensor.float() * 1.003

    def narrow(model):
        wide(model)
        for name, tensor in model.tensors.items():
            kept = (tensor.view(torch.int32) & -65536).view(torch.float32) if cut else tensor
            model.tensors[name] = kept.to(torch.bfloat16)

    damage = only(
        diffed(written("mistral", wide), written("hf", narrow)),
        "truncated-bf16" if cut else "cast-bf16",
    )
    assert damage.n_tensors == 35
    assert damage.where == "layers 0-1, experts 0-2, 13 roles"
    assert damage.text.startswith("B is A " + ("truncated" if cut else "cast"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_are_zero(written, diffed, layout):
    def change(model):
        model.get(Role.W3, 1, 0)[7:12] = 0

    damage = only(diffed(written("mistral"), written(layout, change)), "zeroed")
    assert damage.text == "values are zero in B and not in A"
    assert damage.details == ("layers.1 expert 0 w3: 120 values in rows 7-11",)


def test_a_tail_that_is_zero(written, diffed):
    """As after a download that stopped: from the middle of a row to the end."""

    def change(model):
        model.get(Role.WV, 0).view(-1)[100:] = 0

    damage = only(diffed(written("gguf"), written("hf", change)), "zeroed")
    assert damage.details == ("layers.0 wv: 284 values in rows 4-15, to the end",)


def test_the_side_that_lost_values_is_named(written, diffed):
    def change(model):
        model.get(Role.ROUTER, 0).zero_()

    damage = only(diffed(written("hf", change), written("mistral")), "zeroed")
    assert damage.text == "values are zero in A and not in B"
    assert damage.details == ("layers.0 router: all values",)


@pytest.mark.parametrize("layout", ["mistral", *LAYOUTS])
def test_nan(written, diffed, layout):
    def change(model):
        model.get(Role.W2, 0, 1)[3, 5] = float("nan")
        model.get(Role.W2, 0, 1)[9] += 1

    report = diffed(written("mistral"), written(layout, change))
    damage = only(report, "nan")
    assert damage.details == ("layers.0 expert 1 w2: 1 value in row 3 column 5",)
    assert (report.tensors[0].nan_b, report.tensors[0].rel_rms) == (1, None)
    assert not report.tensors[0].finite


@pytest.mark.parametrize("layout", ["mistral", *LAYOUTS])
@pytest.mark.parametrize("bit", [0, 9, 15])
def test_one_flipped_bit(written, diffed, layout, bit):
    def change(model):
        held = model.get(Role.W1, 1, 2)
        held.view(torch.int16)[31, 17] ^= (1 << bit) - (1 << 16) * (bit == 15)

    damage = only(diffed(written("mistral"), written(layout, change)), "bit-flipped")
    assert damage.n_tensors == 1
    assert damage.details[0].startswith(f"layers.1 expert 2 w1: row 31 column 17 bit {bit} (")


def test_two_flipped_bits_are_no_flipped_bit(written, diffed):
    def change(model):
        model.get(Role.W1, 1, 2).view(torch.int16)[31, 17] ^= 0b101

    report = diffed(written("mistral"), written("hf", change))
    assert report.tensors[0].differing == 1
    assert report.damage == ()


def test_values_that_were_trained_have_no_name(written, diffed):
    def change(model):
        for tensor in model.tensors.values():
            tensor.add_(torch.randn(tensor.shape, generator=torch.manual_seed(1)) * 0.01)

    report = diffed(written("mistral"), written("hf", change))
    assert report.damage == ()
    assert len(report.tensors) == 35


def test_a_tensor_of_another_place(written, diffed):
    def change(model):
        model.put(model.get(Role.W1, 1, 0).clone(), Role.W1, 0, 2)

    damage = only(diffed(written("mistral"), written("hf", change)), "moved")
    assert damage.details == ("layers.0 expert 2 w1 holds A's layers.1 expert 0 w1",)


def test_two_damages_are_told_apart(written, diffed):
    def change(model):
        model.get(Role.WV, 0)[3] = 0
        model.put(model.get(Role.W2, 1, 0).T.clone(), Role.W2, 1, 0)

    report = diffed(written("mistral"), written("gguf", change))
    assert kinds(report) == {"zeroed", "w2-transposed"}
    assert {t.damage for t in report.tensors} == {("zeroed",), ("w2-transposed",)}


def test_a_cast_that_changed_one_bit_of_a_tensor_is_still_a_cast(written, diffed):
    """f16 keeps 2^-24 and no half of it: alone that is a flipped bit, among its like a cast."""

    def change(model):
        for role in (Role.W1, Role.W2):
            model.get(role, 0, 0)[1, 1] = 2.0**-24 * 1.0078125

    def cast(model):
        change(model)
        for name, tensor in model.tensors.items():
            model.tensors[name] = tensor.half().to(tensor.dtype)

    source = written("mistral", change)
    report = diffed(source, written("hf", cast))
    assert {"cast-f16"} == kinds(report)
