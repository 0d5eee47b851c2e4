"""What a run will take, before it starts: memory by kind, bytes to read, seconds.

    memory   weights that are held, keys and values, rows on their way, torch itself
    reading  one pass over the weights for all prompts together, and for each new token what it is
             routed to and all that is no expert, less what is still held

Seconds are those of the disk, as a look of 0.15 s shows it. Where weights come from a disk again
and again, what is computed hides behind them; where they do not, it is the whole cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.convert.dry_run.probe import read_speeds
from moetool.errors import NotEnoughMemory
from moetool.model.device import free_nbytes
from moetool.model.kernels import TILE_NBYTES
from moetool.model.mixtral import CHUNK

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs
    from moetool.model.load import WeightStore

TORCH_NBYTES = 240 << 20  # what `import torch` takes
MUCH_NBYTES = 2 << 30  # what takes less is done before anybody wonders


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be run: positions of all sequences, rows of the largest pass, rows of logits."""

    n_positions: int
    n_rows: int
    n_scored: int = 1


@dataclass(frozen=True, slots=True)
class Outlook:
    """Bytes and seconds; seconds are None where nothing needs to be read, or no file is there.

    ``pass_nbytes``: what one pass reads; ``token_nbytes``: what a new token reads at most.
    """

    weights_nbytes: int
    held_nbytes: int
    cache_nbytes: int
    rows_nbytes: int
    pass_nbytes: int
    token_nbytes: int
    disk_nbytes_s: float | None

    @property
    def resident(self) -> bool:
        """All weights are held."""
        return self.held_nbytes >= self.weights_nbytes

    @property
    def peak_nbytes(self) -> int:
        """Anonymous memory at its highest."""
        return self.held_nbytes + self.beside_nbytes

    @property
    def beside_nbytes(self) -> int:
        """Anonymous memory beside the weights."""
        return self.cache_nbytes + self.rows_nbytes + TORCH_NBYTES

    @property
    def pass_seconds(self) -> float | None:
        """The time to read the weights once."""
        return self.pass_nbytes / self.disk_nbytes_s if self.disk_nbytes_s else None

    @property
    def token_seconds(self) -> float | None:
        """The time to read what a token needs, at most."""
        return self.token_nbytes / self.disk_nbytes_s if self.disk_nbytes_s else None


def foresee(weights: WeightStore, args: ModelArgs, work: Work) -> Outlook:
    """Say what a run will take.

    Raises:
        NotEnoughMemory: what is held on a CPU does not leave the room that the run needs beside it.
    """
    held = min(weights.nbytes, weights.budget)
    token = weights.nbytes_stored * args.n_params_active // args.n_params
    slow = weights.nbytes_stored >= MUCH_NBYTES or not weights.resident
    outlook = Outlook(
        weights_nbytes=weights.nbytes,
        held_nbytes=held,
        cache_nbytes=cache_nbytes(args, work.n_positions, weights.dtype.itemsize),
        # A weight that made room for the next one may still be computed with.
        rows_nbytes=rows_nbytes(args, work, weights.dtype.itemsize)
        + (0 if weights.resident else weights.largest_nbytes),
        pass_nbytes=weights.nbytes_stored,
        token_nbytes=0 if weights.resident else token,
        disk_nbytes_s=read_speeds(weights.extents)[0] if slow and weights.extents else None,
    )
    free = free_nbytes()
    if weights.device.type == "cpu" and outlook.peak_nbytes - TORCH_NBYTES > free:
        room = max(0, free - outlook.beside_nbytes)
        raise NotEnoughMemory(
            f"{outlook.peak_nbytes} bytes are needed ({outlook.beside_nbytes} of them beside the "
            f"weights), {free} are free",
            hint=f"--memory {room >> 20}MB holds fewer weights; a shorter text needs less",
        )
    return outlook


def cache_nbytes(args: ModelArgs, n_positions: int, itemsize: int) -> int:
    """Keys and values of so many positions, and their angles."""
    return args.kv_cache_nbytes(n_positions, itemsize) + n_positions * args.head_dim * 4


def rows_nbytes(args: ModelArgs, work: Work, itemsize: int) -> int:
    """What rows take on their way through a layer.

    All rows have their stream, its normed copy, the sum over experts in float32 and a copy of each
    while it is put together; at most `CHUNK` rows are between two matrices at a time.
    """
    stream = work.n_rows * args.dim * (3 * itemsize + 8)
    chunk = min(work.n_rows, CHUNK)
    widest = max(args.hidden_dim, args.n_heads * args.head_dim)
    between = chunk * (3 * widest * (itemsize + 4) + 6 * args.dim * 4)
    logits = 2 * work.n_scored * args.vocab_size * 4
    return stream + between + logits + 2 * TILE_NBYTES
