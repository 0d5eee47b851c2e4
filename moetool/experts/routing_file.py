"""routing.npz: a trace as numpy reads it.

    experts   int8 [T, L, k], int16 where there are more than 127 experts; best first
    weights   float16 [T, L, k], which sum to 1 over k
    margins   float16 [T, L]: how far the last chosen logit is above the first that was not
    tokens    int32 [T]
    window    int32 [1]: tokens that were read together

``experts`` has the logical shape of the routed experts that vLLM and SGLang return: tokens, layers,
k (vllm-project/vllm: ``--enable-return-routed-experts``). The zip has neither times nor
compression: the same routing is the same file.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

import torch

from moetool.model.smoke.npy import to_npy

if TYPE_CHECKING:
    from moetool.experts.trace import Trace

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can name
_MOST_INT8 = 127


def to_npz(trace: Trace) -> bytes:
    """The bytes of the file."""
    routed = trace.routed
    kind = torch.int8 if trace.n_experts <= _MOST_INT8 else torch.int16
    arrays = {
        "experts": routed.experts_TLA.to(kind),
        "weights": routed.weights_TLA.half(),
        "margins": routed.margins_TL.half(),
        "tokens": torch.tensor(trace.tokens, dtype=torch.int32),
        "window": torch.tensor([trace.window], dtype=torch.int32),
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, values in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), to_npy(values))
    return packed.getvalue()
