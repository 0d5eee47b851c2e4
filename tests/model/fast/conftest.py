"""What tests of the fast engines share: the reference and the same weights stacked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moetool.model.fast.resident import Resident
from moetool.model.fast.stacked import stack


@pytest.fixture
def pair(load_model, odd_args):
    """Make the reference and the resident engine on the same random weights."""

    def make(dtype=torch.float32, repeat=None, int8=False, **changed):
        args = replace(odd_args, **changed)
        reference = load_model(args=args, dtype=dtype)
        stacked = stack(args, reference.weights.__getitem__, int8=int8)
        return reference, Resident(args, stacked, repeat)

    return make


@pytest.fixture
def valueless(pair):
    """Make the resident engine on the meta device, where there are shapes and nothing to look at.

    Whatever asks for a value (item, tolist, nonzero, a bool) is an error there: on a GPU the host
    would wait for it.
    """

    def make(**changed):
        _, fast = pair(**changed)

        def read(name):
            return fast.stacked[name].to("meta")

        return Resident(fast.args, stack(fast.args, read, int8=changed.get("int8", False)))

    return make


@pytest.fixture
def off():
    """How far tensors are apart, in standard deviations of the second."""
    return lambda ours, right: float((ours - right).abs().max() / right.std())
