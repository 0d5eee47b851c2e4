"""Weights by name, from any checkpoint: the model is one more target of a conversion.

    checkpoint ─derive_steps→ one Step for each raw Mistral tensor ─stream→ tensor on the device

So every layout arrives as the same bits, and there is one engine. One mechanism holds what fits:
a budget in bytes, and the least recently used tensor leaves first. Resident is a budget that
holds all. The model says what it will need next, and a thread reads that while it computes.

By pread and not in place on a map: an I/O error under a map kills the process, what is not read in
time is waited for page by page, and the system's cache is out of our hands.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

import torch

from moetool.arch.schema import expand
from moetool.convert.here import require_here
from moetool.convert.plan import BLOCKS, Step, derive_steps
from moetool.convert.stream import stream, torch_dtype, values_of
from moetool.errors import NotEnoughMemory, Refused
from moetool.extents import Extent, drop_from_cache
from moetool.files.joined import on_disk
from moetool.model.device import available_nbytes
from moetool.model.kernels import stay_packed
from moetool.model.packed import STORED, Packed
from moetool.model.rooms import Rooms
from moetool.tensors import Catalog, Checkpoint, DType, main_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moetool.arch.recognize import Recognized
    from moetool.model.packed import Matrix

CPU = torch.device("cpu")
READERS = min(4, max(1, (os.cpu_count() or 2) // 2))  # the other cores compute
RUNNABLE = {DType.F32, DType.F16, DType.BF16}


class WeightStore:
    """The weights of one checkpoint on one device; a `moetool.model.mixtral.Weights`.

    ``nbytes`` is what all weights take on the device, ``nbytes_read`` what was taken from the
    checkpoint so far. What is being read counts as held. `close` it.
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
        self.nbytes = sum(self._nbytes(name) for name in steps)
        self.nbytes_read = 0
        self._checkpoint = checkpoint
        self._held: OrderedDict[str, Future[Matrix]] = OrderedDict()
        self._held_nbytes = 0
        self._rooms = Rooms(budget)
        self._coming: deque[str] = deque()
        self._expected: set[str] = set()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read-ahead")
        self._counting = Lock()
        # What the page cache cannot hold either is better not left there: a pass over the file
        # would push out everything that other programs have in it, and find nothing next time.
        self._pass_through = not self.resident and self.nbytes > available_nbytes(CPU)

    @property
    def resident(self) -> bool:
        """True when the budget holds all weights at once."""
        return self.nbytes <= self.budget

    @property
    def complete(self) -> bool:
        """True when all weights are held, or about to be, for good."""
        return self.resident and len(self._held) == len(self.steps)

    @property
    def nbytes_stored(self) -> int:
        """What one pass over all weights reads of the checkpoint."""
        return sum(part.nbytes for step in self.steps.values() for part in step.parts)

    @property
    def largest_nbytes(self) -> int:
        """What the largest weight takes on the device."""
        return max(map(self._nbytes, self.steps))

    @property
    def extents(self) -> list[Extent]:
        """Where it is read from; empty where a checkpoint is in no file."""
        placed = self._checkpoint.catalog.extents
        sources = dict.fromkeys(part.source for step in self.steps.values() for part in step.parts)
        return [placed[name] for name in sources if name in placed]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._dense(self.matrix(name))

    def matrix(self, name: str) -> Matrix:
        """The tensor as it is held: packed, where it is stored and kept so."""
        if self.resident and name in self._held:
            return self._held[name].result()
        if name not in self._held:
            needed = self._nbytes(name)
            # Nothing else is so urgent: what is expected leaves as well, where nothing else is.
            if not self._make_room(needed, self._expected):
                self._make_room(needed, set())
            self._begin(name)
        future = self._held[name]
        self._held.move_to_end(name)
        self._expected.add(name)  # nor may what is in use make room
        self._read_ahead()
        self._expected.discard(name)
        return future.result()

    def expect(self, names: Iterable[str]) -> None:
        """Hear what will be asked for next, in this order; it replaces what was said before.

        It is read by another thread while there is room that nothing expected takes.
        """
        if len(self._held) == len(self.steps):
            return
        self._coming = deque(name for name in names if name in self.steps)
        self._expected = set(self._coming)
        self._read_ahead()

    def close(self) -> None:
        """Stop reading; closing twice is harmless."""
        self._coming.clear()
        self._readers.shutdown(cancel_futures=True)

    def _read_ahead(self) -> None:
        while self._coming:
            name = self._coming[0]
            if name not in self._held:
                if not self._make_room(self._nbytes(name), keep=self._expected):
                    return
                self._begin(name)
            self._coming.popleft()

    def _begin(self, name: str) -> None:
        self._held[name] = self._readers.submit(self._read, name)
        self._held_nbytes += self._nbytes(name)

    def _make_room(self, needed: int, keep: set[str]) -> bool:
        """Let go of what was not used for longest, but for ``keep``; whether that is enough."""
        for name in [name for name in self._held if name not in keep]:
            if self._held_nbytes + needed <= self.budget:
                return True
            self._held.pop(name).cancel()
            self._held_nbytes -= self._nbytes(name)
        return self._held_nbytes + needed <= self.budget

    def rows(self, name: str, index_T: torch.Tensor) -> torch.Tensor:
        """Take rows of a tensor; one that is not resident is not read whole for a few of them."""
        step = self.steps[name]
        if name in self._held or self.resident or not (step.is_copy and len(step.parts) == 1):
            return self._dense(self.matrix(name)[index_T])
        part = step.parts[0]
        first = part.byte_range[0]
        wanted = sorted(set(index_T.tolist()))
        place = {row: at for at, row in enumerate(wanted)}
        data = b"".join(
            self._checkpoint.read(part.source, at, at + part.row_nbytes)
            for at in (first + row * part.row_nbytes for row in wanted)
        )
        self._count(len(data))
        found = values_of(data, step.target.dtype).view(len(wanted), part.columns)
        return found[[place[row] for row in index_T.tolist()]].to(self.device, self.dtype)

    def load(self, name: str) -> torch.Tensor:
        """Read a tensor onto the device, and hold nothing of it."""
        return self._dense(self._read(name))

    def _dense(self, matrix: Matrix) -> torch.Tensor:
        return matrix.widen().to(self.dtype) if isinstance(matrix, Packed) else matrix

    def _read(self, name: str) -> Matrix:
        step = self.steps[name]
        raw = self._room(step.target.nbytes)
        # A view that python copies into; torch's way to one needs numpy, which may be absent.
        room = memoryview((ctypes.c_uint8 * raw.numel()).from_address(raw.data_ptr())).cast("B")
        self._fill(room, step)
        self._count(sum(part.nbytes for part in step.parts))
        if self._pass_through:
            self._forget(step)
        if step.target.dtype is STORED:
            return Packed(raw.view(step.target.shape[0], -1), self.dtype)
        tensor = raw.view(torch_dtype(step.target.dtype)).view(step.target.shape)
        try:
            return tensor.to(self.device, self._dtype(step))
        except torch.OutOfMemoryError as error:
            raise NotEnoughMemory(
                f"no room for {name} ({step.target.nbytes} bytes) on {self.device}",
                hint="--device cpu, or free some of the device's memory",
            ) from error

    def _room(self, nbytes: int) -> torch.Tensor:
        if self.resident or not nbytes:
            return torch.empty(nbytes, dtype=torch.uint8)
        return self._rooms.take(nbytes)

    def _fill(self, room: memoryview, step: Step) -> None:
        """Have the bytes of a target in memory, read in place where they are the source's own."""
        read_into = getattr(self._checkpoint, "read_into", None)
        if step.is_copy and read_into:
            for part in step.parts:
                read_into(part.source, part.byte_range[0], room[: part.nbytes])
                room = room[part.nbytes :]
            return
        for chunk in stream(self._checkpoint, step):
            size = memoryview(chunk).nbytes
            room[:size] = memoryview(chunk).cast("B")
            room = room[size:]

    def _dtype(self, step: Step) -> torch.dtype:
        """Norms and routers stay as stored: they are small, and used in float32 anyway."""
        return self.dtype if _is_matrix(step) else torch_dtype(step.target.dtype)

    def _nbytes(self, name: str) -> int:
        step = self.steps[name]
        if step.target.dtype is STORED:
            return step.target.nbytes
        return math.prod(step.target.shape) * self._dtype(step).itemsize

    def _count(self, nbytes: int) -> None:
        with self._counting:
            self.nbytes_read += nbytes

    def _forget(self, step: Step) -> None:
        """Leave nothing of what was read in the page cache."""
        for part in step.parts:
            whole, (start, stop) = self._checkpoint.catalog.extents[part.source], part.byte_range
            for place in on_disk(Extent(whole.path, whole.offset + start, stop - start)):
                drop_from_cache(place)


def open_weights(
    checkpoint: Checkpoint,
    recognized: Recognized,
    device: torch.device,
    dtype: torch.dtype | None = None,
    budget: int | None = None,
    *,
    packed: bool = True,
) -> WeightStore:
    """Make the weights of a recognised checkpoint available on a device; nothing is read yet.

    ``dtype``: of matrices and activations; None keeps the checkpoint's, and is bf16 where that is
    quantised. ``budget``: bytes that weights may take; None is most of what is free on the device.
    ``packed``: q8_0 may stay as it is stored; other blocks are decoded as they are read.

    Raises:
        Refused: stored in a type that is not computed with (float8, blocks not decoded here).
        NotFetched: it is a part of a release, and lacks some of them.
        NotEnoughMemory: the budget does not hold the largest tensor.
    """
    kept = dtype or kept_dtype(checkpoint.catalog)
    steps = canonical_steps(checkpoint.catalog, recognized)
    require_here(checkpoint, steps.values())
    if packed:
        steps = packed_steps(checkpoint.catalog, recognized, steps, device, kept)
    allowed = available_nbytes(device) if budget is None else budget
    store = WeightStore(checkpoint, steps, device, kept, allowed)
    largest = max(step.target.nbytes for step in steps.values())
    if allowed < largest:
        raise NotEnoughMemory(
            f"{allowed} bytes may be used on {device}, the largest tensor takes {largest}",
            hint="close other programs, or run on a machine with more memory",
        )
    return store


def kept_dtype(catalog: Catalog) -> torch.dtype:
    """The type that matrices are stored in, or that of quantised blocks when they are decoded."""
    main = main_dtype(catalog.tensors.values())
    return torch.bfloat16 if main in BLOCKS else torch_dtype(main)


def canonical_steps(
    catalog: Catalog, recognized: Recognized, decoded: DType | None = DType.F32
) -> dict[str, Step]:
    """The steps from a checkpoint's layout to the raw one, by raw name.

    ``decoded``: what quantised blocks become; None leaves them as they are.

    Raises:
        Refused: a tensor is stored in a type that is not computed with.
    """
    for info in catalog.tensors.values():
        if info.dtype not in RUNNABLE | BLOCKS:
            raise Refused(
                f"{info.name} is {info.dtype.label}, which is not run yet",
                hint="run the checkpoint it was made from (f32, f16 or bf16)",
            )
    target = expand(recognized.architecture.raw, recognized.args)
    steps = derive_steps(catalog, recognized.layout, target, recognized.args, decoded=decoded)
    return {step.target.name: step for step in steps}


def packed_steps(
    catalog: Catalog,
    recognized: Recognized,
    steps: dict[str, Step],
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Step]:
    """The steps that leave matrices packed where that is computed with as fast, else the same."""
    largest = max(step.target.numel for step in steps.values())
    is_stored = any(info.dtype is STORED for info in catalog.tensors.values())
    if not is_stored or not stay_packed(device, dtype, largest):
        return steps
    as_stored = canonical_steps(catalog, recognized, decoded=None)
    kept = {n: s for n, s in as_stored.items() if s.target.dtype is STORED and _is_matrix(s)}
    return steps | kept


def _is_matrix(step: Step) -> bool:
    """Neither a norm nor a router."""
    name = step.target.name
    return len(step.target.shape) > 1 and not name.endswith("feed_forward.gate.weight")
