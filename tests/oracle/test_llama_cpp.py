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


def test_token_ids_are_sentencepieces(llama, tiny_release, hostile_strings):
    """The vocabulary is exported whole: 1,500 strings, NUL and the text <s> among them."""
    import sentencepiece

    model_file = str(tiny_release / "tokenizer.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=model_file)
    wrong = [
        text
        for text in hostile_strings(1500)
        if llama.tokenize(text.encode(), add_bos=False, special=False) != reference.encode(text)
    ]
    assert wrong == []


def test_a_dense_mistral_has_transformers_logits(tmp_path, tiny_release):
    """A random MistralForCausalLM through our GGUF: attention, theta and one SwiGLU."""
    transformers = pytest.importorskip("transformers", reason="it is the other side")
    import shutil

    import torch

    from moetool.convert.job import open_source, prepare
    from moetool.convert.targets import find_target
    from moetool.formats import open_checkpoint

    config = transformers.MistralConfig(
        vocab_size=768, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=4096,
        max_position_embeddings=8192, rms_norm_eps=1e-5, initializer_range=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "hf")
    shutil.copy(tiny_release / "tokenizer.model", tmp_path / "hf")
    with open_checkpoint(tmp_path / "hf") as checkpoint:
        prepare(open_source(checkpoint), find_target("gguf", None), tmp_path / "dense").run()
    loaded = transformers.MistralForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ids = torch.randint(3, 768, (60,), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = loaded(ids[None]).logits[0].numpy()
    llama = llama_cpp.Llama(str(tmp_path / "dense" / "dense.gguf"), n_ctx=128, logits_all=True,
                            verbose=False, n_threads=2)  # fmt: skip
    llama.eval(ids.tolist())
    found = np.array(llama.scores[: len(ids)])
    assert np.abs(found - expected).max() < 0.1 * expected.std()
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.95
