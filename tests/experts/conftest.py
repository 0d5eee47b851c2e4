"""The trained tiny release, open and ready to compute."""

from __future__ import annotations

import pytest
import torch

from moetool.arch.recognize import recognize
from moetool.formats import open_checkpoint
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer
from moetool.model.tokenizer import open_tokenizer

TEXT = (
    "def add(a, b):\n    return a + b\n\nThe old man went down to the sea and looked at the waves. "
    "17 + 25 = 42; 3 * 9 = 27.\n"
)


@pytest.fixture(scope="session")
def opened(tiny_release):
    """The trained tiny release as a model in float32, with its checkpoint and tokenizer."""
    with open_checkpoint(tiny_release) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)
        weights = open_weights(checkpoint, recognized, torch.device("cpu"), torch.float32)
        tokenizer = open_tokenizer(checkpoint.catalog, checkpoint.directory)
        yield Transformer(recognized.args, weights), checkpoint, recognized, tokenizer
        weights.close()


@pytest.fixture(scope="session")
def model(opened):
    """The model alone."""
    return opened[0]


@pytest.fixture(scope="session")
def tokens(opened):
    """Some text, a few sorts of it, as tokens."""
    return opened[3].encode(TEXT)
