"""A command under torchrun: the ranks come together, rank 0 speaks, and what each took is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from moetool.cli.console import Console, size
from moetool.cli.running import be_patient
from moetool.errors import UsageFault

if TYPE_CHECKING:
    from moetool.model.mixtral import Transformer
    from moetool.model.parallel.group import Ranks
    from moetool.model.parallel.shared import RankMemory

T = TypeVar("T")
SPLITS = ("pipeline", "tensor")

ParallelOption = Annotated[
    str | None,
    typer.Option(
        help="Under torchrun: pipeline (a range of layers for each rank, the same bits) or tensor "
        "(a part of each layer, quicker); left out: pipeline",
        show_default=False,
    ),
]


@contextmanager
def ranks(parallel: str | None, device: str, console: Console) -> Iterator[Ranks | None]:
    """Come together with the other processes that torchrun has started; None without torchrun.

    From here on all ranks but the first are silent, whatever becomes of this block.

    Raises:
        UsageFault: no such way to share a model, or no torchrun to share it with.
    """
    from moetool.model.parallel.world import find_world

    world = find_world(os.environ)
    if parallel is not None and parallel not in SPLITS:
        raise UsageFault(f"unknown --parallel {parallel!r}", hint=" or ".join(SPLITS))
    if world is None:
        if parallel is not None:
            raise UsageFault(
                f"--parallel {parallel} is for several processes, and this one is alone",
                hint="torchrun --nproc-per-node 2 -m moetool …",
            )
        yield None
        return
    if world.rank:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the end
        console.quiet = True
    be_patient()
    from moetool.model.parallel.group import joined

    with joined(world, parallel or SPLITS[0], device, console.error) as found:
        yield found


def once(found: Ranks | None, make: Callable[[], T]) -> T:
    """Make what can be made once only, on the first rank, for all of them."""
    return make() if found is None else found.from_first(make)


def tell_ranks(console: Console, *models: Transformer) -> tuple[RankMemory, ...]:
    """Say what each rank took, and warn of one that took more than its share; for all ranks."""
    from moetool.model.parallel.shared import Shared, beyond_plan

    found: list[RankMemory] = []
    for model in models:
        if isinstance(model, Shared):
            found += model.ranks.share(model.memory())
    for rank in found:
        where = "on the device" if rank.peak.device is not None else "of anonymous memory"
        taken = "" if rank.taken is None else f", {size(rank.taken)} {where} at most"
        console.note(
            f"rank {rank.rank} ({rank.holds}): {size(rank.planned)} of weights planned, "
            f"{size(rank.held)} held, {size(rank.nbytes_read)} read{taken}"
        )
    for number in beyond_plan(found):
        console.warn(f"rank {number} took more than its share and what computing needs")
    return tuple(found)
