"""All weights on the device, those of a layer's experts as one tensor.

A gather by expert and a grouped product need the experts of a layer side by side; one product for
q, k and v, and one for w1 and w3, are two kernels fewer. Each raw name is a part of these tensors,
so the reference runs on them as it is.

Letters beyond those of mixtral.py: Q = (N + 2K)·H rows of wq, wk, wv; U = 2F rows of w1, w3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from moetool.model.fast.int8 import Matrix, dense, nbytes, part, quantised

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs

Read = Callable[[str], Tensor]
"""Gives a tensor by its raw name, on the device, and keeps no hold of it."""


class Layer(NamedTuple):
    """The weights of one layer; a tuple, because the compiler takes it apart as one."""

    attention_norm_D: Tensor
    wqkv_QD: Matrix
    wo: Matrix
    ffn_norm_D: Tensor
    gate_ED: Tensor
    w13_EUD: Matrix
    w2_EDF: Matrix


class Ends(NamedTuple):
    """What stands before the first layer and behind the last."""

    tok_embeddings_VD: Tensor
    norm_D: Tensor
    output_VD: Matrix


class StackedWeights:
    """The weights of a mixture, stacked; a `moetool.model.mixtral.Weights`."""

    def __init__(self, args: ModelArgs, layers: Sequence[Layer], ends: Ends) -> None:
        self.layers, self.ends = list(layers), ends
        self._parts: dict[str, Matrix] = {
            "tok_embeddings.weight": ends.tok_embeddings_VD,
            "norm.weight": ends.norm_D,
            "output.weight": ends.output_VD,
        }
        for n, layer in enumerate(layers):
            named = {**dict(_small(layer)), **dict(_matrices(args, layer))}
            self._parts |= {f"layers.{n}.{name}": tensor for name, tensor in named.items()}

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.ends.tok_embeddings_VD.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations, and of matrices that are not int8."""
        return self.ends.tok_embeddings_VD.dtype

    @property
    def nbytes(self) -> int:
        """What all weights take."""
        return sum(nbytes(tensor) for group in (*self.layers, self.ends) for tensor in group)

    def __getitem__(self, name: str) -> Tensor:
        return dense(self._parts[name], self.dtype)

    def matrix(self, name: str) -> Tensor:
        """The same: nothing is packed here."""
        return self[name]

    def rows(self, name: str, index_T: Tensor) -> Tensor:
        """Some rows of a tensor."""
        return dense(part(self._parts[name], index_T), self.dtype)

    def expect(self, names: Iterable[str]) -> None:
        """Everything is here."""


def stack(args: ModelArgs, read: Read, n_threads: int = 1, *, int8: bool = False) -> StackedWeights:
    """Take the room of a layer, read tensor by tensor into it, and go on with the next.

    Beside the stacks there are never more than ``n_threads`` tensors and, with ``int8``, what its
    rounding needs of one stack.
    """
    like = read("layers.0.attention.wo.weight")
    layers = []
    with ThreadPoolExecutor(n_threads) as threads:
        for n in range(args.n_layers):
            room = _room(args, f"layers.{n}", like, read)
            _fill(threads, _matrices(args, room), f"layers.{n}", read)
            layers.append(_quantised(room) if int8 else room)
    tok_embeddings_VD, norm_D, output_VD = (
        read(f"{name}.weight") for name in ("tok_embeddings", "norm", "output")
    )
    output: Matrix = quantised(output_VD) if int8 else output_VD
    return StackedWeights(args, layers, Ends(tok_embeddings_VD, norm_D, output))


def _room(args: ModelArgs, name: str, like: Tensor, read: Read) -> Layer:
    """A layer with room for its matrices; norms and router are small and may be of finer type."""
    E, F, D, N, K = args.n_experts, args.hidden_dim, args.dim, args.n_heads, args.n_kv_heads
    return Layer(
        attention_norm_D=read(f"{name}.attention_norm.weight"),
        wqkv_QD=like.new_empty((N + 2 * K) * args.head_dim, D),
        wo=torch.empty_like(like),
        ffn_norm_D=read(f"{name}.ffn_norm.weight"),
        gate_ED=read(f"{name}.feed_forward.gate.weight"),
        w13_EUD=like.new_empty(E, 2 * F, D),
        w2_EDF=like.new_empty(E, D, F),
    )


def _fill(
    threads: ThreadPoolExecutor, places: Iterable[tuple[str, Matrix]], name: str, read: Read
) -> None:
    """Read matrices to their places; an error of a thread is raised here."""

    def fill(at: tuple[str, Matrix]) -> None:
        assert isinstance(at[1], Tensor), "room is not quantised yet"
        at[1].copy_(read(f"{name}.{at[0]}"))

    for _ in threads.map(fill, places):
        pass


def _quantised(layer: Layer) -> Layer:
    """The same layer with its matrices in int8."""
    wqkv_QD, wo, w13_EUD, w2_EDF = (
        quantised(dense(matrix, torch.float32))
        for matrix in (layer.wqkv_QD, layer.wo, layer.w13_EUD, layer.w2_EDF)
    )
    return layer._replace(wqkv_QD=wqkv_QD, wo=wo, w13_EUD=w13_EUD, w2_EDF=w2_EDF)


def _small(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """The raw names of what is no matrix, and the router."""
    yield "attention_norm.weight", layer.attention_norm_D
    yield "ffn_norm.weight", layer.ffn_norm_D
    yield "feed_forward.gate.weight", layer.gate_ED


def _matrices(args: ModelArgs, layer: Layer) -> Iterator[tuple[str, Matrix]]:
    """The raw names of a layer's matrices, and where each is in the stacks."""
    N, K, H, F = args.n_heads, args.n_kv_heads, args.head_dim, args.hidden_dim
    for kind, first, last in (("q", 0, N), ("k", N, N + K), ("v", N + K, N + 2 * K)):
        yield f"attention.w{kind}.weight", part(layer.wqkv_QD, slice(first * H, last * H))
    yield "attention.wo.weight", layer.wo
    for e in range(args.n_experts):
        expert = f"feed_forward.experts.{e}"
        yield f"{expert}.w1.weight", part(layer.w13_EUD, (e, slice(0, F)))
        yield f"{expert}.w2.weight", part(layer.w2_EDF, (e, slice(None)))
        yield f"{expert}.w3.weight", part(layer.w13_EUD, (e, slice(F, 2 * F)))
