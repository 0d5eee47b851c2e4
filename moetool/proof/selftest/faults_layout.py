"""Sound values in the wrong place: what a wrong converter writes, with every checksum right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from moetool.arch.schema import Role, Slot
from moetool.convert.ops import Halve, Interleave, Reorder
from moetool.proof.selftest.fault import Fault, written

if TYPE_CHECKING:
    from moetool.proof.selftest.model import Model

LAYER = 2
_LOSS = r"loss band +FAIL"


def _swap_roles(one: Role, other: Role) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        for slot in list(model.slots(one)):
            model.swap(slot, Slot(other, slot.layer, slot.expert))

    return change


def _swap_slots(one: Slot, other: Slot) -> Callable[[Model], None]:
    return lambda model: model.swap(one, other)


def _copy_slot(one: Slot, other: Slot) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        model[other] = model[one]

    return change


def _reorder_heads(op: type[Reorder], layer: int | None = None) -> Callable[[Model], None]:
    """Reorder the rows of wq and wk within each head, as a rotary layout would."""

    def change(model: Model) -> None:
        for slot in model.slots(Role.WQ, Role.WK, layer=layer):
            n_heads, head_dim = model.args.heads(slot.role), model.args.head_dim
            tensor = model[slot]
            order = op(n_heads).order(head_dim)
            model[slot] = tensor.view(n_heads, head_dim, -1)[:, order].reshape(tensor.shape)

    return change


def _transpose_w2(model: Model) -> None:
    """As megablocks packs it, where hidden_dim happens to be dim: no shape shows it."""
    for slot in model.slots(Role.W2):
        model[slot] = model[slot].T.contiguous()


def _rotate_experts(model: Model) -> None:
    """Every expert under the number before it; the router is as it was."""
    sound = {slot: model[slot] for slot in model.slots(Role.W1, Role.W2, Role.W3)}
    for slot in sound:
        after = ((slot.expert or 0) + 1) % model.args.n_experts
        model[slot] = sound[Slot(slot.role, slot.layer, after)]


def _shift_layers(model: Model) -> None:
    """Every layer under the number before it, the first as the last."""
    sound = {slot: model[slot] for slot in model.slots() if slot.role.per_layer}
    for slot in sound:
        after = ((slot.layer or 0) + 1) % model.args.n_layers
        model[slot] = sound[Slot(slot.role, after, slot.expert)]


def _permute_router(model: Model) -> None:
    slot = Slot(Role.ROUTER, LAYER)
    model[slot] = model[slot].flip(0)


def _swap_experts(model: Model) -> None:
    for role in (Role.W1, Role.W2, Role.W3):
        model.swap(Slot(role, LAYER, 3), Slot(role, LAYER, 5))


def _copy_expert(model: Model) -> None:
    for role in (Role.W1, Role.W2, Role.W3):
        model[Slot(role, LAYER, 4)] = model[Slot(role, LAYER, 3)]


def _copy_layer(model: Model) -> None:
    for slot in model.slots(layer=LAYER):
        model[slot] = model[Slot(slot.role, LAYER - 1, slot.expert)]


def _roll_kv_heads(model: Model) -> None:
    """Key and value heads one further in one layer, so that queries meet another's."""
    for slot in model.slots(Role.WK, Role.WV, layer=LAYER):
        model[slot] = model[slot].roll(model.args.head_dim, 0)


def _interleave_gate_up(model: Model) -> None:
    """w1 and w3 row by row in turn, as gpt-oss fuses them, where halves are meant."""
    import torch

    for slot in list(model.slots(Role.W1)):
        up = Slot(Role.W3, slot.layer, slot.expert)
        rows = torch.stack([model[slot], model[up]], 1).flatten(0, 1)
        model[slot], model[up] = rows.chunk(2)


_hf = partial(written, "bare-hf")
_fused = partial(written, "bare-fused")
_gguf = partial(written, "bare-gguf")

FAULTS: tuple[Fault, ...] = (
    _hf("w1-w3-swapped", "w1 and w3 of every expert exchanged", _swap_roles(Role.W1, Role.W3),
        diff=r"w1 and w3 \(gate and up\) are swapped \(layers 0-3", smoke_test=_LOSS),
    _hf("w2-w3-swapped", "w2 and w3 of every expert exchanged", _swap_roles(Role.W2, Role.W3),
        diff="damage: w2 and w3 are swapped", smoke_test=_LOSS),
    _hf("one-expert-w1-w3-swapped", "w1 and w3 of one expert exchanged",
        _swap_slots(Slot(Role.W1, LAYER, 5), Slot(Role.W3, LAYER, 5)),
        diff=r"w1 and w3 \(gate and up\) are swapped \(layers 2, experts 5"),
    _hf("w2-transposed", "w2 of every expert as [in, out]", _transpose_w2,
        diff="damage: w2 holds the bytes of the transposed matrix", smoke_test=_LOSS),
    _hf("rope-permute-missing", "wq and wk in pairs where halves are meant",
        _reorder_heads(Interleave), diff=r"the rotary permute .* is missing \(layers 0-3, wq wk",
        smoke_test=_LOSS),
    _hf("rope-permute-doubled", "wq and wk put in halves twice", _reorder_heads(Halve),
        diff=r"the rotary permute .* was done twice \(layers 0-3, wq wk", smoke_test=_LOSS),
    _hf("rope-permute-missing-once", "wq and wk of one layer in pairs where halves are meant",
        _reorder_heads(Interleave, LAYER),
        diff=r"the rotary permute .* is missing \(layers 2, wq wk", smoke_test=_LOSS),
    _gguf("gguf-rope-permuted", "wq and wk of a GGUF in halves where pairs are meant",
          _reorder_heads(Halve), diff=r"damage: the rotary permute .*layers 0-3, wq wk",
          smoke_test=_LOSS),
    _hf("experts-rotated", "every expert under the number before it, not so the router",
        _rotate_experts, diff="rotated by 1, and the router's rows stayed", smoke_test=_LOSS),
    _gguf("gguf-experts-rotated", "experts of a GGUF stacked from the second, not so the router",
          _rotate_experts, diff="rotated by 1, and the router's rows stayed", smoke_test=_LOSS),
    _hf("router-permuted", "the rows of one router in reverse order", _permute_router,
        diff=r"the router's rows are in another order, and the experts stayed \(layers 2",
        smoke_test=_LOSS),
    _hf("two-experts-swapped", "experts 3 and 5 of one layer exchanged, not so the router",
        _swap_experts, diff=r"layers 2: experts of A in the order of B: 0 1 2 5 4 3 6 7"),
    _hf("expert-copied", "expert 4 of a layer is its expert 3", _copy_expert,
        diff=r"layers\.2 expert 4 w1 holds that of expert 3",
        scan=r"duplicate-experts +layers\.2\..*\.experts\.4\..* equals expert 3 of layer 2",
        smoke_test=r"no duplicates +FAIL +layers\.2 expert 3 w1 = layers\.2 expert 4 w1"),
    _hf("layers-off-by-one", "every layer under the number before it", _shift_layers,
        diff=r"layer l of B holds what layer l\+1 of A has", smoke_test=_LOSS),
    _hf("layer-copied", "layer 2 is layer 1", _copy_layer,
        diff=r"layer l of B holds what layer l-1 of A has \(layers 2",
        scan=r"duplicate-experts +layers\.2\..* equals expert 7 of layer 1",
        smoke_test=r"no duplicates +FAIL +layers\.1"),
    _hf("kv-heads-rolled", "key and value heads of one layer one further", _roll_kv_heads,
        diff=r"^wk +4 +1 .*layers\.2\.attention\.wk", smoke_test=_LOSS),
    _hf("norms-swapped", "the two norms of every layer exchanged",
        _swap_roles(Role.ATTENTION_NORM, Role.FFN_NORM),
        diff="attention_norm and ffn_norm are swapped", smoke_test=_LOSS),
    _hf("output-tied", "the output matrix is the embedding, as in tied models",
        _copy_slot(Slot(Role.TOK_EMBEDDINGS), Slot(Role.OUTPUT)),
        diff="output holds what tok_embeddings has", smoke_test=_LOSS),
    _fused("gate-up-swapped", "the halves of gate_up_proj exchanged",
           _swap_roles(Role.W1, Role.W3), diff=r"w1 and w3 \(gate and up\) are swapped",
           smoke_test=_LOSS),
    _fused("gate-up-interleaved", "gate_up_proj with the rows of gate and up in turn",
           _interleave_gate_up, diff="come in turn and were read as two halves",
           smoke_test=_LOSS),
)  # fmt: skip
