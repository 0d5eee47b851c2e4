"""What the commands share that run a model: device, type, memory, and the words for both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Console, duration, safe, size
from moetool.cli.options import parse_size
from moetool.errors import Refused, UsageFault

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from moetool.arch.recognize import Recognized
    from moetool.formats import FileCheckpoint
    from moetool.model.device import Memory
    from moetool.model.load import WeightStore
    from moetool.model.mixtral import Transformer
    from moetool.model.tokenizer import Tokenizer

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
    """Call before torch is loaded: threads that spin make a busy machine twenty times slower."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def running(
    path: Path, device: str, dtype: str, memory: str | None, console: Console
) -> Iterator[Running]:
    """Open a checkpoint for computing, and say how its weights are held.

    What is malformed is refused before torch is loaded.
    """
    from moetool.arch.recognize import recognize
    from moetool.formats import open_checkpoint

    be_patient()
    budget = parse_size(memory, "--memory")
    with open_checkpoint(path) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)

        from moetool.model.device import pick_device
        from moetool.model.load import open_weights
        from moetool.model.mixtral import Transformer
        from moetool.model.tokenizer import open_tokenizer

        weights = open_weights(
            checkpoint, recognized, pick_device(device), compute_dtype(dtype), budget
        )
        tokenizer = open_tokenizer(checkpoint.catalog, checkpoint.directory)
        say_how_held(console, weights, recognized)
        model = Transformer(recognized.args, weights)
        yield Running(checkpoint, recognized, weights, model, tokenizer)


def say_how_held(console: Console, weights: WeightStore, recognized: Recognized) -> None:
    """Say what a token costs where weights come from disk again and again."""
    if weights.resident:
        return
    active = recognized.args.n_params_active * weights.dtype.itemsize
    console.note(
        f"{size(weights.nbytes)} of weights do not fit into {size(weights.budget)}: a prompt reads "
        f"each once, a token up to {size(active)}"
    )


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
