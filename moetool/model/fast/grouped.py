"""Many tokens through a layer's experts, each expert's rows in one product.

    pairs (token, expert) sorted by expert → grouped products → back in the tokens' order → sum

Where each expert's rows end is a tensor on the device: nothing waits for the host. Every sum has
one order, so that a prompt gives the same bits each time; index_add_ would not on CUDA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from moetool.model.mixtral import Routing

ROWS = 1 << 14  # in a product at a time: at 8x7B the hidden rows of so many take 2 GiB
ALIGNED = 8  # elements of 16 bits: the grouped kernel wants rows that begin at 16 bytes


class Sorted(NamedTuple):
    """The S = T·A pairs by expert; of one expert in the order of tokens."""

    token_S: Tensor
    """Whose row it is."""
    place_TA: Tensor
    """Where a token's pairs went."""
    ends_E: Tensor
    """Where each expert's rows end, int32."""


def sort_by_expert(experts_TA: Tensor, n_experts: int) -> Sorted:
    """Order the pairs by expert."""
    T, A = experts_TA.shape
    sorted_S, pair_S = experts_TA.flatten().sort(stable=True)
    place_S = torch.empty_like(pair_S)
    place_S[pair_S] = torch.arange(T * A, device=pair_S.device)
    each_E = torch.arange(n_experts, device=sorted_S.device)
    ends_E = torch.searchsorted(sorted_S, each_E, right=True, out_int32=True)
    return Sorted(pair_S // A, place_S.view(T, A), ends_E)


def experts_of_rows(x_SD: Tensor, ends_E: Tensor, w13_EUD: Tensor, w2_EDF: Tensor) -> Tensor:
    """Each row through the expert whose it is."""
    parts = []
    for at in range(0, len(x_SD), ROWS):
        rows_SD = x_SD[at : at + ROWS]
        ends = (ends_E - at).clamp(0, len(rows_SD))
        a_SF, b_SF = grouped_product(rows_SD, w13_EUD, ends).chunk(2, -1)
        parts.append(grouped_product(F.silu(a_SF) * b_SF, w2_EDF, ends))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def grouped_product(x_SI: Tensor, w_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Multiply the rows of each expert by its matrix."""
    if can_group(x_SI, w_EOI):
        return F.grouped_mm(x_SI, w_EOI.transpose(1, 2), offs=ends_E)
    # The one place where the host has to know.
    ends = ends_E.tolist()
    rows = zip([0, *ends[:-1]], ends, w_EOI, strict=True)
    return torch.cat([F.linear(x_SI[start:stop], w_OI) for start, stop, w_OI in rows])


def can_group(x_SI: Tensor, w_EOI: Tensor) -> bool:
    """Whether torch has a grouped kernel for these: on CUDA for bf16 only, in aligned rows."""
    if not hasattr(F, "grouped_mm"):
        return False
    if x_SI.device.type == "cuda":
        aligned = all(size % ALIGNED == 0 for size in w_EOI.shape[1:])
        return x_SI.dtype == torch.bfloat16 and aligned
    return x_SI.device.type == "cpu"


def weighted_sum(y_SD: Tensor, place_TA: Tensor, routing: Routing) -> Tensor:
    """Back in the tokens' order: the sum over a token's experts, best first, in float32."""
    sum_TD = torch.zeros((len(place_TA), y_SD.shape[1]), dtype=torch.float32, device=y_SD.device)
    for place_T, weight_T in zip(place_TA.unbind(1), routing.weights_TA.unbind(1), strict=True):
        sum_TD += y_SD[place_T].float() * weight_T[:, None]
    return sum_TD
