"""L4: another engine that is installed here, run on the checkpoint in a process of its own.

An engine may be absent, may not read the format, may be killed for its memory: then the check is
not covered, with the reason. One that reads the format and fails on this checkpoint is a finding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from moetool.files.joined import parts_of
from moetool.model.device import available_nbytes, spelled
from moetool.model.smoke import logits
from moetool.model.smoke.checks import Check, judge
from moetool.model.smoke.npy import read_floats

if TYPE_CHECKING:
    from torch import Tensor

    from moetool.model.smoke.behaviour import Observation
    from moetool.model.smoke.subject import Subject
    from moetool.model.smoke.text import Text

CLIENT = ("-m", "moetool.model.smoke.client")
SECONDS = 1800
UNUSABLE = 69  # the exit code of a client that cannot even be imported: sysexits.h, EX_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Engine:
    """A program of the field: the module to import, and the layouts that it reads."""

    name: str
    module: str
    layouts: tuple[str, ...]
    convert: str

    def obstacle(self, subject: Subject, dtype: torch.dtype) -> str | None:
        """Why it cannot be asked about this checkpoint; None where it can."""
        if find_spec(self.module) is None:
            return f"{self.module} is not installed"
        catalog, layout = subject.checkpoint.catalog, subject.recognized.convention.name
        if layout not in self.layouts:
            return (
                f"it does not read layout {layout} in {catalog.format}: "
                f"moetool convert --to {self.convert}, then ask about that"
            )
        needed, free = catalog.nbytes, available_nbytes(torch.device("cpu"))
        if self.module == "transformers":  # it casts what it loads
            needed = subject.args.n_params * dtype.itemsize
        if needed > free:
            return f"it would hold {needed / 1e9:.0f} GB of weights, {free / 1e9:.0f} GB are free"
        return None


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("transformers", "transformers", ("hf", "hf-fused"), "safetensors"),
        Engine("llama.cpp", "llama_cpp", ("gguf",), "gguf"),
    )
}


def ask(engine: Engine, subject: Subject, seen: Observation, dtype: torch.dtype) -> Check:
    """Run an engine over the text, and compare its logits with ours."""
    theirs = answer(engine, subject, seen.text, dtype)
    if isinstance(theirs, Check):
        return theirs
    if tuple(theirs.shape) != tuple(seen.logits_TV.shape):
        detail = f"its logits have shape {tuple(theirs.shape)}, ours {tuple(seen.logits_TV.shape)}"
        return judge("L4", f"logits of {engine.name}", ok=False, detail=detail)
    return logits.compare(engine.name, seen.logits_TV, theirs)


def answer(engine: Engine, subject: Subject, text: Text, dtype: torch.dtype) -> Tensor | Check:
    """An engine's logits of a text; a check where it gives none."""
    name, reason = f"logits of {engine.name}", engine.obstacle(subject, dtype)
    if reason:
        return judge("L4", name, None, reason)
    # The first file of a GGUF, or the folder of a model for transformers.
    first = min(extent.path for extent in subject.checkpoint.catalog.extents.values())
    if parts_of(first):
        return judge("L4", name, None, "it reads no file that lies in parts")
    where = first if engine.module == "llama_cpp" else first.parent
    with TemporaryDirectory(prefix="moetool-") as folder:
        out = Path(folder) / "logits.npy"
        words = [engine.module, str(where), str(out), spelled(dtype)]
        try:
            done = subprocess.run(  # noqa: S603  # our own module, by the Python that runs us
                [sys.executable, *CLIENT, *words],
                input=json.dumps(text.tokens),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        except subprocess.TimeoutExpired:
            return judge("L4", name, None, f"it was not done after {SECONDS} s")
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].strip()[:200]
        if done.returncode < 0 or done.returncode == UNUSABLE:
            stopped = f"killed by signal {-done.returncode}" if done.returncode < 0 else last
            return judge("L4", name, None, f"it cannot be run here: {stopped}")
        if done.returncode:
            return judge("L4", name, ok=False, detail=f"it fails on this checkpoint: {last}")
        return read_floats(out)
