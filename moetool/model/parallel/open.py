"""Open a model: alone, or this rank's share of it. A share that has no room is never begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.convert.here import require_here
from moetool.errors import NotEnoughMemory
from moetool.model import kernels
from moetool.model.load import WeightStore, canonical_steps, kept_dtype, open_weights, packed_steps
from moetool.model.one_row import OneRow
from moetool.model.parallel.pipeline import Pipeline
from moetool.model.parallel.ranges import split_layers
from moetool.model.parallel.slices import SlicedCheckpoint, refuse_uneven
from moetool.model.parallel.tensor import TensorParallel

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from moetool.arch.recognize import Recognized
    from moetool.convert.plan import Step
    from moetool.model.mixtral import Transformer
    from moetool.model.parallel.group import Ranks
    from moetool.model.parallel.shared import Shared
    from moetool.tensors import Checkpoint

FIRST, LAST = ["tok_embeddings."], ["norm.", "output."]  # what the ends of a pipeline have


def open_model(
    checkpoint: Checkpoint,
    recognized: Recognized,
    device: torch.device,
    dtype: torch.dtype | None = None,
    budget: int | None = None,
    ranks: Ranks | None = None,
) -> tuple[Transformer, WeightStore]:
    """Make a model ready to run, and its weights, which are to be closed; nothing is read yet.

    ``dtype`` and ``budget`` as for `open_weights`; with ranks, the budget is that of each.

    Raises:
        Refused: stored in a type that is not computed with.
        NotEnoughMemory: no room for the largest tensor alone, or for the share of any rank.
        NotFetched: it is a part of a release, and lacks some of it.
        UsageFault: the model cannot be split over so many ranks.
    """
    if ranks is None:
        weights = open_weights(checkpoint, recognized, device, dtype, budget)
        return OneRow(recognized.args, weights), weights
    kept = dtype or kept_dtype(checkpoint.catalog)
    allowed = ranks.room() if budget is None else budget
    steps = canonical_steps(checkpoint.catalog, recognized)
    require_here(checkpoint, steps.values())
    _multiply_alike(steps, kept, ranks)
    open_share = _open_slices if ranks.split == "tensor" else _open_layers
    model = open_share(checkpoint, recognized, steps, kept, allowed, ranks)
    _refuse_full(model)
    return model, model.store


def _open_layers(
    checkpoint: Checkpoint, recognized: Recognized, steps: dict[str, Step],
    dtype: torch.dtype, budget: int, ranks: Ranks,
) -> Shared:  # fmt: skip
    n_layers = recognized.args.n_layers
    steps = packed_steps(checkpoint.catalog, recognized, steps, ranks.device, dtype)
    sizes = [_numel(steps, [f"layers.{layer}."]) for layer in range(n_layers)]
    before, behind = _numel(steps, FIRST), _numel(steps, LAST)
    layers = split_layers(sizes, ranks.size, before, behind)[ranks.rank]
    wanted = [f"layers.{layer}." for layer in layers]
    wanted += FIRST if layers.start == 0 else []
    wanted += LAST if layers.stop == n_layers else []
    own = {name: step for name, step in steps.items() if name.startswith(tuple(wanted))}
    store = WeightStore(checkpoint, own, ranks.device, dtype, budget)
    return Pipeline(recognized.args, store, ranks, layers)


def _numel(steps: dict[str, Step], prefixes: Iterable[str]) -> int:
    """Values and not bytes: a checkpoint and its source in another type are cut alike."""
    starts = tuple(prefixes)
    return sum(step.target.numel for name, step in steps.items() if name.startswith(starts))


def _open_slices(
    checkpoint: Checkpoint, recognized: Recognized, steps: dict[str, Step],
    dtype: torch.dtype, budget: int, ranks: Ranks,
) -> Shared:  # fmt: skip
    refuse_uneven(recognized.args, ranks.size)
    slices = SlicedCheckpoint(checkpoint, steps, ranks.rank, ranks.size)
    store = WeightStore(slices, slices.steps, ranks.device, dtype, budget)
    return TensorParallel(recognized.args, store, ranks, slices)


def _multiply_alike(steps: dict[str, Step], dtype: torch.dtype, ranks: Ranks) -> None:
    """Have all ranks compute products as the first one found best: sums are taken in that order."""
    largest = max(step.target.numel for step in steps.values())
    if kernels.are_tried(ranks.device, dtype, largest):
        kernels.settle(dtype, ranks.share(kernels.chosen_for(dtype)))


def _refuse_full(model: Shared) -> None:
    """All ranks leave together where one of them has no room: a share is held whole or not at all.

    Raises:
        NotEnoughMemory: with every rank that has no room.
    """
    store, ranks = model.store, model.ranks
    plans = ranks.share((model.holds, store.nbytes, store.budget))
    full = [
        f"rank {rank} ({holds}): {nbytes} bytes of weights, room for {budget}"
        for rank, (holds, nbytes, budget) in enumerate(plans)
        if nbytes > budget
    ]
    if full:
        raise NotEnoughMemory(
            f"{len(full)} of {ranks.size} ranks have no room for their share",
            findings=tuple(full),
            hint="more ranks; or one process alone, which reads weights again as needed",
        )
