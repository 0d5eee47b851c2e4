"""A recipe for a quantised GGUF: a mix, what was asked for beside it, an importance matrix.

It decides the type of every tensor before a weight is read, and says what that leaves in the
header, the manifest and the notes for the user.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.convert.quantised.mixes import Quantization, choose, fallbacks, find_mix
from moetool.errors import UsageFault
from moetool.formats.importance import check_imatrix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from moetool.arch.args import ModelArgs
    from moetool.arch.schema import StoredTensor
    from moetool.convert.plan import Plan
    from moetool.convert.targets import Target
    from moetool.formats.importance import Imatrix
    from moetool.tensors import DType

# llama-quantize cuts names off there: tools/quantize/quantize.cpp, llama_model_kv_override.
_MOST_TEXT = 127


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked for; ``weights`` is an importance matrix and the file it was read from."""

    quantization: Quantization
    weights: tuple[Imatrix, Path] | None = None

    def types(
        self, target: Target, layout: Mapping[str, StoredTensor], args: ModelArgs
    ) -> dict[str, DType]:
        """The type of each tensor of a target.

        Raises:
            UsageFault: the target's format has no blocks, or an override decides nothing.
        """
        if target.file_format != "gguf":
            raise UsageFault(
                f"a {target.file_format} file has no {self.quantization.mix}: quantised blocks are "
                "GGUF's",
                hint=f"--to gguf --dtype {self.quantization.mix}",
            )
        return choose(self.quantization, _shapes(layout), args)

    def notes(self, layout: Mapping[str, StoredTensor], args: ModelArgs) -> tuple[str, ...]:
        """What the user would not expect: types that had to give way, columns without a weight.

        Raises:
            Refused: the importance matrix is another model's.
        """
        found = [
            f"{fallback.name}: rows of {fallback.columns} fill no blocks of "
            f"{fallback.wanted.label}, so it becomes {fallback.got.label}"
            for fallback in fallbacks(self.quantization, _shapes(layout), args)
        ]
        if self.weights is None:
            return tuple(found)
        imatrix, path = self.weights
        wanted = {
            name: (math.prod(shape[:-2]), shape[-1])
            for name, shape in _shapes(layout)
            if len(shape) > 1 and not layout[name].full_precision
        }
        return (*found, *check_imatrix(imatrix, wanted, str(path)))

    def metadata(self) -> dict[str, tuple[str, object]]:
        """The GGUF key-values: which mix it is, and which importance matrix it was made with."""
        mix = find_mix(self.quantization.mix)
        values: dict[str, tuple[str, object]] = {"general.file_type": ("u32", mix.file_type)}
        if self.weights is None:
            return values
        imatrix, path = self.weights
        values["quantize.imatrix.file"] = ("str", path.name[:_MOST_TEXT])
        if imatrix.datasets:
            values["quantize.imatrix.dataset"] = ("str", imatrix.datasets[0][:_MOST_TEXT])
        values["quantize.imatrix.entries_count"] = ("u32", len(imatrix.entries))
        if imatrix.chunk_count:
            values["quantize.imatrix.chunks_count"] = ("u32", imatrix.chunk_count)
        return values

    def options(self) -> dict[str, object]:
        """What was asked for, as the manifest keeps it; another matrix is another work."""
        asked = self.quantization
        found: dict[str, object] = {"dtype": asked.mix}
        if asked.overrides:
            found["tensor_types"] = [
                f"{pattern}={dtype.label}" for pattern, dtype in asked.overrides
            ]
        if asked.pure:
            found["pure"] = True
        for name, dtype in (("output_type", asked.output), ("embedding_type", asked.embedding)):
            if dtype is not None:
                found[name] = dtype.label
        if self.weights is not None:
            imatrix, path = self.weights
            content = hashlib.sha256()
            for name in imatrix.entries:
                content.update(name.encode())
                content.update(imatrix.importance(name) or b"")
            found["imatrix"] = {"file": path.name, "weights_sha256": content.hexdigest()}
        return found

    def importance(self, plan: Plan) -> dict[str, Sequence[torch.Tensor]]:
        """What each column counts, for each part of each tensor that has an entry."""
        if self.weights is None:
            return {}
        import torch

        imatrix, _ = self.weights
        found: dict[str, Sequence[torch.Tensor]] = {}
        for step in plan.steps:
            shape, values = step.target.shape, imatrix.importance(step.target.name)
            if values is not None and len(values) == math.prod(shape[:-2]) * shape[-1]:
                matrices = torch.frombuffer(values, dtype=torch.float32).view(-1, shape[-1])
                if len(matrices) == len(step.parts):  # where blocks are copied, parts are joined
                    found[step.target.name] = tuple(matrices)
        return found


def _shapes(layout: Mapping[str, StoredTensor]) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, stored.shape) for name, stored in layout.items()]
