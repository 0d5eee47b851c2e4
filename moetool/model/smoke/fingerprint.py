"""What decides the last bit of a result beside weights and tokens: the machine and its programs.

Another CPU, number of threads, kernel or version of torch takes sums in another order. So results
can be asked to be equal to the last bit only where all of this is the same.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moetool import __version__
from moetool.model.kernels import SMALL, are_tried, chosen_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moetool.arch.args import ModelArgs

# The flags of a CPU by which torch, oneDNN and MKL choose kernels: x86, then ARM.
KERNEL_FLAGS = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "sme", "bf16", "i8mm")
SETTINGS = (
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The machine as text; ``settings`` are environment variables that choose kernels.

    ``products`` is how 16-bit products are computed, of large matrices as trying has shown;
    ``split`` is how sums are divided between ranks, and empty where each is one rank's.
    """

    moetool: str
    torch: str
    device: str
    threads: str
    cpu: str
    capability: str
    flags: str
    settings: str
    products: str
    split: str

    def differences(self, other: Fingerprint) -> list[str]:
        """What is another here: ``threads 2 for 1``."""
        return [
            f"{field.name} {getattr(self, field.name) or 'none'} for "
            f"{getattr(other, field.name) or 'none'}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


def take(args: ModelArgs, dtype: torch.dtype, device: torch.device, split: str = "") -> Fingerprint:
    """The fingerprint of this machine, computing such a model in a type on a device."""
    largest = args.dim * max(args.hidden_dim, args.n_heads * args.head_dim)
    cpu, flags = _cpu()
    known = (f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ)
    return Fingerprint(
        moetool=__version__,
        torch=torch.__version__,
        device=_device(device),
        threads=str(torch.get_num_threads()),
        cpu=cpu,
        capability=torch.backends.cpu.get_cpu_capability(),
        flags=" ".join(sorted(flag for flag in flags if flag.startswith(KERNEL_FLAGS))),
        settings=" ".join(known),
        products=_products(device, dtype, largest),
        split=split,
    )


def _products(device: torch.device, dtype: torch.dtype, largest: int) -> str:
    """How 16-bit products are computed on a CPU; ``largest`` is the size of the largest matrix."""
    if device.type != "cpu" or dtype == torch.float32:
        return ""
    large = f"{chosen_for(dtype)}; " if are_tried(device, dtype, largest) else ""
    return f"{large}small ones: {SMALL}"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return device.type


def _cpu() -> tuple[str, list[str]]:
    """Name and flags of the first CPU; Linux tells both, others the name at most."""
    found = dict(reversed(list(_cpuinfo())))
    name = found.get("model name") or platform.processor() or platform.machine()
    return name, (found.get("flags") or found.get("Features") or "").split()


def _cpuinfo() -> Iterator[tuple[str, str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()
