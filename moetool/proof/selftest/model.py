"""The sound weights as a thing to be spoilt: a checkpoint in which tensors can be replaced.

It is read by the same plan and stream that convert any checkpoint, so a fault in the values is
written into a container that is sound to the last checksum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.arch.schema import Role, Slot, expand, slots
from moetool.convert.stream import to_bytes, to_torch
from moetool.tensors import Catalog, DType, TensorInfo

if TYPE_CHECKING:
    import torch

    from moetool.arch.recognize import Recognized
    from moetool.tensors import Buffer, Checkpoint


class Model:
    """The weights of the tiny release by slot, its hyperparameters and its tokenizer.

    ``args`` and ``tokenizer`` may be replaced, and every tensor; what is put in has to have the
    shape that ``args`` say.
    """

    def __init__(
        self, checkpoint: Checkpoint, recognized: Recognized, tokenizer: bytes | None
    ) -> None:
        self._checkpoint = checkpoint
        self._raw = recognized.architecture.raw
        self._replaced: dict[str, bytearray] = {}
        self.args = recognized.args
        self.tokenizer = tokenizer

    @property
    def catalog(self) -> Catalog:
        """The tensors in raw names and canonical shapes, all bf16 as the release has them."""
        layout = expand(self._raw, self.args)
        infos = {name: TensorInfo(name, DType.BF16, each.shape) for name, each in layout.items()}
        return Catalog("altered", infos, {})

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Buffer:
        """Read bytes of a tensor: the replaced one, or the sound one."""
        if name in self._replaced:
            return memoryview(self._replaced[name])[start:stop]
        return self._checkpoint.read(name, start, stop)

    def __getitem__(self, slot: Slot) -> torch.Tensor:
        """A copy of a tensor as it is now, ``[out, in]``."""
        name = self._name(slot)
        return to_torch(bytes(self.read(name)), DType.BF16, self.args.shape(slot.role))

    def __setitem__(self, slot: Slot, tensor: torch.Tensor) -> None:
        """Put another tensor in its place."""
        self._replaced[self._name(slot)] = to_bytes(tensor)

    def slots(self, *roles: Role, layer: int | None = None) -> Iterator[Slot]:
        """The slots of some roles, or of all; of one layer, or of all."""
        for slot in slots(self.args):
            if slot.role in (roles or Role) and layer in {None, slot.layer}:
                yield slot

    def swap(self, one: Slot, other: Slot) -> None:
        """Exchange two tensors of one shape."""
        self[one], self[other] = self[other], self[one]

    def _name(self, slot: Slot) -> str:
        return self._raw.stored[slot.role].name(slot.layer, slot.expert)
