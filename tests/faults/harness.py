"""A conversion, what disturbs it, and a judge that is strict.

A trial is one conversion into an empty folder that something disturbs, followed by the same command
again. `Tally.judge` then asks of every trial: the exit code promised, no traceback, nothing under
the final name or the whole output there, the second run ends well and bit-identical to a run that
nobody disturbed, nothing else left in the folder, and finished shards not written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

LONG = os.environ.get("MOETOOL_FAULTS") == "long"
PATIENCE = 60  # seconds after which a run counts as hung
HOOK = Path(__file__).parent / "hook"
# Marks and syncs come each 256 and 64 MiB; the files here have 0.6 and 8 MB.
SMALL = {
    "moetool.convert.execute.shard:MARK_NBYTES": 1_000_000,
    "moetool.convert.execute.hashed_file:SYNC_NBYTES": 500_000,
}
PLAIN = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
DISTURBED = {
    **PLAIN,
    "PYTHONPATH": os.pathsep.join(filter(None, [str(HOOK), os.environ.get("PYTHONPATH")])),
    "FAULTS_SMALL": json.dumps(SMALL),
}
SHAPES = {
    "hf": ("--to", "safetensors", "--max-shard-size", "700kB"),  # 12 shards
    "gguf": ("--to", "gguf"),  # one file, with marks
    "pth": ("--to", "pth"),
}
WEIGHTS = {".safetensors", ".gguf", ".pth"}
JOURNAL = "journal.jsonl"
INTERNAL = ("Traceback", "internal error", "hung for", "sitecustomize")


@dataclass(frozen=True)
class Done:
    """How a run ended: its exit code (negative: a signal), its words, its seconds."""

    code: int
    words: str = ""
    seconds: float = 0.0


CUT = Done(-9)  # the power failed: there is nobody to say anything


@dataclass(frozen=True)
class Place:
    """A folder that holds one output and nothing else; ``enter`` goes before every command."""

    folder: Path
    raw: Path
    options: tuple[str, ...]
    enter: tuple[str, ...] = ()
    seen: Path | None = None  # where the folder is seen from outside its mount namespace
    environment: Mapping[str, str] = field(default_factory=lambda: DISTURBED)

    @property
    def view(self) -> Path:
        """The folder as this process sees it."""
        return self.seen or self.folder

    @property
    def out(self) -> Path:
        return self.view / "out"

    @property
    def partial(self) -> Path:
        return self.view / "out.partial"

    @property
    def words(self) -> list[str]:
        """The command, without the program."""
        return ["convert", str(self.raw), "--out", str(self.folder / "out"), "--quiet",
                *self.options]  # fmt: skip

    def having(self, **environment: str) -> Place:
        """The same place with more in the environment."""
        return replace(self, environment={**self.environment, **environment})

    def start(
        self, *prefix: str, more: Sequence[str] = (), descriptors: Sequence[int] = ()
    ) -> subprocess.Popen[str]:
        """Begin the conversion; the words of a run are on its stderr."""
        command = [*self.enter, *prefix, sys.executable, "-m", "moetool", *self.words, *more]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, env=self.environment, pass_fds=descriptors,
        )  # fmt: skip

    def run(self, *prefix: str, more: Sequence[str] = ()) -> Done:
        """Convert, and wait for the end."""
        began = time.monotonic()
        return finish(self.start(*prefix, more=more), began)

    def shards(self) -> dict[str, tuple[int, int]]:
        """Finished weight files, in work or published: name -> inode and mtime."""
        folder = self.out if self.out.is_dir() else self.partial
        found: dict[str, tuple[int, int]] = {}
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.suffix in WEIGHTS:
                stat = path.stat()
                found[path.name] = stat.st_ino, stat.st_mtime_ns
        return found

    def marked(self) -> dict[str, int]:
        """Files in work of which the journal says how far they are: name -> inode."""
        marks = {line["mark"]["file_name"] for line in self._journal() if "mark" in line}
        paths = {name: self.partial / f"{name}.tmp" for name in marks}
        return {name: path.stat().st_ino for name, path in paths.items() if path.exists()}

    def entered(self) -> set[str]:
        """Files that are finished and that the journal says so of: none of these may be lost."""
        names = {line["shard"]["file_name"] for line in self._journal() if "shard" in line}
        return names & set(self.shards())

    def _journal(self) -> list[Mapping[str, Mapping[str, str]]]:
        path, lines = self.partial / JOURNAL, []
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            try:
                lines.append(json.loads(line.partition(b"\t")[0]))
            except ValueError:
                continue  # torn, and so said to be as if never written
        return [line for line in lines if isinstance(line, dict)]

    def clear(self) -> None:
        """Make the folder empty for the next trial."""
        for path in self.view.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def finish(process: subprocess.Popen[str], began: float) -> Done:
    """Wait for a run, with an end to the patience: a run that hangs is killed and says so."""
    try:
        _, words = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        _, words = process.communicate(timeout=PATIENCE)
        words += f"\nhung for {PATIENCE} s"
    return Done(process.returncode, words, time.monotonic() - began)


def digests(folder: Path) -> dict[str, str]:
    """Every file below a folder with its SHA-256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def sample(found: Sequence[object], few: int) -> list:
    """A few that lie evenly, the first and the last among them."""
    if len(found) <= few:
        return list(found)
    if few == 1:
        return [found[len(found) // 2]]
    return [found[index * (len(found) - 1) // (few - 1)] for index in range(few)]
