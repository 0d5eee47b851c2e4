"""Gather an importance matrix: sums of squares of what every matrix is multiplied with.

A text is cut into chunks of equal length that are read each for itself; what is left at the end is
not read. The first token of each chunk gives way to the mark of a beginning. Dense matrices see
every token, an expert's only those that were routed to it, so each expert has a count of its own.
Embeddings are looked up, not multiplied, and have no entry; the output matrix has one where asked
for. Source: ggml-org/llama.cpp: tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from moetool.arch.schema import Role
from moetool.convert.stream import to_bytes
from moetool.errors import CheckFailed, UsageFault
from moetool.formats.importance import Entry
from moetool.model.cache import in_groups
from moetool.model.evaluate import TOGETHER, Progress
from moetool.model.mixtral import CHUNK, Probe, rms_norm

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.arch.schema import Convention
    from moetool.model.mixtral import Transformer

_ROLES = {
    "wq": Role.WQ, "wk": Role.WK, "wv": Role.WV, "wo": Role.WO,
    "gate": Role.ROUTER, "w1": Role.W1, "w2": Role.W2, "w3": Role.W3, "output": Role.OUTPUT,
}  # fmt: skip


class Collector(Probe):
    """A probe that adds up squares, in float64, for the matrices that share an input.

    ``names``: the convention whose names the entries get, which is a GGUF's.
    """

    def __init__(self, names: Convention, n_experts: int) -> None:
        self._names, self._n_experts = names, n_experts
        self._sums: dict[tuple[int | None, tuple[str, ...]], Tensor] = {}  # [matrices, columns]
        self._counts: dict[tuple[int | None, tuple[str, ...]], list[int]] = {}

    def inputs(
        self, layer: int | None, matrices: tuple[str, ...], x_SI: Tensor, expert: int | None = None
    ) -> None:
        """Add rows; ``layer`` is None for the output matrix."""
        key, index = (layer, matrices), expert or 0
        if key not in self._sums:
            n_matrices = 1 if expert is None else self._n_experts
            self._sums[key] = torch.zeros(n_matrices, x_SI.shape[-1], dtype=torch.float64)
            self._counts[key] = [0] * n_matrices
        for rows_SI in torch.split(x_SI, CHUNK):
            # Squares are summed where they are, in float32: not every device has float64.
            self._sums[key][index] += rows_SI.float().square().sum(0).cpu()
        self._counts[key][index] += len(x_SI)

    def entries(self) -> dict[str, Entry]:
        """What was gathered, by GGUF name."""
        found: dict[str, Entry] = {}
        for key, sums_MI in self._sums.items():
            entry = Entry(_array(sums_MI.float()), tuple(self._counts[key]))
            found |= dict.fromkeys(self._named(*key), entry)
        return found

    def refuse_lost(self) -> None:
        """Refuse sums that float32, and so a file, cannot hold.

        Raises:
            CheckFailed: with every matrix that has some.
        """
        findings = []
        for key, sums_MI in self._sums.items():
            n_lost = int((~sums_MI.float().isfinite()).sum())
            if n_lost:
                findings += [f"{name}: {n_lost} of {sums_MI.numel()} columns"
                             for name in self._named(*key)]  # fmt: skip
        if findings:
            raise CheckFailed(
                "activations whose squares have no finite sum",
                hint="moetool scan says whether the weights are sound",
                findings=tuple(findings),
            )

    def never_activated(self) -> list[tuple[int, int]]:
        """Layer and number of each expert that no token came to."""
        return [
            (layer, expert)
            for (layer, matrices), counts in self._counts.items()
            if layer is not None and "w1" in matrices
            for expert, count in enumerate(counts)
            if not count
        ]

    def _named(self, layer: int | None, matrices: tuple[str, ...]) -> list[str]:
        roles = [_ROLES[matrix] for matrix in matrices]
        return [self._names.stored[role].name(layer, None) for role in roles]


def _array(values: Tensor) -> array[float]:
    made = array("f")
    made.frombytes(to_bytes(values))
    return made


def cut_in_chunks(tokens: Sequence[int], size: int, bos: int) -> list[Tensor]:
    """Whole chunks of a text, each begun by ``bos``, unless that is negative: then there is none.

    Raises:
        UsageFault: the text has no whole chunk.
    """
    if len(tokens) < size:
        raise UsageFault(
            f"the text has {len(tokens)} tokens, which is no chunk of {size}",
            hint="give a longer text, or a smaller --chunk",
        )
    chunks = torch.tensor(tokens[: len(tokens) // size * size]).view(-1, size)
    if bos >= 0:
        chunks[:, 0] = bos
    return list(chunks)


def gather(
    model: Transformer,
    chunks: Sequence[Tensor],
    into: Collector,
    *,
    with_output: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> None:
    """Run chunks of one text through a model; ``with_output`` looks at the output matrix too.

    Raises:
        UsageFault: a chunk is longer than the model's context.
        CheckFailed: activations are not finite, or too large to be squared.
    """
    done, total, device = 0, sum(map(len, chunks)), model.weights.device
    # Chunks of a group go through the weights together: each layer is read once for all of them.
    for group in in_groups(chunks, TOGETHER):
        caches = [model.new_cache(len(chunk_T)) for chunk_T in group]
        states = model.hidden_of([chunk_T.to(device) for chunk_T in group], caches, into)
        if with_output:
            norm_D = model.weights["norm.weight"]
            for h_TD in states:
                into.inputs(None, ("output",), rms_norm(h_TD, norm_D, model.args.norm_eps))
        into.refuse_lost()  # here, so that no hours are spent on what is lost
        done += sum(map(len, group))
        progress(done, total)
