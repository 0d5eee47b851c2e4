"""What tests of the model share: geometry with real head and expert counts, weights that matter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moetool.arch.args import ModelArgs
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import Recognized, recognize
from moetool.arch.schema import expand
from moetool.convert.stream import to_torch
from moetool.formats import open_checkpoint
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer

CPU = torch.device("cpu")
# head_dim is not dim / n_heads, the group of a kv head has three queries, nothing is square.
ODD = ModelArgs(
    dim=40, n_layers=3, head_dim=16, hidden_dim=56, n_heads=6, n_kv_heads=2, norm_eps=1e-5,
    vocab_size=72, n_experts=5, n_experts_per_tok=2, max_seq_len=256,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads gain nothing at these sizes, and on a busy machine they spin for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def odd_args():
    return ODD


@pytest.fixture
def recognized():
    """Say of a layout what it is, without a directory to look into."""

    def make(name="mistral", args=ODD):
        convention = MIXTRAL.convention(name)
        return Recognized(MIXTRAL, convention, args, expand(convention, args))

    return make


@pytest.fixture
def load_model(in_layout, recognized):
    """Make a random model in a layout; float32 compute unless told."""

    def make(name="mistral", args=ODD, dtype=torch.float32, budget=None, seed=0):
        checkpoint, _ = in_layout(name, args, seed)
        weights = open_weights(checkpoint, recognized(name, args), CPU, dtype, budget)
        return Transformer(args, weights)

    return make


@pytest.fixture
def some_tokens():
    """Seeded token ids."""

    def make(n, args=ODD, seed=1):
        random = torch.Generator().manual_seed(seed)
        return torch.randint(args.vocab_size, (n,), generator=random)

    return make


class Held:
    """Tensors in memory as a checkpoint."""

    def __init__(self, catalog, tensors):
        self.catalog, self.tensors = catalog, tensors

    def read(self, name, start=0, stop=None):
        flat = self.tensors[name].contiguous().view(-1).view(torch.uint8)
        return bytes(flat[start:stop].numpy())


@pytest.fixture(scope="session")
def damaged(sound):
    """A copy of the release in memory after ``damage(tensors, args)``, and what it is."""

    def make(damage=None, **args):
        checkpoint, recognized = sound
        tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
        changed = replace(recognized.args, **args)
        if damage:
            damage(tensors, changed)
        return Held(checkpoint.catalog, tensors), replace(recognized, args=changed)

    return make


@pytest.fixture(scope="session")
def sound(tiny_release):
    """The release in memory, and what it is."""
    with open_checkpoint(tiny_release) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)
        tensors = {
            name: to_torch(checkpoint.read(name), info.dtype, info.shape)
            for name, info in checkpoint.catalog.tensors.items()
        }
    return Held(checkpoint.catalog, tensors), recognized
