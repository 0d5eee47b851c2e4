"""A matrix in blocks of GGUF's q8_0, kept as it is stored: 34 bytes for 32 weights.

The weights are what `moetool.quant.q8_0` decodes, exactly. They become float32 a few rows at a
time, or in registers (`moetool.model.compiled`), and are never rounded to 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moetool.tensors import DType

STORED = DType.Q8_0


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix ``[out, in]``; ``data`` is uint8 ``[out, in / 32 * 34]``, contiguous.

    ``dtype`` is the type of the activations that it is multiplied with.
    """

    data: Tensor
    dtype: torch.dtype = torch.bfloat16

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of weights."""
        n_out, nbytes = self.data.shape
        return n_out, nbytes // STORED.type_size * STORED.block_size

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.data.nbytes

    def numel(self) -> int:
        """The number of weights."""
        n_out, n_in = self.shape
        return n_out * n_in

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: slice | Tensor) -> Packed:
        """Some rows, packed."""
        return Packed(self.data[rows], self.dtype)

    def widen(self, out_OI: Tensor | None = None) -> Tensor:
        """The weights, float32 ``[out, in]``."""
        wide_OI = torch.empty(self.shape) if out_OI is None else out_OI
        block_BN = self.data.reshape(-1, STORED.type_size)
        # In two steps and in place: torch has no quick loop that mixes types.
        wide_BI = wide_OI.view(-1, STORED.block_size).copy_(block_BN[:, 2:].view(torch.int8))
        wide_BI.mul_(block_BN[:, :2].contiguous().view(torch.float16).float())
        return wide_OI


Matrix = Tensor | Packed
