"""Another engine in a process of its own: token ids on stdin, logits into a .npy file.

python -m moetool.model.smoke.client transformers|llama_cpp PATH OUT.npy DTYPE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moetool.model.smoke.engines import UNUSABLE
from moetool.model.smoke.npy import write_floats

if TYPE_CHECKING:
    from torch import Tensor


def transformers(path: str, tokens: list[int], dtype: str) -> Tensor:
    """Logits ``[T, V]`` of a folder in the Hugging Face layout; no pickle and no code is loaded."""
    model = import_module("transformers").AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True,
        trust_remote_code=False,
    )  # fmt: skip
    with torch.inference_mode():
        logits_TV: Tensor = model.eval()(torch.tensor([tokens])).logits[0].float()
    return logits_TV


def llama_cpp(path: str, tokens: list[int], _dtype: str) -> Tensor:
    """Logits ``[T, V]`` of a GGUF; llama.cpp computes as its kernels for the stored type do."""
    model = import_module("llama_cpp").Llama(
        path, n_ctx=len(tokens), n_batch=len(tokens), logits_all=True, verbose=False
    )
    model.eval(tokens)
    return torch.frombuffer(
        bytearray(model.scores[: len(tokens)].tobytes()), dtype=torch.float32
    ).view(len(tokens), -1)


CLIENTS: dict[str, Callable[[str, list[int], str], Tensor]] = {
    "transformers": transformers,
    "llama_cpp": llama_cpp,
}


def main(module: str, path: str, out: str, dtype: str) -> int:
    """Run one engine once."""
    tokens: list[int] = json.load(sys.stdin)
    try:
        import_module(module)
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        return UNUSABLE
    write_floats(Path(out), CLIENTS[module](path, tokens, dtype))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
