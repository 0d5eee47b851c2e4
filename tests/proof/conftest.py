"""Raw releases of a small random model, with any tensor changed."""

from __future__ import annotations

import json

import pytest
import torch

from moetool.arch.spelling import to_params_json
from moetool.convert.stream import to_torch


@pytest.fixture
def small_tensors(random_checkpoint):
    """The bf16 tensors of a small model under their raw names, open to any change."""
    source = random_checkpoint()
    return {
        name: to_torch(bytes(source.read(name)), info.dtype, info.shape).clone()
        for name, info in source.catalog.tensors.items()
    }


@pytest.fixture
def write_release(tmp_path, small_args):
    """Write tensors as a raw release, by torch itself."""

    def write(name, tensors, args=small_args):
        folder = tmp_path / name
        folder.mkdir()
        torch.save(tensors, folder / "consolidated.00.pth")
        (folder / "params.json").write_text(json.dumps(to_params_json(args)))
        return folder

    return write
