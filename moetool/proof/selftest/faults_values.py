"""Values that were damaged one by one or a few at a time, in a container that is sound."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from moetool.arch.schema import Role, Slot
from moetool.proof.selftest.fault import Fault, written

if TYPE_CHECKING:
    import torch

    from moetool.proof.selftest.model import Model

HIT = Slot(Role.W2, 2, 5)  # one matrix of one expert, in the middle
ROW, COLUMN = 17, 40
_NAME = r"layers\.2\.feed_forward\.experts\.5\.w2\.weight"
_DAMAGED = r"\(layers 2, experts 5, w2\)"
# bf16: sign, 8 bits of exponent, 7 of mantissa.
BITS = {"sign": 15, "exponent-high": 14, "exponent-low": 7, "mantissa": 0}
F16_MAX = 65504.0


def _flipped(bit: int) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        import torch

        tensor = model[HIT]
        mask = 1 << bit
        tensor.view(torch.int16)[ROW, COLUMN] ^= mask - (1 << 16) if bit == 15 else mask  # noqa: PLR2004  # the sign of an int16
        model[HIT] = tensor

    return change


def _set_to(value: float) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        tensor = model[HIT]
        tensor[ROW, COLUMN] = value
        model[HIT] = tensor

    return change


def _zero_range(model: Model) -> None:
    """4,096 bytes of zeros, not of whole rows: a page that was never written."""
    tensor = model[HIT]
    tensor.view(-1)[ROW * 256 + COLUMN :][:2048] = 0
    model[HIT] = tensor


def _scale_row(model: Model) -> None:
    tensor = model[HIT]
    tensor[ROW] *= 2
    model[HIT] = tensor


def _zero_expert(model: Model) -> None:
    for role in (Role.W1, Role.W2, Role.W3):
        slot = Slot(role, HIT.layer, HIT.expert)
        model[slot] = model[slot] * 0


def _zero_router_row(model: Model) -> None:
    slot = Slot(Role.ROUTER, HIT.layer)
    tensor = model[slot]
    tensor[5] = 0
    model[slot] = tensor


def _through(cast: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Model], None]:
    """Every matrix to another type and back, as a converter that thinks it is free."""

    def change(model: Model) -> None:
        for slot in model.slots():
            tensor = model[slot]
            model[slot] = cast(tensor).to(tensor.dtype)

    return change


def _to_f16(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.to(torch.float16)


def _to_f8(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.to(torch.float8_e4m3fn)


def _overflow(model: Model) -> None:
    """A matrix in a unit in which its largest values lie beyond f16, cast, and scaled back."""
    import torch

    tensor = model[HIT]
    scale = 2 * F16_MAX / float(tensor.abs().max())
    model[HIT] = ((tensor.float() * scale).to(torch.float16).float() / scale).to(tensor.dtype)


def _norm_less_one(model: Model) -> None:
    """Norms as Gemma stores them, of which 1 is to be added."""
    for slot in model.slots():
        if slot.role.is_norm:
            model[slot] = model[slot] - 1


def _other_weights(model: Model) -> None:
    """Random weights of the same geometry: every name and every shape is right."""
    from moetool.convert.stream import to_torch
    from moetool.convert.synthetic import RandomCheckpoint
    from moetool.tensors import DType

    other = RandomCheckpoint(model.args, seed=1)
    for slot, name in zip(model.slots(), other.catalog.tensors, strict=True):
        model[slot] = to_torch(bytes(other.read(name)), DType.BF16, model.args.shape(slot.role))


_bare_hf = partial(written, "bare-hf")

FAULTS: tuple[Fault, ...] = (
    *(
        _bare_hf(f"{name}-bit-flipped", f"bit {bit} of one weight of {HIT}", _flipped(bit),
                 diff=rf"layers\.2 expert 5 w2: row 17 column 40 bit {bit} ",
                 **({"scan": f"huge-value +{_NAME}"} if name == "exponent-high" else {}))
        for name, bit in BITS.items()
    ),
    _bare_hf("nan", f"one NaN in {HIT}", _set_to(float("nan")),
             diff=f"values are NaN in B .*{_DAMAGED}", scan=f"nan +{_NAME}.* row 17 column 40",
             smoke_test=r"no NaN +FAIL +layers\.2 expert 5 w2 row 17 column 40"),
    _bare_hf("infinity", f"one infinity in {HIT}", _set_to(float("inf")),
             diff=f"not finite +{_NAME}", scan=f"infinity +{_NAME}.* row 17 column 40",
             smoke_test=r"no infinity +FAIL +layers\.2 expert 5 w2 row 17 column 40"),
    _bare_hf("f16-overflow", f"{HIT} scaled and cast through f16, the largest become infinite",
             _overflow, diff=f"not finite +{_NAME}", scan=f"infinity +{_NAME}",
             smoke_test=r"no infinity +FAIL +layers\.2 expert 5 w2"),
    _bare_hf("f16-underflow", "all tensors cast through f16, small values rounded or lost",
             _through(_to_f16), diff="B is A cast through f16"),
    _bare_hf("f8-round-trip", "all tensors cast through f8 and back", _through(_to_f8),
             diff=r"^w2 +32 +32 "),
    _bare_hf("zero-range", f"4,096 bytes of {HIT} are zero", _zero_range,
             diff=f"values are zero in B .*{_DAMAGED}", scan=f"zero-range +{_NAME}.* rows 17-2",
             smoke_test=r"no zero rows +FAIL +layers\.2 expert 5 w2 row 18 and 6 more"),
    _bare_hf("row-scaled", f"row {ROW} of {HIT} doubled", _scale_row, diff=f"^{_NAME}.* 17$"),
    _bare_hf("expert-zeroed", "expert 5 of layer 2 is zero", _zero_expert,
             diff=r"layers\.2 expert 5 w1: all values",
             scan=r"dead-expert +layers\.2\.feed_forward\.experts\.5\.",
             smoke_test=r"no zero rows +FAIL +layers\.2 expert 5 w1"),
    _bare_hf("router-row-zeroed", "the router of layer 2 has a row of zeros for expert 5",
             _zero_router_row, diff=r"layers\.2 router: 256 values in row 5",
             scan=r"dead-router-row +layers\.2\..*expert 5",
             smoke_test=r"no zero rows +FAIL +layers\.2 router row 5"),
    _bare_hf("norms-less-one", "norm weights stored less one, as Gemma's are", _norm_less_one,
             diff=r"^attention_norm +4 +4 ", smoke_test="loss band +FAIL"),
    _bare_hf("other-model", "random weights of the same geometry", _other_weights,
             diff=r"^w1 +32 +32 ", smoke_test="loss band +FAIL"),
)  # fmt: skip
