"""Norms, spectra and likeness against torch's own; dead and double experts are found and named."""

import pytest
import torch

from moetool.arch.schema import Role, Slot
from moetool.convert.stream import to_bytes
from moetool.errors import Refused
from moetool.experts import lockstep
from moetool.experts.lockstep import whole
from moetool.experts.selection import select
from moetool.experts.similarity import across, order_like, within
from moetool.experts.stats import leading, look
from moetool.formats import create
from moetool.proof.canonical import open_weights, see

ROLES = (Role.W1, Role.W2, Role.W3)
ORDER = ((5, 0, 2, 7, 1, 3, 4, 6), (7, 6, 5, 4, 3, 2, 1, 0), tuple(range(8)), (1, 0, *range(2, 8)))


@pytest.fixture(scope="module")
def weights(tiny_release):
    with open_weights(tiny_release) as found:
        yield found


def vector(weights, layer, expert):
    return torch.cat([whole(weights, Slot(role, layer, expert)).flatten() for role in ROLES])


def written(weights, folder, change):
    """The same checkpoint with some tensors changed, as raw safetensors."""
    folder.mkdir()
    infos = [weights.info(slot) for slot in weights.steps]
    sink = create(folder / "consolidated.safetensors", infos, {})
    for slot in weights.steps:
        value = whole(weights, slot).to(torch.bfloat16)
        sink.write(weights.info(slot).name, [to_bytes(change(slot, value))])
    sink.close()
    (folder / "params.json").write_text((weights.checkpoint.directory / "params.json").read_text())
    return folder


@pytest.mark.parametrize("numel", [lockstep.TOGETHER_NUMEL, 5000])
def test_norms_and_cosines_are_torchs(weights, monkeypatch, numel):
    """Whatever the number of rows at a time, and where they do not come out even."""
    monkeypatch.setattr(lockstep, "TOGETHER_NUMEL", numel)
    vectors = torch.stack([vector(weights, 1, e) for e in range(8)]).double()
    found = look(weights)
    for expert in range(8):
        one = found.experts[8 + expert]
        assert (one.layer, one.expert) == (1, expert)
        assert one.norm == pytest.approx(float(vectors[expert].norm()), rel=1e-9)
        matrix = whole(weights, Slot(Role.W2, 1, expert))
        assert one.matrices["w2"].rms == pytest.approx(float(matrix.square().mean().sqrt()), 1e-5)
    unit = torch.nn.functional.normalize(vectors)
    cosines = torch.tensor(within(weights)[1].cosines, dtype=torch.double)
    torch.testing.assert_close(cosines, unit @ unit.T, atol=1e-9, rtol=0)
    assert not found.doubles
    assert not any(one.dead for one in found.experts)


def test_spectra_are_those_of_a_full_decomposition(weights):
    """The largest values to a percent, the first to a ten-thousandth; the rank follows."""
    found = look(weights, 3).experts[3 * 8 + 2].matrices["w3"]
    values = torch.linalg.svdvals(whole(weights, Slot(Role.W3, 3, 2)))
    assert found.spectrum[0] == pytest.approx(float(values[0]), rel=1e-4)
    assert found.spectrum == pytest.approx(values[:3].tolist(), rel=1e-2)
    assert found.stable_rank == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-3)
    assert leading(torch.zeros(4, 6), 2) == (0, 0)
    assert leading(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 8) == pytest.approx((3, 2, 1))


def test_dead_and_double_experts_are_named(weights, tmp_path):
    """Zeros, a matrix far too small, a router row of zeros, and a copy with noise."""
    copied = {role: whole(weights, Slot(role, 3, 4)) for role in ROLES}

    def change(slot, value):
        if slot == Slot(Role.W1, 0, 3):
            return torch.zeros_like(value)
        if slot == Slot(Role.W2, 1, 5):
            return value * 1e-5
        if slot == Slot(Role.ROUTER, 2):
            value[6] = 0
        if slot == Slot(Role.W3, 0, 7):
            value[3, 3] = torch.nan
        if slot.layer == 3 and slot.expert == 1:
            return (copied[slot.role] * 1.01).to(value.dtype)
        return value

    with open_weights(written(weights, tmp_path / "broken", change)) as broken:
        found = look(broken)
    dead = {(one.layer, one.expert): one.dead for one in found.experts if one.dead}
    assert dead[0, 3] == ("w1 is zero",)
    assert dead[1, 5][0].startswith("w2 is 1.")
    assert dead[2, 6] == ("router row is zero",)
    assert dead[0, 7] == ("w3 is not finite",)
    assert found.experts[7].norm is None
    assert len(dead) == 4
    assert [(pair.layer, pair.one, pair.other) for pair in found.doubles] == [(3, 1, 4)]


def test_experts_are_found_again_in_another_order_and_among_fewer(weights):
    """Matched with every cosine 1, the router's row with them; what was taken out has no match."""
    turned = see(*select(weights.checkpoint, weights.recognized, ORDER))
    layers = across(weights, turned)
    for layer, order in zip(layers, ORDER, strict=True):
        assert {match.b: match.a for match in layer.matches} == dict(enumerate(order))
        assert all(match.cosine > 0.999 and match.router > 0.999 for match in layer.matches)
    assert order_like(layers) == ORDER
    few = see(*select(weights.checkpoint, weights.recognized, tuple(o[:3] for o in ORDER)))
    for layer, order in zip(across(weights, few), ORDER, strict=True):
        assert {match.b: match.a for match in layer.matches} == dict(enumerate(order[:3]))
    for layer, order in zip(across(few, weights), ORDER, strict=True):
        assert {match.a: match.b for match in layer.matches} == dict(enumerate(order[:3]))


def test_a_row_left_behind_is_seen_and_strangers_have_no_order(weights, tmp_path):
    """Two rows of a router swapped; then experts that were never trained."""

    def swap(slot, value):
        return value[[1, 0, *range(2, 8)]] if slot == Slot(Role.ROUTER, 2) else value

    with open_weights(written(weights, tmp_path / "rows", swap)) as other:
        router = {m.a: m.router for m in across(weights, other)[2].matches}
    assert router[0] < 0.9
    assert router[5] > 0.999

    def other_weights(slot, value):
        if slot.expert is None:
            return value
        return torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).bfloat16()

    strangers = written(weights, tmp_path / "random", other_weights)
    with open_weights(strangers) as other, pytest.raises(Refused, match="not related"):
        order_like(across(weights, other))


def test_other_shapes_are_not_compared(weights, tmp_path, moetool):
    moetool("tiny", "small", check=0)
    with open_weights(tmp_path / "small") as small, pytest.raises(Refused, match="other shapes"):
        across(weights, small)
