"""Checkpoints with one thing wrong, in any layout: rewritten as they are stored, by stored name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from moetool.arch.mixtral import MIXTRAL
from moetool.arch.schema import Role, RopeLayout, expand
from moetool.arch.spelling import to_config_json, to_gguf, to_params_json
from moetool.convert.stream import to_bytes, to_torch
from moetool.formats import create
from moetool.proof.diff import compare, open_subject
from moetool.tensors import DType, TensorInfo

DTYPES = {
    torch.bfloat16: DType.BF16,
    torch.float16: DType.F16,
    torch.float32: DType.F32,
    torch.float64: DType.F64,
}
FILES = {
    "mistral": "consolidated.00.pth",
    "hf": "model.safetensors",
    "hf-fused": "model.safetensors",
    "gguf": "model.gguf",
}


class Stored:
    """The tensors of a small random model as a convention stores them, open to any change."""

    def __init__(self, checkpoint, args, layout):
        self.args, self.layout = args, layout
        self.convention = MIXTRAL.convention(layout)
        self.tensors = {
            name: to_torch(checkpoint.data[name], info.dtype, info.shape).clone()
            for name, info in checkpoint.catalog.tensors.items()
        }

    def name(self, role, layer=None, expert=None):
        """The stored name of a role."""
        return self.convention.stored[role].name(layer, expert)

    def get(self, role, layer=None, expert=None):
        """One canonical matrix as a view into what is stored; rotary order and rest as stored."""
        table = expand(self.convention, self.args)
        name = self.name(role, layer, expert)
        columns = self.tensors[name].shape[-1] if self.tensors[name].dim() > 1 else 1
        for cell in table[name].cells:
            if (cell.slot.role, cell.slot.layer, cell.slot.expert) == (role, layer, expert):
                return self.tensors[name].view(-1, columns)[cell.start : cell.stop]
        raise KeyError(role, layer, expert)

    def put(self, value, role, layer=None, expert=None):
        """Overwrite one matrix."""
        view = self.get(role, layer, expert)
        view.copy_(value.reshape(view.shape))

    def write(self, folder):
        """Write the files that a reader of that layout finds."""
        folder.mkdir(parents=True)
        infos = [TensorInfo(n, DTYPES[t.dtype], tuple(t.shape)) for n, t in self.tensors.items()]
        keys = {"general.architecture": ("str", "llama")} | to_gguf(self.args)
        metadata = keys if self.layout == "gguf" else {}
        sink = create(folder / FILES[self.layout], infos, metadata)
        for name, tensor in self.tensors.items():
            sink.write(name, [to_bytes(tensor)])
        sink.close()
        if self.layout == "mistral":
            (folder / "params.json").write_text(json.dumps(to_params_json(self.args)))
        elif self.layout != "gguf":
            (folder / "config.json").write_text(json.dumps(to_config_json(self.args, "bfloat16")))
        return folder


@pytest.fixture
def stored(in_layout, small_args):
    """Make a small model in a layout, with norms that are told apart."""

    def make(layout, seed=0, **changed):
        args = replace(small_args, **changed)
        checkpoint, _ = in_layout(layout, args, seed)
        made = Stored(checkpoint, args, layout)
        for role in (Role.ATTENTION_NORM, Role.FFN_NORM):
            for layer in range(args.n_layers):
                made.tensors[made.name(role, layer)] += 0.5 * layer + 0.25 * (role is Role.FFN_NORM)
        return made

    return make


@pytest.fixture
def written(stored, tmp_path):
    """Write a small model in a layout after a change."""

    def make(layout, change=lambda _model: None, **kinds):
        model = stored(layout, **kinds)
        change(model)
        number = len(list(tmp_path.iterdir()))
        return model.write(tmp_path / f"{number}-{layout}")

    return make


@pytest.fixture
def diffed():
    """Compare two folders."""

    def run(a, b, **options):
        with open_subject(a) as left, open_subject(b) as right:
            return compare(left, right, **options)

    return run


@pytest.fixture
def halved():
    """The published permute of the rows of each head, from pairs to halves."""

    def permute(matrix, n_heads):
        rows, columns = matrix.shape
        pairs = matrix.view(n_heads, rows // n_heads // 2, 2, columns)
        return pairs.transpose(1, 2).reshape(rows, columns)

    return permute


@pytest.fixture
def stores_halves():
    """Whether a layout stores rotary halves."""
    return lambda layout: MIXTRAL.convention(layout).stored[Role.WQ].rope is RopeLayout.HALVES
