"""Checkpoints made of numbers: random weights of any geometry, and the true geometry as a hole.

Random weights are a checkpoint like any other, in the raw convention, so the planner writes them
in every layout and format. The full geometry is the file a user of the release has, 93.4 GB of
it, as a few MB on disk: every header byte is real and every weight is a hole that reads as zero.
"""

from __future__ import annotations

import json
from pathlib import Path

from moetool.arch.args import ModelArgs, validate
from moetool.arch.mistral import DENSE
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import Recognized
from moetool.arch.schema import Architecture, expand
from moetool.arch.spelling import to_params_json
from moetool.convert.execute.folder import output_directory
from moetool.convert.job import Source
from moetool.convert.stream import to_bytes
from moetool.formats.pth_writer import PthSink
from moetool.tensors import Buffer, Catalog, DType, TensorInfo

# The published params.json of Mistral-7B and both Mixtrals, and two that are small but fit
# 256-wide blocks.
GEOMETRIES = {
    "tiny": ModelArgs(
        dim=256, n_layers=2, head_dim=64, hidden_dim=256, n_heads=4, n_kv_heads=2,
        norm_eps=1e-5, vocab_size=768, n_experts=8, n_experts_per_tok=2,
    ),
    "tiny-dense": ModelArgs(
        dim=256, n_layers=2, head_dim=64, hidden_dim=256, n_heads=4, n_kv_heads=2,
        norm_eps=1e-5, vocab_size=768, n_experts=0, n_experts_per_tok=0, rope_theta=1e4,
        sliding_window=4096,
    ),
    "7b": ModelArgs(
        dim=4096, n_layers=32, head_dim=128, hidden_dim=14336, n_heads=32, n_kv_heads=8,
        norm_eps=1e-5, vocab_size=32000, n_experts=0, n_experts_per_tok=0, rope_theta=1e4,
        sliding_window=4096,
    ),
    "8x7b": ModelArgs(
        dim=4096, n_layers=32, head_dim=128, hidden_dim=14336, n_heads=32, n_kv_heads=8,
        norm_eps=1e-5, vocab_size=32000, n_experts=8, n_experts_per_tok=2,
    ),
    "8x22b": ModelArgs(
        dim=6144, n_layers=56, head_dim=128, hidden_dim=16384, n_heads=48, n_kv_heads=8,
        norm_eps=1e-5, vocab_size=32000, n_experts=8, n_experts_per_tok=2, max_seq_len=65536,
    ),
}  # fmt: skip


def family(args: ModelArgs) -> Architecture:
    """The architecture of a geometry: with experts or without."""
    return MIXTRAL if args.n_experts else DENSE


class RandomCheckpoint:
    """Normal bf16 weights of variance 1 / fan-in, norms of one; the seed decides every byte."""

    def __init__(self, args: ModelArgs, seed: int) -> None:
        self.layout = expand(family(args).raw, validate(args))
        self.seed = seed
        self._held: tuple[str, Buffer] = ("", b"")
        infos = {n: TensorInfo(n, DType.BF16, s.shape) for n, s in self.layout.items()}
        self.catalog = Catalog("random", infos, {})

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Buffer:
        """Read bytes of a tensor; the last one made is kept, for it is read in chunks."""
        if self._held[0] != name:
            self._held = (name, self._make(name))
        return memoryview(self._held[1])[start:stop]

    def _make(self, name: str) -> Buffer:
        import torch
        import xxhash

        shape = self.catalog.tensors[name].shape
        if len(shape) == 1:
            values = torch.ones(shape)
        else:
            generator = torch.Generator()
            generator.manual_seed(xxhash.xxh64_intdigest(name.encode(), seed=self.seed) >> 1)
            values = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        return to_bytes(values.to(torch.bfloat16))


def random_source(args: ModelArgs, seed: int, tokenizer: bytes | None) -> Source:
    """A random checkpoint as the source of a conversion."""
    checkpoint = RandomCheckpoint(args, seed)
    architecture = family(args)
    recognized = Recognized(architecture, architecture.raw, args, checkpoint.layout)
    return Source(checkpoint, recognized, Path(f"random weights, seed {seed}"), tokenizer)


def write_full_geometry(args: ModelArgs, out: Path) -> int:
    """Write consolidated.00.pth and params.json of a geometry, all weights as holes.

    Returns the apparent size of the weights file in bytes.
    """
    infos = [TensorInfo(n, DType.BF16, s.shape) for n, s in expand(family(args).raw, args).items()]
    with output_directory(out) as work:
        weights = work / "consolidated.00.pth"
        sink = PthSink(weights, infos)
        for info in infos:
            sink.write_hole(info.name)
        sink.close()
        nbytes = weights.stat().st_size
        (work / "params.json").write_text(json.dumps(to_params_json(args)), encoding="utf-8")
    return nbytes
