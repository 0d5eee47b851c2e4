"""Hyperparameters in four spellings, and the published sizes."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.arch import spelling
from moetool.errors import InconsistentCheckpoint, UnknownConvention

# ml-explore/mlx-examples: llms/mixtral/params.json, the keys of the torrent's file.
PUBLISHED = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32,
    "n_kv_heads": 8, "norm_eps": 1e-05, "vocab_size": 32000,
    "moe": {"num_experts_per_tok": 2, "num_experts": 8},
}  # fmt: skip
TABLE = {
    "8x7b": (46_702_792_704, 12_879_925_248, 131_072),
    "8x22b": (140_620_634_112, 39_152_031_744, 229_376),
}


def test_published_totals_of_8x7b():
    """46.7 B parameters, 12.9 B active, as Mistral's documentation says."""
    args = spelling.from_params_json(PUBLISHED)
    assert (args.n_params, args.n_params_active, args.kv_cache_nbytes(1)) == TABLE["8x7b"]


def test_published_totals_of_8x22b():
    """140.6 B parameters, 39.1 B active, context of 64k."""
    published = PUBLISHED | {"dim": 6144, "n_layers": 56, "hidden_dim": 16384, "n_heads": 48}
    args = spelling.from_params_json(published)
    assert (args.n_params, args.n_params_active, args.kv_cache_nbytes(1)) == TABLE["8x22b"]
    assert args.max_seq_len == 65536


def test_what_the_torrent_leaves_out_is_assumed_and_said():
    """The raw params.json has neither theta nor context."""
    args = spelling.from_params_json(PUBLISHED)
    assert (args.rope_theta, args.max_seq_len) == (1e6, 32768)
    assert args.assumed == ("rope_theta", "max_seq_len")


def test_a_sliding_window_means_the_older_theta():
    """mistral-inference @b818190: 1e4 where a sliding window is given."""
    args = spelling.from_params_json(PUBLISHED | {"sliding_window": 4096})
    assert (args.rope_theta, args.sliding_window) == (1e4, 4096)


def test_params_json_is_written_with_the_keys_of_the_torrent():
    """Reading and writing the published file gives its keys again, and no others."""
    written = spelling.to_params_json(spelling.from_params_json(PUBLISHED))
    assert written == PUBLISHED


args_strategy = st.builds(
    lambda heads, groups, **rest: spelling.ModelArgs(n_heads=heads * groups, n_kv_heads=heads,
                                                     **rest),
    heads=st.integers(1, 8), groups=st.integers(1, 8), dim=st.integers(1, 9999),
    n_layers=st.integers(1, 99), head_dim=st.integers(1, 64).map(lambda half: 2 * half),
    hidden_dim=st.integers(1, 9999), norm_eps=st.sampled_from([1e-5, 1e-6]),
    vocab_size=st.integers(1, 99999), n_experts=st.integers(4, 64),
    n_experts_per_tok=st.integers(1, 4), rope_theta=st.sampled_from([1e4, 1e6]),
    max_seq_len=st.sampled_from([4096, 32768]), sliding_window=st.sampled_from([None, 4096]),
)  # fmt: skip


@given(args_strategy)
def test_every_spelling_comes_back(args):
    """What is written as config.json, packed params.json or GGUF is read as the same model."""
    through_json = json.loads(json.dumps(spelling.to_config_json(args, "bfloat16")))
    assert spelling.from_config_json(through_json) == args
    assert spelling.from_params_json(spelling.to_packed_params_json(args)) == args
    values = {"general.architecture": "llama"}
    values |= {key: value for key, (_, value) in spelling.to_gguf(args).items()}
    assert replace(spelling.from_gguf(values), assumed=()) == args


def test_what_a_dense_config_leaves_out_is_what_transformers_fills_in():
    """MistralConfig: theta 1e4 and a window of 4096, where null is said and not left out."""
    args = spelling.from_params_json(PUBLISHED_7B)
    config = spelling.to_config_json(replace(args, sliding_window=None), "bfloat16")
    assert spelling.from_config_json(config).sliding_window is None
    del config["sliding_window"], config["rope_theta"]
    found = spelling.from_config_json(config)
    assert (found.sliding_window, found.rope_theta) == (4096, 1e4)
    assert found.assumed == ("rope_theta", "sliding_window")


def test_what_a_mixtral_config_leaves_out_is_mixtrals():
    """MixtralConfig: theta 1e6 whatever the window, and no window."""
    config = spelling.to_config_json(spelling.from_params_json(PUBLISHED), "bfloat16")
    del config["sliding_window"], config["rope_theta"]
    found = spelling.from_config_json(config)
    assert (found.sliding_window, found.rope_theta) == (None, 1e6)
    assert spelling.from_config_json(config | {"sliding_window": 4096}).rope_theta == 1e6


def test_rope_parameters_of_transformers_5_are_read():
    """Version 5 moved rope_theta into rope_parameters."""
    config = spelling.to_config_json(spelling.from_params_json(PUBLISHED), "bfloat16")
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert spelling.from_config_json(config).rope_theta == 5e5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_heads": 0}, "n_heads is 0"),
        ({"dim": 10**18}, "dim is 1000000000000000000"),
        ({"norm_eps": float("nan")}, "norm_eps is nan"),
        ({"n_kv_heads": 5}, "no multiple"),
        ({"head_dim": 7}, "odd"),
        ({"n_layers": -1}, "n_layers is -1"),
        ({"vocab_size": "many"}, "vocab_size: expected an integer, got 'many'"),
        ({"n_layers": True}, "n_layers: expected an integer, got True"),
        ({"hidden_dim": None}, "hidden_dim: expected an integer"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"moe": {"num_experts": 8, "num_experts_per_tok": 9}}, "exceeds"),
        ({"n_layers": 1 << 23}, "8388608 layers of 8 experts are 260046848 tensors"),
        ({"moe": {"num_experts": 1 << 20, "num_experts_per_tok": 2}}, "tensors, more than 131072"),
    ],
)
def test_nonsense_is_refused_by_name(change, said):
    """Every hyperparameter that cannot be is named with its value."""
    with pytest.raises(InconsistentCheckpoint) as caught:
        spelling.from_params_json(PUBLISHED | change)
    assert said in " ".join([str(caught.value), *caught.value.findings])


@pytest.mark.parametrize(
    "data",
    [
        {"hidden_size": 8, "model_type": "phimoe"},
        PUBLISHED | {"moe": {"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1}},
    ],
)
def test_other_families_are_refused(data):
    """A look-alike is refused by its declared kind, whatever its tensors are called."""
    with pytest.raises(UnknownConvention):
        spelling.from_params_json(data)


# mistral-7B-v0.1's params.json: no moe, no theta, a sliding window.
PUBLISHED_7B = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32,
    "n_kv_heads": 8, "norm_eps": 1e-05, "sliding_window": 4096, "vocab_size": 32000,
}  # fmt: skip


def test_mistral_7b_is_dense_with_theta_1e4():
    """7,241,732,096 parameters, all of them active; written again with the same keys."""
    args = spelling.from_params_json(PUBLISHED_7B)
    assert (args.n_params, args.n_params_active) == (7_241_732_096, 7_241_732_096)
    assert (args.n_experts, args.n_experts_per_tok) == (0, 0)
    assert (args.rope_theta, args.sliding_window, args.max_seq_len) == (1e4, 4096, 32768)
    assert spelling.to_params_json(args) == PUBLISHED_7B


def test_mistral_7b_comes_back_from_every_spelling():
    """config.json says MistralForCausalLM and nothing of experts; GGUF keeps the window."""
    args = replace(spelling.from_params_json(PUBLISHED_7B), assumed=())
    config = json.loads(json.dumps(spelling.to_config_json(args, "bfloat16")))
    assert (config["architectures"], config["model_type"]) == (["MistralForCausalLM"], "mistral")
    assert (config["sliding_window"], config["rope_theta"]) == (4096, 1e4)
    assert not [key for key in config if "expert" in key or "router" in key]
    assert spelling.from_config_json(config) == args
    values = {key: value for key, (_, value) in spelling.to_gguf(args).items()}
    assert not [key for key in values if "expert" in key]
    assert spelling.from_gguf({"general.architecture": "llama", **values}) == args


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "linear"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"model_type": "phimoe"}, "Phi-3.5-MoE"),
    ],
)
def test_other_maths_under_the_same_names_is_refused(change, said):
    """Scaled angles or another activation make the same weights another function."""
    config = spelling.to_config_json(spelling.from_params_json(PUBLISHED), "bfloat16")
    with pytest.raises(UnknownConvention, match=said):
        spelling.from_config_json(config | change)


def test_scaled_angles_in_a_gguf_are_refused():
    """To llama.cpp a Llama 3.1 and a Mistral are both llama; the scaling tells them apart."""
    values = {key: value for key, (_, value) in spelling.to_gguf(
        spelling.from_params_json(PUBLISHED_7B)).items()}  # fmt: skip
    values |= {"general.architecture": "llama", "llama.rope.scaling.type": "linear"}
    with pytest.raises(UnknownConvention, match=r"rope\.scaling\.type 'linear': scaled"):
        spelling.from_gguf(values)


def test_a_mixture_of_no_experts_cannot_be():
    """Zero experts, two of which are used, is nonsense rather than dense."""
    with pytest.raises(InconsistentCheckpoint) as caught:
        spelling.from_params_json(PUBLISHED | {"moe": {"num_experts": 0, "num_experts_per_tok": 2}})
    assert "n_experts is 0, expected 1" in caught.value.findings[0]


def test_gguf_without_freq_base_is_refused():
    """llama.cpp would fill in 10000 and talk nonsense."""
    values = {key: value for key, (_, value) in spelling.to_gguf(
        spelling.from_params_json(PUBLISHED)).items()}  # fmt: skip
    values["general.architecture"] = "llama"
    del values["llama.rope.freq_base"]
    with pytest.raises(InconsistentCheckpoint, match=r"rope\.freq_base"):
        spelling.from_gguf(values)
