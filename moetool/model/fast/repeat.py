"""How a step that is the same each time is repeated: plainly, or compiled and recorded on a GPU.

A step of 8x7B is some five hundred kernels of a few microseconds each, which Python cannot start as
fast as they run. So one layer is compiled (all layers share its code) and a whole step, all layers
and the choice of the token, is recorded as one CUDA graph by hand: torch.compile's own graphs give
up where an input is written to, as a cache is, and would have to compile all layers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
REHEARSALS = 2  # the first compiles and picks kernels, the second runs what will be recorded


class Repeat(Protocol):
    """Makes ready for being repeated."""

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """The same function, its kernels fused."""
        ...

    def recorded(self, step: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
        """The same step, started at once.

        ``state`` is all that a step changes and reads again; it is as before afterwards. What a
        step writes may be written several times.
        """
        ...


class Plain:
    """As it is: on a CPU, where the products are what takes time."""

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """The same function."""
        return function

    def recorded(self, step: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
        """The same step."""
        del state
        return step


class Graphs:
    """Compiled by torch where Triton is there, and recorded as a CUDA graph in any case."""

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """The same function as fused kernels; a break would be an error."""
        if find_spec("triton") is None:
            return function
        return torch.compile(
            function,
            fullgraph=True,
            dynamic=False,
            options={"coordinate_descent_tuning": True},
        )

    def recorded(self, step: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
        """The same step as one graph; its results are in the tensors that it wrote to."""
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            rehearse(step, state)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay


def rehearse(step: Callable[[], None], state: Sequence[Tensor]) -> None:
    """Run a step as often as it takes until nothing is left to prepare; put the state back.

    Each time: a second step behind the first could stand behind the end of the cache.
    """
    before = [tensor.clone() for tensor in state]
    for _ in range(REHEARSALS):
        step()
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
