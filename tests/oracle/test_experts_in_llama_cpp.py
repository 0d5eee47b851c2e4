"""llama.cpp loads what was pruned, in bf16 and in blocks, and computes what our runner does."""

import numpy as np
import pytest
import torch

from moetool.arch.recognize import recognize
from moetool.convert.job import open_source, prepare
from moetool.convert.quantised.mixes import Quantization
from moetool.convert.quantised.recipe import Recipe
from moetool.convert.targets import find_target
from moetool.experts.rewrite import prepare_selection
from moetool.formats import open_checkpoint
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer
from moetool.model.tokenizer import open_tokenizer

pytestmark = pytest.mark.oracle
llama_cpp = pytest.importorskip("llama_cpp", reason="the llama extra is not installed")

KEPT = ((1, 3, 4, 5, 6, 7), (1, 2, 4, 5, 6, 7), (0, 1, 2, 4, 5, 6), (1, 2, 3, 4, 5, 7))
N_TOKENS = 300


def pruned(source, out):
    """Six experts of eight, as a GGUF of the source's own types."""
    with open_checkpoint(source) as checkpoint:
        prepare_selection(open_source(checkpoint), KEPT, find_target("gguf", None), out).run()
    return next(out.glob("*.gguf"))


def both(path, text):
    """Logits of llama.cpp and of our runner in float32."""
    with open_checkpoint(path) as checkpoint:
        tokenizer = open_tokenizer(checkpoint.catalog, checkpoint.directory)
        tokens = tokenizer.encode(text)[:N_TOKENS]
        recognized = recognize(checkpoint.catalog, checkpoint.directory)
        weights = open_weights(checkpoint, recognized, torch.device("cpu"), torch.float32)
        model = Transformer(recognized.args, weights)
        ours = model.forward(torch.tensor(tokens), model.new_cache(len(tokens))).numpy()
        weights.close()
    llama = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=1)
    assert llama.metadata["llama.expert_count"] == "6"
    llama.eval(tokens)
    return np.array(llama.scores[: len(tokens)]), ours


@pytest.fixture
def text(tiny_release):
    """Held-out text of all domains."""
    return (tiny_release.parent / "smoke_text.txt").read_text()


def test_pruned(tmp_path, tiny_release, text):
    """bf16 weights and an f16 cache move logits by little; a wrong router row by whole units."""
    theirs, ours = both(pruned(tiny_release, tmp_path / "six"), text)
    assert np.abs(theirs - ours).max() < 0.25 * ours.std()
    assert (theirs.argmax(-1) == ours.argmax(-1)).mean() >= 0.95


def test_pruned_of_a_quantised_one(tmp_path, tiny_release, text):
    """Blocks of q4_k are copied as they are stored.

    llama.cpp rounds activations to 8 bits beside such blocks, so near ties of a router flip, and a
    few positions are far off: judged is where most are.
    """
    with open_checkpoint(tiny_release) as checkpoint:
        recipe = Recipe(Quantization("q4_k_m"))
        target = find_target("gguf", None)
        prepare(open_source(checkpoint), target, tmp_path / "q4", recipe=recipe).run()
    theirs, ours = both(pruned(tmp_path / "q4", tmp_path / "six"), text)
    worst = np.abs(theirs - ours).max(-1)
    assert np.quantile(worst, 0.9) < 0.25 * ours.std()
    assert (theirs.argmax(-1) == ours.argmax(-1)).mean() >= 0.95
