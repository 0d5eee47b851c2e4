"""The mixes give 8x7B the types and the sizes that are known of it, and say what they cannot do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from moetool.arch.args import ModelArgs
from moetool.arch.mistral import DENSE_GGUF
from moetool.arch.mixtral import GGUF, GGUF_SPLIT
from moetool.arch.schema import expand
from moetool.convert.quantised.mixes import (
    MIXES,
    TYPES,
    Fallback,
    Quantization,
    choose,
    fallbacks,
    find_mix,
    find_type,
    parse_overrides,
)
from moetool.errors import UsageFault
from moetool.tensors import DType

MIXTRAL = ModelArgs(
    dim=4096, n_layers=32, head_dim=128, hidden_dim=14336, n_heads=32, n_kv_heads=8, norm_eps=1e-5,
    vocab_size=32000, n_experts=8, n_experts_per_tok=2,
)  # fmt: skip
DENSE = replace(MIXTRAL, n_experts=0, n_experts_per_tok=0)
MORE = {*range(4), *range(6, 28, 3), *range(28, 32)}


def shapes_of(args, table=GGUF):
    return {name: stored.shape for name, stored in expand(table, args).items()}


def types_of(mix, args=MIXTRAL, *overrides, table=GGUF, **options):
    asked = Quantization(mix, parse_overrides(overrides), **options)
    return choose(asked, shapes_of(args, table).items(), args)


def labels(types, tensor):
    return [
        types[f"blk.{layer}.{tensor}.weight"].label for layer in range(32)
        if f"blk.{layer}.{tensor}.weight" in types
    ]  # fmt: skip


def by_layer(inside, outside, layers):
    return [inside if layer in layers else outside for layer in range(32)]


@pytest.mark.parametrize(
    ("mix", "base", "attn_output", "ffn_down", "output"),
    [
        ("q8_0", "q8_0", "q8_0", by_layer("q8_0", "q8_0", ()), "q8_0"),
        ("q6_k", "q6_k", "q6_k", by_layer("q6_k", "q6_k", ()), "q6_k"),
        ("q5_k_m", "q5_k", "q5_k", by_layer("q6_k", "q5_k", MORE), "q6_k"),
        ("q5_k_s", "q5_k", "q5_k", by_layer("q5_k", "q5_k", ()), "q6_k"),
        ("q5_1", "q5_1", "q5_1", by_layer("q5_1", "q5_1", ()), "q6_k"),
        ("q5_0", "q5_0", "q5_0", by_layer("q5_0", "q5_0", ()), "q6_k"),
        ("q4_k_m", "q4_k", "q5_k", by_layer("q6_k", "q4_k", MORE), "q6_k"),
        ("q4_k_s", "q4_k", "q5_k", by_layer("q5_k", "q4_k", range(4)), "q6_k"),
        ("q4_1", "q4_1", "q4_1", by_layer("q4_1", "q4_1", ()), "q6_k"),
        ("q4_0", "q4_0", "q4_0", by_layer("q4_0", "q4_0", ()), "q6_k"),
        ("q3_k_l", "q3_k", "q3_k", by_layer("q5_k", "q5_k", ()), "q6_k"),
        ("q3_k_m", "q3_k", "q5_k", by_layer("q5_k", "q4_k", range(2)), "q6_k"),
        ("q3_k_s", "q3_k", "q5_k", by_layer("q3_k", "q3_k", ()), "q6_k"),
        ("q2_k", "q2_k", "q5_k", by_layer("q3_k", "q3_k", ()), "q6_k"),
    ],
)
def test_the_table_of_8x7b(mix, base, attn_output, ffn_down, output):
    types = types_of(mix)
    assert labels(types, "ffn_down_exps") == ffn_down
    assert {*labels(types, "attn_k"), *labels(types, "attn_v")} == {"q8_0"}
    assert {*labels(types, "attn_output")} == {attn_output}
    for tensor in ("attn_q", "ffn_gate_exps", "ffn_up_exps"):
        assert labels(types, tensor) == [base] * 32
    for tensor in ("attn_norm", "ffn_norm", "ffn_gate_inp"):
        assert labels(types, tensor) == ["f32"] * 32
    assert types["output.weight"].label == output
    assert types["token_embd.weight"].label == base
    assert types["output_norm.weight"] is DType.F32
    assert list(types) == list(shapes_of(MIXTRAL))


def test_the_experts_alone_are_mxfp4():
    types = types_of("mxfp4_moe")
    experts = {name for name, dtype in types.items() if dtype is DType.MXFP4}
    assert experts == {name for name in types if "_exps." in name}
    assert types["output.weight"] is types["blk.0.attn_q.weight"] is DType.Q8_0
    assert set(types_of("mxfp4_moe", DENSE, table=DENSE_GGUF).values()) == {DType.Q8_0, DType.F32}


@pytest.mark.parametrize(
    ("mix", "gigabytes"),
    [
        ("q8_0", 49.63), ("q6_k", 38.38), ("q5_k_m", 33.23), ("q5_k_s", 32.23), ("q4_k_m", 28.45),
        ("q4_k_s", 26.74), ("q4_0", 26.44), ("q3_k_m", 22.55), ("q2_k", 17.31),
    ],
)  # fmt: skip
def test_the_size_of_8x7b(mix, gigabytes):
    """The bytes of all tensors; a header comes on top."""
    types = types_of(mix)
    nbytes = sum(types[name].nbytes(math.prod(shape)) for name, shape in shapes_of(MIXTRAL).items())
    assert round(nbytes / 1e9, 2) == gigabytes


def test_the_numbers_are_those_of_general_file_type():
    numbers = {mix.name: mix.file_type for mix in MIXES.values()}
    assert numbers == {
        "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11,
        "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17,
        "q6_k": 18, "mxfp4_moe": 38,
    }  # fmt: skip


def test_other_counts_of_experts_have_no_more_bits_for_attention():
    """With 8 exactly, keys and values are q8_0; with others, attn_v follows the dense rule."""
    for args in (replace(MIXTRAL, n_experts=4), replace(MIXTRAL, n_experts=16)):
        types = types_of("q4_k_m", args)
        assert set(labels(types, "attn_k")) == set(labels(types, "attn_output")) == {"q4_k"}
        assert labels(types, "attn_v") == by_layer("q6_k", "q4_k", MORE)
        assert labels(types, "ffn_down_exps") == by_layer("q6_k", "q4_k", MORE)


@pytest.mark.parametrize(
    ("mix", "attn_v", "attn_output"),
    [
        ("q5_k_m", by_layer("q6_k", "q5_k", MORE), "q5_k"),
        ("q4_k_m", by_layer("q6_k", "q4_k", MORE), "q4_k"),
        ("q4_k_s", by_layer("q5_k", "q4_k", range(4)), "q4_k"),
        ("q3_k_l", by_layer("q5_k", "q5_k", ()), "q5_k"),
        ("q3_k_m", by_layer("q5_k", "q4_k", range(2)), "q4_k"),
        ("q3_k_s", by_layer("q3_k", "q3_k", ()), "q3_k"),
        ("q2_k", by_layer("q4_k", "q4_k", ()), "q3_k"),
        ("q4_0", by_layer("q4_0", "q4_0", ()), "q4_0"),
    ],
)
def test_attention_of_a_dense_model(mix, attn_v, attn_output):
    types = types_of(mix, DENSE, table=DENSE_GGUF)
    assert labels(types, "attn_v") == attn_v
    assert set(labels(types, "attn_output")) == {attn_output}
    assert set(labels(types, "attn_k")) == {MIXES[mix].base.label}


@pytest.mark.parametrize(("n_kv_heads", "expected"), [(8, "q4_k"), (16, "q3_k"), (32, "q3_k")])
def test_values_that_four_queries_share_have_more_bits(n_kv_heads, expected):
    types = types_of("q2_k", replace(DENSE, n_kv_heads=n_kv_heads), table=DENSE_GGUF)
    assert set(labels(types, "attn_v")) == {expected}


@pytest.mark.parametrize(("n_kv_heads", "expected"), [(8, "q5_k"), (64, "q3_k")])
def test_the_70b_has_more_bits_for_its_values(n_kv_heads, expected):
    """80 layers with shared keys; the 65B has 80 as well."""
    args = replace(DENSE, n_layers=80, n_heads=64, n_kv_heads=n_kv_heads)
    types = types_of("q3_k_s", args, table=DENSE_GGUF)
    assert set(labels(types, "attn_v")) == {expected}
    assert set(labels(types, "attn_q")) == {"q3_k"}


@pytest.mark.parametrize(("mix", "expected"), [("q4_0", "q4_1"), ("q5_0", "q5_1")])
def test_an_importance_matrix_guards_the_first_layers(mix, expected):
    types = types_of(mix, has_imatrix=True)
    assert labels(types, "ffn_down_exps") == by_layer(expected, mix, range(4))
    assert types | dict.fromkeys(
        [f"blk.{layer}.ffn_down_exps.weight" for layer in range(4)], DType[mix.upper()]
    ) == types_of(mix)


def test_the_old_layout_gives_every_expert_its_layers_type():
    """There each expert has a tensor, so an override can mean one of them."""
    types = types_of("q4_k_m", MIXTRAL, r"\.ffn_down\.3\.=q8_0", table=GGUF_SPLIT)
    for expert in range(8):
        expected = ["q8_0"] * 32 if expert == 3 else by_layer("q6_k", "q4_k", MORE)
        assert labels(types, f"ffn_down.{expert}") == expected


def test_pure_is_the_base_for_every_matrix():
    types = types_of("q4_k_m", pure=True)
    assert set(types.values()) == {DType.Q4_K, DType.F32}
    assert types["output.weight"] is types["token_embd.weight"] is DType.Q4_K
    assert {name for name, dtype in types.items() if dtype is DType.F32} == {
        name for name in types if "norm" in name or "gate_inp" in name
    }


def test_the_first_override_that_is_found_decides():
    types = types_of("q4_k_m", MIXTRAL, "ffn_down=Q8_0", "ffn_=q5_0", r"blk\.0\.attn_q=bf16")
    assert set(labels(types, "ffn_down_exps")) == {"q8_0"}
    assert set(labels(types, "ffn_up_exps")) == {"q5_0"}
    assert labels(types, "ffn_gate_inp") == ["f32"] * 32
    assert labels(types, "attn_q") == ["bf16"] + ["q4_k"] * 31


def test_options_go_before_overrides_and_those_before_pure():
    types = types_of("q4_k_m", MIXTRAL, "output=q5_k", "token=f16", pure=True,
                     output=DType.Q8_0)  # fmt: skip
    assert types["output.weight"] is DType.Q8_0
    assert set(labels(types, "attn_output")) == {"q5_k"}
    assert types["token_embd.weight"] is DType.F16
    types = types_of("q4_k_m", embedding=DType.Q6_K)
    assert types["token_embd.weight"] is types["output.weight"] is DType.Q6_K


def test_layers_behind_an_override_move_up_where_llama_quantize_counts():
    """It counts attn_v, and ffn_down of a dense model; layers of experts it reads from names."""
    override = r"blk\.0\.(attn_v|ffn_down)=q8_0"
    dense = types_of("q3_k_m", DENSE, override, table=DENSE_GGUF)
    moved = ["q8_0", "q5_k", "q5_k"] + ["q4_k"] * 29
    assert labels(dense, "attn_v") == labels(dense, "ffn_down") == moved
    experts = types_of("q3_k_m", replace(MIXTRAL, n_experts=4), override)
    assert labels(experts, "ffn_down_exps") == ["q8_0", "q5_k"] + ["q4_k"] * 30
    assert labels(experts, "attn_v") == moved


def test_an_equals_sign_in_a_regex_is_no_end_of_it():
    assert parse_overrides(["attn_(?=v)=q8_0"]) == (("attn_(?=v)", DType.Q8_0),)


ROWS = [
    ("q2_k", "q4_0"), ("q3_k_s", "q4_0"), ("q4_k_s", "q5_0"), ("q5_k_s", "q5_1"), ("q6_k", "q8_0"),
]  # fmt: skip


@pytest.mark.parametrize(("mix", "expected"), ROWS)
def test_rows_that_fill_no_blocks_of_256_get_blocks_of_32(mix, expected):
    args = replace(MIXTRAL, hidden_dim=288)
    asked = Quantization(mix, pure=True)
    types = choose(asked, shapes_of(args).items(), args)
    assert set(labels(types, "ffn_down_exps")) == {expected}
    assert set(labels(types, "ffn_up_exps")) == {MIXES[mix].base.label}
    found = fallbacks(asked, shapes_of(args).items(), args)
    assert len(found) == 32
    name = "blk.0.ffn_down_exps.weight"
    assert found[0] == Fallback(name, 288, MIXES[mix].base, DType[expected.upper()])


@pytest.mark.parametrize("mix", MIXES)
def test_rows_that_fill_no_blocks_at_all_get_f16(mix):
    args = replace(MIXTRAL, hidden_dim=272)
    asked = Quantization(mix)
    types = choose(asked, shapes_of(args).items(), args)
    assert set(labels(types, "ffn_down_exps")) == {"f16"}
    found = fallbacks(asked, shapes_of(args).items(), args)
    assert {fallback.name.split(".", 2)[2] for fallback in found} == {"ffn_down_exps.weight"}


def test_what_is_asked_for_falls_back_as_well():
    """llama-quantize fails there for the output and the embedding."""
    args = replace(MIXTRAL, dim=96)
    asked = Quantization("q8_0", (("attn_q", DType.Q4_K),), output=DType.Q6_K, embedding=DType.Q2_K)
    found = fallbacks(asked, shapes_of(args).items(), args)
    assert {(fallback.wanted.label, fallback.got.label) for fallback in found} == {
        ("q4_k", "q5_0"), ("q6_k", "q8_0"), ("q2_k", "q4_0"),
    }  # fmt: skip


def test_8x7b_needs_no_fallback():
    for mix in MIXES:
        assert fallbacks(Quantization(mix), shapes_of(MIXTRAL).items(), MIXTRAL) == ()


@pytest.mark.parametrize("pattern", ["experts.3", r"ffn_down\.3\.weight", r"ffn_up_exps\.\d"])
def test_one_expert_cannot_have_a_type_of_its_own(pattern):
    """Which llama-quantize passes over in silence."""
    with pytest.raises(UsageFault) as caught:
        types_of("q4_k_m", MIXTRAL, f"{pattern}=q8_0", "attn_q=q8_0")
    assert caught.value.findings == (f"--tensor-type {pattern}=q8_0: matches no tensor",)
    assert "all experts of a layer as one tensor with one type" in caught.value.hint


def test_overrides_that_decide_nothing_are_all_listed():
    with pytest.raises(UsageFault) as caught:
        types_of("q4_k_m", DENSE, "attn=q5_k", "attn_v=q8_0", "norm|gate_inp=q8_0", "wq=q8_0",
                 "^output=q4_0", table=DENSE_GGUF, output=DType.Q8_0)  # fmt: skip
    first = "what it matches is decided before it: by an option, or an override to its left"
    assert caught.value.findings == (
        f"--tensor-type attn_v=q8_0: {first}",
        "--tensor-type norm|gate_inp=q8_0: norms and the router stay f32",
        "--tensor-type wq=q8_0: matches no tensor",
        f"--tensor-type ^output=q4_0: {first}",
    )
    assert "experts" not in caught.value.hint


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ffn_down", "expected REGEX=TYPE"),
        ("=q8_0", "expected REGEX=TYPE"),
        ("ffn_(=q8_0", "not a regex: missing )"),
        ("a{99999999999}=q8_0", "not a regex"),
        ("ffn_down=", "no type ''"),
        ("ffn_down=q4_k_m", "no type 'q4_k_m'"),
        ("ffn_down=iq2_xxs", "no type 'iq2_xxs'"),
    ],
)
def test_malformed_overrides_are_refused_with_the_known_types(text, problem):
    with pytest.raises(UsageFault) as caught:
        parse_overrides(["attn=q8_0", text, "=also"])
    assert len(caught.value.findings) == 2
    assert caught.value.findings[0].startswith(f"{text!r}: {problem}")
    assert all(label in caught.value.hint for label in TYPES)


def test_names_are_found_in_any_case():
    assert find_mix("Q4_K_M") is MIXES["q4_k_m"]
    assert find_type("BF16") is DType.BF16
    with pytest.raises(UsageFault, match="'q4_k'"):
        find_mix("q4_k")
    with pytest.raises(UsageFault, match="'f64'"):
        find_type("f64")
