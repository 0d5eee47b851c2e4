"""Side files: every field explicit, every key a loader trusts, nothing invented."""

import json
from dataclasses import replace

import pytest

from moetool.convert.job import prepare
from moetool.convert.plan import Plan, Shard
from moetool.convert.sidecars import headers, sidecars
from moetool.convert.synthetic import random_source
from moetool.convert.targets import find_target
from moetool.convert.tokenizer_json import merges, tokenizer_json
from moetool.errors import InconsistentCheckpoint, Refused
from moetool.formats.sentencepiece import read_vocabulary
from moetool.tensors import DType


@pytest.fixture
def tokenizer(tiny_release):
    return (tiny_release / "tokenizer.model").read_bytes()


def files_of(kind, args, plan, tokenizer=None):
    return sidecars(kind, args, plan, tokenizer)


@pytest.fixture
def plan(small_args, tmp_path):
    source = random_source(small_args, 0, None)
    return prepare(source, find_target("safetensors", "hf"), tmp_path / "x", 9_000).plan


def test_config_leaves_nothing_to_a_default(small_args, plan):
    """The fields whose class defaults differ between versions are all there."""
    config = json.loads(files_of("hf", small_args, plan)["config.json"])
    assert config["sliding_window"] is None
    assert config["rope_theta"] == 1e6
    assert config["max_position_embeddings"] == 32768
    assert config["tie_word_embeddings"] is False
    assert config["head_dim"] == 8
    assert config["torch_dtype"] == "bfloat16"


def test_the_index_counts_tensor_bytes_and_names_every_tensor(small_args, plan):
    """total_size is of tensors, not of files."""
    index = json.loads(files_of("hf", small_args, plan)["model.safetensors.index.json"])
    assert index["metadata"]["total_size"] == plan.nbytes
    assert set(index["weight_map"]) == {step.target.name for step in plan.steps}


def test_raw_targets_get_the_torrents_files(small_args, plan, tokenizer):
    """No config.json beside raw names, no params.json beside Hugging Face names."""
    plan = type(plan)(plan.shards[:1])
    assert set(files_of("mistral", small_args, plan, tokenizer)) == {
        "params.json", "tokenizer.model",
    }  # fmt: skip
    assert "hidden_size" in json.loads(files_of("packed", small_args, plan)["params.json"])
    assert files_of("none", small_args, plan, tokenizer) == {}


def test_gguf_has_every_key_that_loaders_fill_in_silently(small_args, plan, tokenizer):
    """freq_base, scores and token types: without them llama.cpp loads and talks nonsense."""
    args = replace(small_args, vocab_size=800)
    (values, *rest) = headers("gguf", args, plan, "name", tokenizer)
    assert values["tokenizer.ggml.tokens"][1][-1] == "[PAD799]"
    assert values["llama.rope.freq_base"] == ("f32", 1e6)
    assert len(values["tokenizer.ggml.scores"][1]) >= 768
    kinds = values["tokenizer.ggml.token_type"][1]
    assert (kinds.count(6), kinds[0], kinds[1]) == (256, 2, 3)
    assert values["split.no"] == ("u16", 0)
    assert rest[0]["split.no"] == ("u16", 1)
    assert "llama.block_count" not in rest[0]
    assert values["split.count"][1] == len(plan.shards)


def test_merges_come_in_the_order_of_scores(tokenizer):
    """Every merge joins two pieces to a third, best score first."""
    vocabulary = read_vocabulary(tokenizer)
    scores = dict(zip(vocabulary.pieces, vocabulary.scores, strict=True))
    found = [scores[left + right] for left, right in merges(vocabulary)]
    assert found == sorted(found, reverse=True)
    assert len(found) > 400


def test_a_unigram_model_is_refused_by_kind(tokenizer):
    """An approximation would tokenise wrongly without a word."""
    vocabulary = read_vocabulary(tokenizer)
    with pytest.raises(Refused, match="unigram"):
        tokenizer_json(replace(vocabulary, model_type="unigram"))
    with pytest.raises(Refused, match="rewriting normaliser"):
        tokenizer_json(replace(vocabulary, has_charsmap=True))


@pytest.mark.parametrize(
    ("changes", "label"),
    [({}, "8x6B"), ({"n_experts": 0, "n_experts_per_tok": 0, "sliding_window": 4096}, "7B")],
)
def test_a_gguf_says_its_size_as_releases_do(changes, label, changed_args, plan):
    """8x7B's experts share 46.7 B; a dense 7B has one number."""
    from moetool.convert.synthetic import GEOMETRIES

    args = changed_args(GEOMETRIES["8x7b"], **changes)
    (values, *_) = headers("gguf", args, plan, "name", None)
    assert values["general.size_label"] == ("str", label)
    assert ("llama.expert_count" in values) == (args.n_experts > 0)


def test_the_vocabulary_of_a_gguf_is_carried_on(small_args, plan):
    """Types that a read value does not show are those that llama.cpp expects."""
    carried = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.5, 1.5],
               "tokenizer.ggml.token_type": [1, 1], "tokenizer.ggml.bos_token_id": 1,
               "tokenizer.ggml.model": "llama", "general.file_type": 15,
               "tokenizer.ggml.add_bos_token": True, "general.name": "old"}  # fmt: skip
    small_args = replace(small_args, vocab_size=2)
    (values, *_) = headers("gguf", small_args, plan, "name", None, carried)
    found = {key: values[f"tokenizer.ggml.{key}"] for key in
             ("tokens", "scores", "token_type", "bos_token_id", "add_bos_token")}  # fmt: skip
    assert found == {"tokens": ("arr[str]", ["a", "b"]), "scores": ("arr[f32]", [0.5, 1.5]),
                     "token_type": ("arr[i32]", [1, 1]), "bos_token_id": ("u32", 1),
                     "add_bos_token": ("bool", True)}  # fmt: skip
    assert values["general.name"] == ("str", "name")
    assert values["general.file_type"] == ("u32", 32)  # bf16, whatever the source was


def test_the_mix_of_a_quantised_source_is_carried_on(small_args, plan):
    """Its blocks do not tell Q4_K_M from Q4_K_S."""
    steps = tuple(replace(step, target=replace(step.target, dtype=DType.Q4_K))
                  for step in plan.steps)  # fmt: skip
    mixed = Plan((Shard("x.gguf", steps),))
    (values,) = headers("gguf", small_args, mixed, "x", None, {"general.file_type": 15})
    assert values["general.file_type"] == ("u32", 15)


def test_another_models_tokenizer_is_refused_before_the_first_byte(small_args, plan, tokenizer):
    """768 pieces for 56 rows of the embedding: the GGUF would tokenise into nothing."""
    with pytest.raises(InconsistentCheckpoint) as caught:
        headers("gguf", replace(small_args, vocab_size=56), plan, "name", tokenizer)
    assert caught.value.findings == ("768 tokens for a vocabulary of 56",)
