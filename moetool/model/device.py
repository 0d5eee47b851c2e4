"""Which device computes, and how much memory it took.

A device that was asked for and is not there is an error: a run that quietly took another one
would prove something that nobody asked.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from moetool.errors import DeviceUnavailable, UsageFault

if TYPE_CHECKING:
    import torch

# What a run may take of the memory that is free: activations, caches and other people need some.
CPU_SHARE, CUDA_SHARE = 0.7, 0.85
MEMBERSHIP = Path("/proc/self/cgroup")


def spelled(dtype: torch.dtype) -> str:
    """``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def pick_device(name: str) -> torch.device:
    """Turn ``auto cpu cuda cuda:1 mps`` into a device; auto takes a GPU where there is one.

    Raises:
        UsageFault: no such kind of device.
        DeviceUnavailable: asked for by name, and not there.
    """
    import torch

    kind, _, index = name.partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (index and not index.isdigit()):
        raise UsageFault(f"unknown device {name!r}", hint="auto, cpu, cuda, cuda:1 or mps")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    if kind == "cuda" and torch.cuda.device_count() <= int(index or 0):
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise DeviceUnavailable(
            f"{name} is not there: torch {torch.__version__} ({built}) "
            f"sees {torch.cuda.device_count()} CUDA devices",
            hint="--device cpu, or install a torch built for this GPU's driver",
        )
    if kind == "mps" and not _has_mps():
        raise DeviceUnavailable("mps is not there", hint="--device cpu")
    return torch.device(f"{kind}:{index}" if index else kind)


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


def available_nbytes(device: torch.device) -> int:
    """What weights may take on a device, leaving room for everything else."""
    import torch

    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free * CUDA_SHARE)
    return int(free_nbytes() * CPU_SHARE)


def free_nbytes() -> int:
    """What this process may still take of the machine's memory, or of its container's."""
    fields = _proc("/proc/meminfo")
    unknown = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 7 // 10
    return min([fields.get("MemAvailable", unknown), *_container_rooms()])


def _container_rooms() -> Iterator[int]:
    """What each group that this process is in may still take; its file pages can be given up.

    The limit of a group binds all below it. Linux: Documentation/admin-guide/cgroup-v2.rst and
    cgroup-v1/memory.rst.
    """
    try:
        lines = MEMBERSHIP.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        version = _GROUPS.get(controllers)
        if version is None:
            continue
        folder = Path(version.root + inside)
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError, KeyError):
                yield version.room(group)
            if str(group) == version.root:
                break


class _Groups(NamedTuple):
    """A version of cgroups: where its tree is, and the names of its files and figures."""

    root: str
    limit: str
    taken: str
    file_pages: tuple[str, str]

    def room(self, group: Path) -> int:
        limit = int((group / self.limit).read_text(encoding="ascii"))  # "max" is no number
        taken = int((group / self.taken).read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        figures = dict(line.split() for line in lines)
        return max(0, limit - taken + sum(int(figures[name]) for name in self.file_pages))


_GROUPS = {
    "": _Groups(
        "/sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file")
    ),
    "memory": _Groups(
        "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """The most memory that was seen, in bytes; None where the system does not say.

    File-backed pages are the page cache's and go when others need them: only the anonymous ones
    are what a run costs.
    """

    anonymous: int | None = None
    file_backed: int | None = None
    resident: int | None = None
    device: int | None = None


class MemoryWatch:
    """Remembers the largest figures of all samples: the kernel keeps a peak of their sum only."""

    def __init__(self) -> None:
        self._anonymous = self._file_backed = 0

    def sample(self) -> None:
        """Look now."""
        fields = _proc("/proc/self/status")
        self._anonymous = max(self._anonymous, fields.get("RssAnon", 0))
        self._file_backed = max(self._file_backed, fields.get("RssFile", 0))

    def peak(self, device: torch.device) -> Memory:
        """What was seen so far."""
        import torch

        self.sample()
        # Linux counts ru_maxrss in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return Memory(
            anonymous=self._anonymous or None,
            file_backed=self._file_backed or None,
            resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
            device=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        )


def _proc(path: str) -> dict[str, int]:
    """The ``Name: 123 kB`` lines of a file of /proc, in bytes; empty where there is none."""
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}
