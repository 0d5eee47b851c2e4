"""What a conversion can be asked for: file format x convention -> file names and side files.

--to safetensors   hf | hf-fused | mistral     model*.safetensors, consolidated*.safetensors
--to pth           mistral | mistral-packed    consolidated.00.pth, consolidated.00.pt … 07.pt
--to gguf          gguf | gguf-split           NAME.gguf
--dtype            keep | bf16 | f16 | f32

A format without a layout, and a layout without a format, mean the first line that has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.errors import UsageFault
from moetool.tensors import DType

if TYPE_CHECKING:
    from moetool.arch.schema import Architecture, Convention


@dataclass(frozen=True, slots=True)
class Target:
    """A format and convention to write, and how its files are called.

    ``numbered`` may hold ``{index}`` (from 1), ``{index0}`` (from 0) and ``{count}``;
    ``side_files`` says whose loader must find what it needs beside the weights. Where no largest
    file is asked for, ``max_shard_nbytes`` is it, or ``n_files`` is how many there are.
    """

    file_format: str
    convention: str
    single: str
    numbered: str
    side_files: str
    max_shard_nbytes: int | None
    n_files: int = 1

    @property
    def most_files(self) -> int:
        """How many files its names can tell apart, as readers expect them."""
        # consolidated.NN has two digits; NNNNN-of-NNNNN has five, of which ours reads four.
        return 100 if "{index0:02d}" in self.numbered else 9999


_SHARD = 5 * 10**9  # huggingface_hub's default: 19 files for 8x7B
_HF_FILES = ("model.safetensors", "model-{index:05d}-of-{count:05d}.safetensors", "hf", _SHARD)
# huggingface/transformers 4.36: convert_mixtral_weights_to_hf.py opens consolidated.00.pt … 07.pt.
_PACKED_FILES = 8
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
        _PACKED_FILES,
    ),
    Target("gguf", "gguf", *_GGUF_FILES),
    Target("gguf", "gguf-split", *_GGUF_FILES),
)


DTYPES = {"keep": None, "bf16": DType.BF16, "f16": DType.F16, "f32": DType.F32}


def find_dtype(name: str) -> DType | None:
    """The type that ``--dtype`` names; None keeps what the source has.

    Raises:
        UsageFault: no such type can be asked for.
    """
    if name not in DTYPES:
        raise UsageFault(f"no --dtype {name!r}", hint=f"one of {', '.join(DTYPES)}")
    return DTYPES[name]


def find_convention(architecture: Architecture, target: Target) -> Convention:
    """The architecture's table for a target.

    Raises:
        UsageFault: the architecture has none of that name, as a dense model has no experts to pack.
    """
    for convention in architecture.conventions:
        if convention.name == target.convention:
            return convention
    names = ", ".join(convention.name for convention in architecture.conventions)
    raise UsageFault(
        f"{architecture.title} has no layout {target.convention}", hint=f"its layouts: {names}"
    )


def find_target(file_format: str | None, layout: str | None) -> Target:
    """The target of that format and layout; what is not said is the usual one.

    Raises:
        UsageFault: there is no such pair; the message lists those that are.
    """
    for target in TARGETS:
        if file_format in {None, target.file_format} and layout in {None, target.convention}:
            return target
    pairs = ", ".join(f"{target.file_format}/{target.convention}" for target in TARGETS)
    asked = " with layout ".join(filter(None, (file_format, layout)))
    raise UsageFault(f"cannot write {asked}", hint=f"what can be written: {pairs}")
