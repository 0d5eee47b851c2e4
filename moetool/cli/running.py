"""What the commands share that run a model: device, type, memory, and the words for both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Console, duration, safe, size
from moetool.cli.options import parse_size
from moetool.errors import ReadFailed, Refused, UsageFault

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from moetool.arch.recognize import Recognized
    from moetool.formats import FileCheckpoint
    from moetool.model.device import Memory
    from moetool.model.load import WeightStore
    from moetool.model.mixtral import Transformer
    from moetool.model.parallel.group import Ranks
    from moetool.model.tokenizer import Tokenizer

MOST_TEXT_NBYTES = 64 << 20

DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; what is named must be there")
]
ComputeOption = Annotated[
    str, typer.Option("--dtype", help="Compute in: keep (as stored), float32 or bf16")
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="What weights may take on the device, as 6GB; left out: most of what is free",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Running:
    """An opened model, ready to compute."""

    checkpoint: FileCheckpoint
    recognized: Recognized
    weights: WeightStore
    model: Transformer
    tokenizer: Tokenizer | None

    def speaking(self) -> Tokenizer:
        """The tokenizer, for commands that are about text.

        Raises:
            Refused: there is none, or its vocabulary is larger than the model's.
        """
        vocab_size = self.recognized.args.vocab_size
        if self.tokenizer is None or self.tokenizer.n_words > vocab_size:
            raise Refused(
                "text needs a tokenizer, and there is none that fits",
                where=str(self.checkpoint.directory),
                hint="put the release's tokenizer.model beside the weights",
            )
        return self.tokenizer


def be_patient() -> None:
    """Call before torch is loaded: threads that spin make a busy machine twenty times slower.

    Those of torch (GNU OpenMP's) spin for seconds by default. A spin of some microseconds, which
    covers the gap between two small products, was measured to be as quick on a machine at rest;
    none at all takes a third of the tokens a second there.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Weights in huge pages where the system has some: otherwise reading 100 MB begins with 25,000
    # page faults (pytorch/pytorch: c10/core/impl/alloc_cpu.cpp).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@contextmanager
def running(
    path: Path,
    device: str,
    dtype: str,
    memory: str | None,
    ranks: Ranks | None = None,
    *,
    fast: bool = False,
) -> Iterator[Running]:
    """Open a checkpoint for computing.

    What is malformed is refused before torch is loaded. With ``ranks``, it is this one's share;
    ``fast`` takes on a GPU an engine that is made for it and does not give the reference's bits.
    """
    from moetool.arch.recognize import recognize
    from moetool.formats import open_checkpoint

    be_patient()
    budget = parse_size(memory, "--memory")
    with open_checkpoint(path) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)

        from moetool.model.device import pick_device
        from moetool.model.fast.engine import engine_for
        from moetool.model.parallel.open import open_model
        from moetool.model.tokenizer import open_tokenizer

        on = ranks.device if ranks else pick_device(device)
        model, weights = open_model(checkpoint, recognized, on, compute_dtype(dtype), budget, ranks)
        with closing(weights):
            tokenizer = open_tokenizer(checkpoint.catalog, checkpoint.directory)
            on_gpu = fast and on.type == "cuda" and not ranks
            engine = engine_for(checkpoint, recognized, weights) if on_gpu else nullcontext(model)
            with engine as chosen:
                yield Running(checkpoint, recognized, weights, chosen, tokenizer)


def say_outlook(
    console: Console, model: Transformer, n_positions: int, n_rows: int, n_scored: int = 1
) -> None:
    """Say what a run will take where it is much: memory by kind, and what the disk has to give.

    Raises:
        NotEnoughMemory: it does not fit beside the weights.
    """
    from moetool.model.load import WeightStore
    from moetool.model.outlook import MUCH_NBYTES, Work, foresee
    from moetool.model.parallel.shared import Shared

    weights = model.weights
    # An engine for GPUs has weights of its own; a rank's share was planned when it was opened.
    if not isinstance(weights, WeightStore) or isinstance(model, Shared):
        return
    seen = foresee(weights, model.args, Work(n_positions, n_rows, n_scored))
    if seen.resident and seen.peak_nbytes < MUCH_NBYTES:
        return
    console.note(
        f"memory {size(seen.peak_nbytes)}: {size(seen.held_nbytes)} of "
        f"{size(seen.weights_nbytes)} of weights, {size(seen.cache_nbytes)} of keys and values, "
        f"{size(seen.beside_nbytes - seen.cache_nbytes)} for the rest"
    )
    speed = f" at {size(seen.disk_nbytes_s)}/s" if seen.disk_nbytes_s else ""
    passing = f", {duration(seen.pass_seconds)}{speed}" if seen.pass_seconds else ""
    note = f"a pass over all weights reads {size(seen.pass_nbytes)}{passing}"
    if not seen.resident:
        each = f", {duration(seen.token_seconds)}" if seen.token_seconds else ""
        note += f"; a new token up to {size(seen.token_nbytes)}{each}, less what is still held"
    console.note(note)


def compute_dtype(name: str) -> torch.dtype | None:
    """The type to compute in; None keeps the stored one.

    Raises:
        UsageFault: there is none of that name.
    """
    import torch

    known = {"keep": None, "float32": torch.float32, "bf16": torch.bfloat16}
    if name not in known:
        raise UsageFault(f"unknown dtype {name!r}", hint=", ".join(known))
    return known[name]


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        Refused: too large, or no UTF-8.
        ReadFailed: the machine could not read it.
    """
    try:
        if path.stat().st_size > MOST_TEXT_NBYTES:
            raise Refused(
                "larger than a text to read",
                where=str(path),
                hint="give a part of it",
            )
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise Refused("is no UTF-8 text", where=str(path)) from error
    except OSError as error:
        raise ReadFailed(error.strerror or "cannot be read", where=str(path)) from error


def spoken(text: str) -> str:
    """What a model wrote: its line breaks are its own, control codes are not."""
    return "".join(char if char in "\n\t" else safe(char) for char in text)


def sizes(memory: Memory) -> str:
    """Peak memory by kind."""
    known = {
        "anonymous": memory.anonymous,
        "file-backed": memory.file_backed,
        "together": memory.resident,
        "on the device": memory.device,
    }
    return ", ".join(f"{size(n)} {kind}" for kind, n in known.items() if n is not None)


def pace(n_tokens: int, seconds: float) -> str:
    """Tokens, seconds, and their ratio."""
    if not n_tokens:
        return "nothing"
    tokens = "token" if n_tokens == 1 else "tokens"
    return (
        f"{n_tokens} {tokens} in {duration(seconds)}, {n_tokens / max(seconds, 1e-9):.1f} tokens/s"
    )
