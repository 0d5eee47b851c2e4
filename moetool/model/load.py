"""Weights by name, from any checkpoint: the model is one more target of a conversion.

    checkpoint ─derive_steps→ one Step for each raw Mistral tensor ─stream→ tensor on the device

So every layout arrives as the same bits, and there is one engine. One mechanism holds what fits:
a budget in bytes, and the least recently used tensor leaves first. Resident is a budget that
holds all.
"""

from __future__ import annotations

import ctypes
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

from moetool.arch.schema import expand
from moetool.convert.plan import Step, derive_steps
from moetool.convert.stream import stream, to_torch, torch_dtype
from moetool.errors import NotEnoughMemory, Refused
from moetool.model.device import available_nbytes
from moetool.tensors import Catalog, Checkpoint, DType, main_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moetool.arch.recognize import Recognized

RUNNABLE = {DType.F32, DType.F16, DType.BF16}


class WeightStore:
    """The weights of one checkpoint on one device; a `moetool.model.mixtral.Weights`.

    ``nbytes`` is what all weights take on the device, ``nbytes_read`` what was taken from the
    checkpoint so far.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        steps: dict[str, Step],
        device: torch.device,
        dtype: torch.dtype,
        budget: int,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.budget = budget
        self.steps = steps
        self.nbytes = sum(self._nbytes(step) for step in steps.values())
        self.nbytes_read = 0
        self._checkpoint = checkpoint
        self._held: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._held_nbytes = 0

    @property
    def resident(self) -> bool:
        """True when the budget holds all weights at once."""
        return self.nbytes <= self.budget

    def __getitem__(self, name: str) -> torch.Tensor:
        held = self._held.get(name)
        if held is not None:
            self._held.move_to_end(name)
            return held
        needed = self._nbytes(self.steps[name])
        while self._held and self._held_nbytes + needed > self.budget:
            _, evicted = self._held.popitem(last=False)
            self._held_nbytes -= evicted.nbytes
            del evicted
        tensor = self._held[name] = self._load(name)
        self._held_nbytes += tensor.nbytes
        return tensor

    def expect(self, names: Iterable[str]) -> None:
        """Hear what is needed next; so far it is read when it is asked for."""

    def rows(self, name: str, index_T: torch.Tensor) -> torch.Tensor:
        """Take rows of a tensor; one that is not resident is not read whole for a few of them."""
        step = self.steps[name]
        if name in self._held or self.resident or not (step.is_copy and len(step.parts) == 1):
            return self[name][index_T]
        part = step.parts[0]
        first = part.byte_range[0]
        wanted = sorted(set(index_T.tolist()))
        place = {row: at for at, row in enumerate(wanted)}
        data = b"".join(
            self._checkpoint.read(part.source, at, at + part.row_nbytes)
            for at in (first + row * part.row_nbytes for row in wanted)
        )
        self.nbytes_read += len(data)
        found = to_torch(data, step.target.dtype, (len(wanted), part.columns))
        return found[[place[row] for row in index_T.tolist()]].to(self.device, self.dtype)

    def _load(self, name: str) -> torch.Tensor:
        step = self.steps[name]
        raw = torch.empty(step.target.nbytes, dtype=torch.uint8)
        # A view that python copies into; torch's way to one needs numpy, which may be absent.
        room = memoryview((ctypes.c_uint8 * raw.numel()).from_address(raw.data_ptr())).cast("B")
        at = 0
        for chunk in stream(self._checkpoint, step):
            size = memoryview(chunk).nbytes
            room[at : at + size] = memoryview(chunk).cast("B")
            at += size
        self.nbytes_read += sum(part.nbytes for part in step.parts)
        tensor = raw.view(torch_dtype(step.target.dtype)).view(step.target.shape)
        try:
            return tensor.to(self.device, self._dtype(step))
        except torch.OutOfMemoryError as error:
            raise NotEnoughMemory(
                f"no room for {name} ({step.target.nbytes} bytes) on {self.device}",
                hint="--device cpu, or free some of the device's memory",
            ) from error

    def _dtype(self, step: Step) -> torch.dtype:
        """Norms and routers stay as stored: they are small, and used in float32 anyway."""
        name = step.target.name
        if len(step.target.shape) == 1 or name.endswith("feed_forward.gate.weight"):
            return torch_dtype(step.target.dtype)
        return self.dtype

    def _nbytes(self, step: Step) -> int:
        return math.prod(step.target.shape) * self._dtype(step).itemsize


def open_weights(
    checkpoint: Checkpoint,
    recognized: Recognized,
    device: torch.device,
    dtype: torch.dtype | None = None,
    budget: int | None = None,
) -> WeightStore:
    """Make the weights of a recognised checkpoint available on a device; nothing is read yet.

    ``dtype``: of matrices and activations; None keeps the checkpoint's. ``budget``: bytes that
    weights may take; None is most of what is free on the device.

    Raises:
        Refused: stored in a type that is not computed with (quantised blocks, float8).
        NotEnoughMemory: the budget does not hold the largest tensor.
    """
    steps = canonical_steps(checkpoint.catalog, recognized)
    kept = torch_dtype(main_dtype(checkpoint.catalog.tensors.values()))
    allowed = available_nbytes(device) if budget is None else budget
    store = WeightStore(checkpoint, steps, device, dtype or kept, allowed)
    largest = max(step.target.nbytes for step in steps.values())
    if allowed < largest:
        raise NotEnoughMemory(
            f"{allowed} bytes may be used on {device}, the largest tensor takes {largest}",
            hint="close other programs, or run on a machine with more memory",
        )
    return store


def canonical_steps(catalog: Catalog, recognized: Recognized) -> dict[str, Step]:
    """The steps from a checkpoint's layout to the raw one, by raw name.

    Raises:
        Refused: a tensor is stored in a type that is not computed with.
    """
    for info in catalog.tensors.values():
        if info.dtype not in RUNNABLE:
            raise Refused(
                f"{info.name} is {info.dtype.label}, which is not run yet",
                hint="run the checkpoint it was made from (f32, f16 or bf16)",
            )
    target = expand(recognized.architecture.raw, recognized.args)
    steps = derive_steps(catalog, recognized.layout, target, recognized.args)
    return {step.target.name: step for step in steps}
