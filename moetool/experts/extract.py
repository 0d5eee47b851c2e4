"""One expert of one layer as a file of named tensors, for study.

    layers.L.feed_forward.experts.E.w1.weight   [hidden_dim, dim]
    layers.L.feed_forward.experts.E.w2.weight   [dim, hidden_dim]
    layers.L.feed_forward.experts.E.w3.weight   [hidden_dim, dim]
    layers.L.feed_forward.gate.row              [dim]: what the router compares a token with
    layers.L.ffn_norm.weight                    [dim]: what scales the stream before both

The values are those of the checkpoint in the type they are stored in; quantised blocks become the
float32 that they stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.arch.schema import Role, Slot
from moetool.convert.here import require_here
from moetool.durable import sync_folder
from moetool.errors import OutputExists, UsageFault
from moetool.formats import create
from moetool.proof.diff.experts import EXPERT_ROLES
from moetool.tensors import TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.proof.canonical import Weights
    from moetool.tensors import Buffer

NOTE = (
    "This is no model. It is one of {n} experts of layer {layer}: it computes "
    "w2(silu(w1 x) * w3 x) on that layer's normed stream, and was trained on the tokens only that "
    "its router sent, together with another expert and weighted. An expert of the same number in "
    "another layer has nothing to do with it, and its number is arbitrary."
)


def extract(weights: Weights, layer: int, expert: int, out: Path) -> tuple[TensorInfo, ...]:
    """Write the file; give its tensors.

    Raises:
        UsageFault: there is no such layer or expert.
        NotFetched: it is of a part of a release that lacks some of this expert.
        OutputExists: the file is there.
    """
    args = weights.recognized.args
    if not (0 <= layer < args.n_layers and 0 <= expert < args.n_experts):
        raise UsageFault(
            f"there is no expert {expert} in layer {layer}",
            where=str(weights.path),
            hint=f"there are {args.n_layers} layers of {args.n_experts} experts, counted from 0",
        )
    matrices = [Slot(role, layer, expert) for role in EXPERT_ROLES]
    router, norm = Slot(Role.ROUTER, layer), Slot(Role.FFN_NORM, layer)
    require_here(weights.checkpoint, [weights.steps[slot] for slot in (*matrices, router, norm)])
    row = TensorInfo(
        f"layers.{layer}.feed_forward.gate.row", weights.info(router).dtype, (args.dim,)
    )
    infos = (*(weights.info(slot) for slot in matrices), row, weights.info(norm))
    note = NOTE.format(n=args.n_experts, layer=layer)
    if out.exists() or out.is_symlink():
        raise OutputExists("is there already", where=str(out), hint="give another --out")
    # Beside it until it is whole: a name ends in .safetensors only if the file is.
    work = out.with_name(f".{out.stem}.partial.safetensors")
    work.unlink(missing_ok=True)
    try:
        sink = create(work, infos, {"format": "pt", "moetool.note": note})
        for slot in matrices:
            sink.write(weights.info(slot).name, weights.read(slot))
        sink.write(row.name, [_row(weights.read(router), expert, row.nbytes)])
        sink.write(weights.info(norm).name, weights.read(norm))
        sink.close()
        work.rename(out)
        sync_folder(out.absolute().parent)
    finally:
        work.unlink(missing_ok=True)
    return infos


def _row(chunks: Iterator[Buffer], number: int, size: int) -> bytes:
    """A row of a router, which is a few MB at most."""
    return b"".join(map(bytes, chunks))[number * size : (number + 1) * size]
