"""A dense geometry beside the small mixture of all tests."""

from dataclasses import replace

import pytest


@pytest.fixture
def dense_args(small_args):
    """A small Mistral-7B: no experts, a window, and the theta that goes with it."""
    return replace(small_args, n_experts=0, n_experts_per_tok=0, sliding_window=16, rope_theta=1e4)
