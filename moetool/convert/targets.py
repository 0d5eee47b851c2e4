"""What a conversion can be asked for: file format x convention -> file names and side files.

--to safetensors   hf | hf-fused | mistral     model*.safetensors, consolidated*.safetensors
--to pth           mistral | mistral-packed    consolidated.00.pth, consolidated.NN.pt
--to gguf          gguf                        NAME.gguf
"""

from __future__ import annotations

from dataclasses import dataclass

from moetool.errors import UsageFault


@dataclass(frozen=True, slots=True)
class Target:
    """A format and convention to write, and how its files are called.

    ``numbered`` may hold ``{index}`` (from 1), ``{index0}`` (from 0) and ``{count}``;
    ``side_files`` says whose loader must find what it needs beside the weights.
    """

    file_format: str
    convention: str
    single: str
    numbered: str
    side_files: str
    max_shard_nbytes: int | None


_SHARD = 5 * 10**9  # huggingface_hub's default: 19 files for 8x7B
_HF_FILES = ("model.safetensors", "model-{index:05d}-of-{count:05d}.safetensors", "hf", _SHARD)
_GGUF_FILES = ("{name}.gguf", "{name}-{index:05d}-of-{count:05d}.gguf", "none", None)

TARGETS = (
    Target("safetensors", "hf", *_HF_FILES),
    Target("safetensors", "hf-fused", *_HF_FILES),
    Target(
        "safetensors",
        "mistral",
        "consolidated.safetensors",
        "consolidated-{index:05d}-of-{count:05d}.safetensors",
        "mistral",
        None,
    ),
    Target(
        "pth", "mistral", "consolidated.00.pth", "consolidated.{index0:02d}.pth", "mistral", None
    ),
    Target(
        "pth",
        "mistral-packed",
        "consolidated.00.pt",
        "consolidated.{index0:02d}.pt",
        "packed",
        None,
    ),
    Target("gguf", "gguf", *_GGUF_FILES),
    Target("gguf", "gguf-split", *_GGUF_FILES),
)


def find_target(file_format: str, layout: str | None) -> Target:
    """The target of that format and layout; without a layout the format's usual one.

    Raises:
        UsageFault: there is no such pair; the message lists those that are.
    """
    for target in TARGETS:
        if target.file_format == file_format and layout in {None, target.convention}:
            return target
    pairs = ", ".join(f"{target.file_format}/{target.convention}" for target in TARGETS)
    asked = file_format + (f" with layout {layout}" if layout else "")
    raise UsageFault(f"cannot write {asked}", hint=f"what can be written: {pairs}")
