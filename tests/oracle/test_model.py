"""Our logits against transformers', and our tokenizer against the release's real one."""

from __future__ import annotations

import hashlib

import pytest
import torch

from moetool.arch.args import ModelArgs
from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import Recognized
from moetool.arch.schema import expand
from moetool.arch.spelling import to_config_json
from moetool.convert.stream import to_torch
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer

pytestmark = pytest.mark.oracle

# Grouped queries, head_dim beside dim / n_heads, one to three experts, a prime vocabulary.
GEOMETRIES = {
    "top-2 of 8, two kv heads": ModelArgs(
        dim=96, n_layers=3, head_dim=16, hidden_dim=80, n_heads=8, n_kv_heads=2, norm_eps=1e-5,
        vocab_size=131, n_experts=8, n_experts_per_tok=2, max_seq_len=512,
    ),
    "top-1 of 4, one kv head, wide heads": ModelArgs(
        dim=48, n_layers=2, head_dim=32, hidden_dim=64, n_heads=3, n_kv_heads=1, norm_eps=1e-6,
        vocab_size=101, n_experts=4, n_experts_per_tok=1, max_seq_len=512,
    ),
    "top-3 of 5, all kv heads, theta 10000": ModelArgs(
        dim=64, n_layers=2, head_dim=8, hidden_dim=112, n_heads=4, n_kv_heads=4, norm_eps=1e-5,
        vocab_size=127, n_experts=5, n_experts_per_tok=3, rope_theta=1e4, max_seq_len=512,
    ),
    "sliding window of 24": ModelArgs(
        dim=64, n_layers=2, head_dim=16, hidden_dim=48, n_heads=4, n_kv_heads=2, norm_eps=1e-5,
        vocab_size=127, n_experts=4, n_experts_per_tok=2, max_seq_len=512, sliding_window=24,
    ),
}  # fmt: skip


@pytest.fixture(params=GEOMETRIES)
def pair(request, in_layout, tmp_path):
    """The same random checkpoint in transformers and in ours, both float32."""
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    safetensors = pytest.importorskip("safetensors.torch", reason="transformers reads it")
    args = GEOMETRIES[request.param]
    checkpoint, _ = in_layout("hf", args)
    tensors = {
        name: to_torch(checkpoint.read(name), info.dtype, info.shape)
        for name, info in checkpoint.catalog.tensors.items()
    }
    safetensors.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = transformers.MixtralConfig(**to_config_json(args, "bfloat16"))
    config.save_pretrained(tmp_path)
    theirs = transformers.MixtralForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    convention = MIXTRAL.convention("hf")
    recognized = Recognized(MIXTRAL, convention, args, expand(convention, args))
    weights = open_weights(checkpoint, recognized, torch.device("cpu"), torch.float32)
    return theirs.eval(), Transformer(args, weights)


def test_logits_are_those_of_transformers(pair):
    theirs, ours = pair
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(ours.args.vocab_size, (200,), generator=random)
    with torch.inference_mode():
        expected = theirs(tokens[None]).logits[0]
    logits = ours.forward(tokens, ours.new_cache(200))
    assert (logits - expected).abs().max() < 1e-4 * max(1.0, float(expected.std()))
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_cached_logits_are_those_of_transformers(pair):
    theirs, ours = pair
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(ours.args.vocab_size, (80,), generator=random)
    with torch.inference_mode():
        expected = theirs(tokens[None]).logits[0]
    cache = ours.new_cache(80)
    rows = [ours.forward(piece, cache) for piece in tokens.split([50] + [1] * 30)]
    assert (torch.cat(rows) - expected).abs().max() < 1e-4 * max(1.0, float(expected.std()))


def test_the_real_tokenizer_goes_round(tmp_path):
    """mistral-common carries the tokenizer.model of the torrent, byte for byte."""
    mistral_common = pytest.importorskip("mistral_common", reason="it has the release's tokenizer")
    from pathlib import Path

    from moetool.model.smoke.config import round_trips
    from moetool.model.smoke.subject import Subject
    from moetool.model.tokenizer import Tokenizer
    from moetool.release.manifest import find_release

    raw = (Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1").read_bytes()
    tokenizer = Tokenizer(raw, "tokenizer.model", is_file=True)
    release = find_release("mixtral-8x7b-32kseqlen")
    subject = Subject(None, None, tokenizer, release)
    assert subject.known_tokenizer() is True
    assert round_trips(subject).verdict.value == "PASS"
    assert tokenizer.encode("hello") == [1, 6312, 28709]
    assert hashlib.md5(raw).hexdigest() == "37974873eb68a7ab30c4912fc36264ae"


def test_the_shipped_text_is_long_enough_for_any_tokenizer():
    """At least 512 tokens for the real vocabulary, and within the window of one pass."""
    mistral_common = pytest.importorskip("mistral_common", reason="it has the release's tokenizer")
    from importlib import resources
    from pathlib import Path

    from moetool.model.tokenizer import Tokenizer

    raw = (Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1").read_bytes()
    text = (resources.files("moetool.model") / "texts" / "english.txt").read_text("utf-8")
    assert 512 <= len(Tokenizer(raw, "it", is_file=True).encode(text)) <= 1024
