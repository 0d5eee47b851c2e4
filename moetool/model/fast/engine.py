"""Which of the fast engines runs a checkpoint.

    a dense model                    the reference: it has no experts to arrange
    the device holds all weights     Resident
    it does not                      Offloaded

Who calls this has decided for speed: it is for GPUs, and it runs anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from moetool.errors import NotEnoughMemory
from moetool.model.fast.copies import Copies, copies_for
from moetool.model.fast.feed import Feed
from moetool.model.fast.offloaded import EXPERTS, HostExperts, Offloaded, SharedWeights
from moetool.model.fast.rates import Rates, measure
from moetool.model.fast.resident import Resident
from moetool.model.fast.slots import PASSING, Slots
from moetool.model.fast.stacked import stack
from moetool.model.load import CPU, READERS, WeightStore, open_weights
from moetool.model.mixtral import Transformer

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs
    from moetool.arch.recognize import Recognized
    from moetool.tensors import Checkpoint


@contextmanager
def engine_for(
    checkpoint: Checkpoint, recognized: Recognized, weights: WeightStore
) -> Iterator[Transformer]:
    """Give the fast engine of a checkpoint, ``weights`` being its store for the device.

    Raises:
        NotEnoughMemory: the device has no room for what is no expert.
    """
    args = recognized.args
    if not args.n_experts:
        yield Transformer(args, weights)
    elif weights.resident:
        yield Resident(args, stack(args, weights.load, READERS))
    else:
        host = open_weights(checkpoint, recognized, CPU, weights.dtype, packed=False)
        try:
            with offloaded(args, weights, host) as model:
                yield model
        finally:
            host.close()


@contextmanager
def offloaded(
    args: ModelArgs,
    weights: WeightStore,
    host: WeightStore,
    rates: Rates | None = None,
    copies: Copies | None = None,
) -> Iterator[Offloaded]:
    """All but the experts from ``weights``, those from ``host`` as they are needed.

    ``rates`` are measured and ``copies`` are the device's where they are not given.

    Raises:
        NotEnoughMemory: the device has no room for what is no expert.
    """
    device, dtype, numel = weights.device, weights.dtype, args.n_params_expert_layer
    shared = {name: weights.load(name) for name in weights.steps if EXPERTS not in name}
    experts, copies = HostExperts(host), copies or copies_for(device)
    room = weights.budget - sum(tensor.nbytes for tensor in shared.values())
    n_slots = min(room // (numel * dtype.itemsize), PASSING + args.n_layers * args.n_experts)
    if n_slots < PASSING:
        raise NotEnoughMemory(
            f"{weights.budget} bytes may be used on {device}: no two experts fit beside the rest",
            hint="--device cpu, or more --memory",
        )
    slab_SX = torch.empty((n_slots, numel), dtype=dtype, device=device)
    feed = Feed(copies, dtype)
    try:
        slots = Slots(slab_SX, args.n_layers, experts.read, feed, copies)
        rates = rates or measure(feed, device, dtype)
        yield Offloaded(args, SharedWeights(shared), experts, slots, rates)
    finally:
        feed.close()
