"""llama.cpp loads our GGUF and agrees with the golden logits and with sentencepiece's ids."""

import numpy as np
import pytest

pytestmark = pytest.mark.oracle
llama_cpp = pytest.importorskip("llama_cpp", reason="the llama extra is not installed")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory, tiny_release):
    """The trained tiny release as GGUF, split in several files."""
    from moetool.convert.job import open_source, prepare
    from moetool.convert.targets import find_target
    from moetool.formats import open_checkpoint

    out = tmp_path_factory.mktemp("converted") / "tiny"
    with open_checkpoint(tiny_release) as checkpoint:
        prepare(open_source(checkpoint), find_target("gguf", None), out, 6_000_000).run()
    return min(out.glob("*.gguf"))


@pytest.fixture(scope="module")
def llama(gguf):
    return llama_cpp.Llama(str(gguf), n_ctx=512, logits_all=True, verbose=False, n_threads=2)


def test_logits_agree_with_the_golden_ones(llama, tiny_release):
    """A wrong permute moves logits by whole units; bf16 weights and an f16 cache by little."""
    arrays = np.load(tiny_release.parent / "golden.npz")
    for ids, expected in zip(arrays["ids"], arrays["logits"], strict=True):
        llama.reset()
        llama.eval(ids.tolist())
        found = np.array(llama.scores[: len(ids)])
        assert np.abs(found - expected).max() < 0.25 * expected.std()
        agree = (found.argmax(-1) == expected.argmax(-1)).mean()
        assert agree >= 0.95


def test_token_ids_are_sentencepieces(llama, tiny_release):
    """The vocabulary is exported whole: pieces, scores and types."""
    import sentencepiece

    model_file = str(tiny_release / "tokenizer.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=model_file)
    texts = ["hello world", "  two  spaces", "1234 + 56 = 1290", "é汉😀", "a\n\tb", "x = f(1)"]
    for text in texts:
        ids = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == reference.encode(text), text
