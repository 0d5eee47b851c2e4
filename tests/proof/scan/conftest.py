"""Random weights with a fault put into them, scanned in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from moetool.arch.args import ModelArgs
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.schema import expand
from moetool.arch.spelling import to_params_json
from moetool.convert.plan import derive_steps
from moetool.convert.stream import stream, to_bytes, to_torch, torch_dtype
from moetool.convert.synthetic import RandomCheckpoint
from moetool.proof.scan import scan
from moetool.tensors import Catalog, DType, TensorInfo

# No two dimensions alike; rows of w1 have four blocks, rows of w2 are one.
ARGS = ModelArgs(
    dim=512, n_layers=4, head_dim=16, hidden_dim=40, n_heads=6, n_kv_heads=2, norm_eps=1e-5,
    vocab_size=56, n_experts=3, n_experts_per_tok=2,
)  # fmt: skip


@dataclass
class Held:
    """What scan needs of a checkpoint in files."""

    catalog: Catalog
    data: dict[str, bytes]
    directory: Path
    path: Path = Path("memory")
    reads: list[tuple[str, int, int]] = field(default_factory=list)

    def read(self, name, start=0, stop=None):
        stop = len(self.data[name]) if stop is None else stop
        self.reads.append((name, start, stop))
        return self.data[name][start:stop]


def edited(held, edits, dtypes=()):
    """Change values of tensors in place; ``dtypes`` are types to store tensors in."""
    dtypes = dict(dtypes)
    data, infos = dict(held.data), dict(held.catalog.tensors)
    for name in {*edits, *dtypes}:
        info = infos[name]
        values = to_torch(bytearray(data[name]), info.dtype, info.shape)
        dtype = dtypes.get(name, info.dtype)
        values = values.to(torch_dtype(dtype))
        edits.get(name, lambda _values: None)(values)
        data[name] = bytes(to_bytes(values))
        infos[name] = TensorInfo(name, dtype, info.shape)
    return replace(held, catalog=replace(held.catalog, tensors=infos), data=data, reads=[])


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Random raw weights beside their params.json."""
    directory = tmp_path_factory.mktemp("raw")
    (directory / "params.json").write_text(json.dumps(to_params_json(ARGS)))
    source = RandomCheckpoint(ARGS, 0)
    data = {name: bytes(source.read(name)) for name in source.catalog.tensors}
    return Held(Catalog("pth", source.catalog.tensors, {}), data, directory)


@pytest.fixture
def look(raw):
    """Scan the raw weights after edits: {name: change in place}."""

    def run(edits=None, dtypes=(), held=None):
        return scan(edited(held or raw, edits or {}, dtypes))

    return run


@pytest.fixture
def laid_out(raw):
    """The same weights in another layout."""

    def make(convention):
        layout = expand(MIXTRAL.convention(convention), ARGS)
        steps = derive_steps(raw.catalog, expand(MIXTRAL.raw, ARGS), layout, ARGS)
        infos = {step.target.name: step.target for step in steps}
        data = {step.target.name: b"".join(stream(raw, step)) for step in steps}
        return replace(raw, catalog=Catalog("safetensors", infos, {}), data=data, reads=[])

    return make


@pytest.fixture
def unknown(tmp_path):
    """A checkpoint whose names belong to no model: {name: tensor}."""

    def make(tensors):
        import torch

        dtypes = {torch.float32: DType.F32, torch.bfloat16: DType.BF16, torch.int8: DType.I8}
        infos = {n: TensorInfo(n, dtypes[t.dtype], tuple(t.shape)) for n, t in tensors.items()}
        data = {name: bytes(to_bytes(tensor)) for name, tensor in tensors.items()}
        return Held(Catalog("pth", infos, {}), data, tmp_path)

    return make
