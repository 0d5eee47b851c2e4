"""Processes come together, pass tensors on, sum them, and leave.

Two ways to talk: gloo for what is said (plans, findings, the order to leave), and for tensors NCCL
where each rank has a GPU of its own. Everywhere else tensors go through main memory, also by gloo.
Sources: pytorch.org, torch.distributed and torchrun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from moetool.errors import DeviceUnavailable, MoetoolError, NetworkFault, SystemFault
from moetool.model.device import available_nbytes, pick_device
from moetool.model.parallel.watch import Watch

if TYPE_CHECKING:
    from moetool.model.parallel.world import World

T = TypeVar("T")
TOGETHER = timedelta(minutes=5)  # from the first rank to the last: images are pulled, torch is read
# A rank may read its share from a slow disk while another one waits for its stream. That a rank is
# gone is the watch's to notice; this only ends what would never end.
PATIENCE = timedelta(hours=2)
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Ranks:
    """All processes of a run, seen from one of them.

    ``split``: how they share a model, pipeline or tensor. ``own_device``: no other rank uses it.
    """

    world: World
    split: str
    device: torch.device
    own_device: bool
    _said: dist.ProcessGroup
    _tensors: dist.ProcessGroup
    _wire: torch.device

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.world.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.world.size

    def room(self) -> int:
        """What weights of this rank may take."""
        return self.part_of(available_nbytes(self.device))

    def part_of(self, nbytes: int) -> int:
        """This rank's part of a memory, which the ranks of a machine share unless it is a GPU's."""
        return nbytes if self.own_device else nbytes // self.world.local_size

    def send(self, tensor: Tensor, rank: int) -> None:
        """Send a tensor to another rank, which must `receive` it."""
        wired = tensor.to(self._wire).contiguous()
        with _talking(f"rank {rank}"):
            dist.send(wired, rank, group=self._tensors)

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, rank: int) -> Tensor:
        """Wait for a tensor from another rank."""
        wired = torch.empty(shape, dtype=dtype, device=self._wire)
        with _talking(f"rank {rank}"):
            dist.recv(wired, rank, group=self._tensors)
        return wired.to(self.device)

    def broadcast(
        self, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, origin: int
    ) -> Tensor:
        """Give all ranks the tensor that ``origin`` has."""
        if tensor is None:
            wired = torch.empty(shape, dtype=dtype, device=self._wire)
        else:
            wired = tensor.to(self._wire).contiguous()
        with _talking(f"rank {origin}"):
            dist.broadcast(wired, origin, group=self._tensors)
        return wired.to(self.device)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add the tensors of all ranks, in float32; every rank gets the same bits."""
        wired = tensor.to(self._wire, torch.float32, copy=True).contiguous()
        with _talking("a rank"):
            dist.all_reduce(wired, group=self._tensors)
        return wired.to(self.device)

    def side_by_side(self, tensor_TX: Tensor) -> Tensor:
        """Join the columns that the ranks have, in their order."""
        wired = tensor_TX.to(self._wire).contiguous()
        found = [torch.empty_like(wired) for _ in range(self.size)]
        with _talking("a rank"):
            dist.all_gather(found, wired, group=self._tensors)
        return torch.cat(found, dim=-1).to(self.device)

    def share(self, value: T) -> list[T]:
        """Give all ranks what each has, in their order."""
        found = [value] * self.size
        with _talking("a rank"):
            dist.all_gather_object(found, value, group=self._said)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """Give all ranks what rank 0 makes: what can be had once only, as standard input."""
        return self.share([make()] if self.rank == 0 else [])[0][0]


@contextmanager
def _talking(whom: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise SystemFault(f"{whom} does not answer: {str(error).splitlines()[0]}") from error


@contextmanager
def joined(
    world: World, split: str, device: str, tell: Callable[[MoetoolError], None]
) -> Iterator[Ranks]:
    """Come together with the other ranks, and leave with them; one that fails takes all along.

    ``device``: ``auto`` and ``cuda`` give each rank of a machine its own GPU, a name with a number
    is for all. ``tell`` says the failure of another rank, when this one is about to end by it.

    Raises:
        NetworkFault: not all ranks came.
        DeviceUnavailable: fewer GPUs than ranks.
    """
    try:
        dist.init_process_group("gloo", timeout=TOGETHER)
        watch = Watch(world, tell)
    except RuntimeError as error:
        raise NetworkFault(
            f"the {world.size} ranks did not come together: {str(error).splitlines()[0]}",
            where=f"{world.host}:{world.port}",
            hint="each machine must reach that port; GLOO_SOCKET_IFNAME chooses the interface",
        ) from error
    try:
        ranks = _equip(world, split, device)
        yield ranks
        # Whoever hosts the store leaves last: first all are done, then all look away.
        ranks.share(0)
        watch.stop()
        ranks.share(0)
    except BaseException as error:
        raised = watch.fail(error)
        if raised is error:
            raise
        raise raised from error
    dist.destroy_process_group()


def _equip(world: World, split: str, device: str) -> Ranks:
    own = device in {"auto", "cuda"} and torch.cuda.is_available()
    if own and torch.cuda.device_count() < world.local_size:
        raise DeviceUnavailable(
            f"{world.local_size} ranks on a machine with {torch.cuda.device_count()} CUDA devices",
            hint="fewer with --nproc-per-node, or --device cpu, or --device cuda:0 for all",
        )
    on = torch.device("cuda", world.local_rank) if own else pick_device(device)
    said = _group("gloo")
    found = [own] * world.size
    dist.all_gather_object(found, own, group=said)
    if not all(found):
        return Ranks(world, split, on, own, said, said, CPU)
    torch.cuda.set_device(on)
    return Ranks(world, split, on, own, said, _group("nccl"), on)


def _group(backend: str) -> dist.ProcessGroup:
    made: dist.ProcessGroup = dist.new_group(timeout=PATIENCE, backend=backend)
    return made
