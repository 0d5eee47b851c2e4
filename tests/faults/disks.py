"""Disks of the tests' own, mounted where nobody else sees them and nothing is left of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from .harness import PATIENCE, Place

EXT4_NBYTES = 128 << 20


def tool(name: str) -> str | None:
    """Where a program is; those that mount and format are often not on a user's PATH."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class Namespace:
    """A mount namespace, held by a process that leaves when its pipe closes.

    So it is gone whatever becomes of us. A mount in the common namespace would be copied into
    those of other jobs, and keep loop devices busy.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self.enter = ("nsenter", f"--mount=/proc/{pid}/ns/mnt", "--")
        self._root, self._folder = f"/proc/{pid}/root", folder

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator[Namespace]:
        """Make one, or skip."""
        missing = [name for name in ("unshare", "nsenter", "mount") if not tool(name)]
        if missing:
            pytest.skip(f"UNTESTED: no {', '.join(missing)} here")
        holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            if not holder.stdout.readline():
                pytest.skip("UNTESTED: no mount namespace may be made here")
            yield cls(holder.pid, folder)
        finally:
            holder.stdin.close()
            holder.stdout.close()
            holder.wait(PATIENCE)

    def mount(self, *words: str, point: Path) -> None:
        """Mount something, or skip."""
        point.mkdir(exist_ok=True)
        done = self._call("mount", *words, str(point))
        if done.returncode:
            pytest.skip(f"UNTESTED: mount {' '.join(words)}: {done.stderr.strip()}")

    def unmount(self, point: Path) -> None:
        """Give it, and its loop device, back."""
        done = self._call("umount", str(point))
        assert not done.returncode, done.stderr

    def ext4(self) -> Path:
        """A file with an empty ext4 in it."""
        program, image = tool("mkfs.ext4"), self._folder / "disk.img"
        if not program:
            pytest.skip("UNTESTED: no mkfs.ext4 here")
        with image.open("wb") as file:
            file.truncate(EXT4_NBYTES)
        subprocess.run([program, "-q", "-F", str(image)], check=True, timeout=PATIENCE)
        return image

    def resize(self, point: Path, nbytes: int) -> bool:
        """Give a tmpfs another size; it says no where more than that is in it."""
        return not self._call("mount", "-o", f"remount,size={nbytes}", str(point)).returncode

    def place(self, pattern: Place, folder: Path) -> Place:
        """The same conversion into a folder of this namespace."""
        inside = Path(self._root + str(folder))
        inside.mkdir(exist_ok=True)
        return replace(pattern, folder=folder, enter=self.enter, seen=inside)

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.enter, *words], capture_output=True, text=True, check=False, timeout=PATIENCE
        )


def used(folder: Path) -> int:
    """Bytes taken on the disk that holds a folder."""
    figures = os.statvfs(folder)
    return (figures.f_blocks - figures.f_bfree) * figures.f_frsize
