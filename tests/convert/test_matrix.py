"""All ordered pairs of targets on the trained tiny release: there and back is the same bits."""

from dataclasses import replace

import pytest

from moetool.convert.job import open_source, prepare
from moetool.convert.synthetic import random_source
from moetool.convert.targets import TARGETS
from moetool.errors import UsageFault
from moetool.formats import create, open_checkpoint

NAMES = [f"{target.file_format}-{target.convention}" for target in TARGETS]
BY_NAME = dict(zip(NAMES, TARGETS, strict=True))
DENSE_NAMES = [name for name in NAMES if BY_NAME[name].convention in {"mistral", "hf", "gguf"}]


def convert(path, name, out):
    """Convert what lies at ``path`` to the target of that name."""
    with open_checkpoint(path) as checkpoint:
        prepare(open_source(checkpoint), BY_NAME[name], out, 5_000_000).run()
    return out


def contents(path):
    """Every tensor of a checkpoint: type, shape and bytes."""
    with open_checkpoint(path) as checkpoint:
        return {
            name: (info.dtype, info.shape, bytes(checkpoint.read(name)))
            for name, info in checkpoint.catalog.tensors.items()
        }


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_release):
    """The tiny release in every target, each made from the raw one when it is first wanted."""
    folder, held = tmp_path_factory.mktemp("matrix"), {}

    def get(name):
        if name not in held:
            out = convert(tiny_release, name, folder / name)
            held[name] = (out, contents(out))
        return held[name]

    return get


@pytest.mark.parametrize("there", NAMES)
@pytest.mark.parametrize("start", NAMES)
def test_there_and_back_is_bit_identical(start, there, made, tmp_path):
    """a -> b equals raw -> b, and a -> b -> a equals a: names, types, shapes and bytes."""
    path, expected = made(start)
    away = convert(path, there, tmp_path / "away")
    assert contents(away) == made(there)[1]
    assert contents(convert(away, start, tmp_path / "back")) == expected


@pytest.mark.parametrize("name", NAMES)
def test_another_shard_size_is_a_plan_of_copies(name, made, tmp_path):
    """Resharding reads and writes bytes; in the end as many files as the size asks for."""
    path, expected = made(name)
    with open_checkpoint(path) as checkpoint:
        job = prepare(open_source(checkpoint), BY_NAME[name], tmp_path / "out", 2_000_000)
        report = job.run()
        before = len(checkpoint.files)
    assert report.copied_nbytes == report.nbytes
    assert report.casts is None
    assert contents(tmp_path / "out") == expected
    with open_checkpoint(tmp_path / "out") as made_again:
        assert len(made_again.files) > before > 1


def test_a_resharded_gguf_keeps_its_vocabulary(made, tmp_path):
    """No tokenizer.model lies beside a GGUF: the key-values go on as they are."""
    path, _ = made("gguf-gguf")
    with open_checkpoint(path) as first:
        expected = {k: v for k, v in first.catalog.metadata.items() if k.startswith("tokenizer.")}
    with open_checkpoint(convert(path, "gguf-gguf", tmp_path / "out")) as second:
        found = {k: v for k, v in second.catalog.metadata.items() if k.startswith("tokenizer.")}
    assert found == expected
    assert len(found) > 8


def test_an_old_gguf_lacks_keys_that_newer_ones_have(made, tiny_release, tmp_path):
    """llama.cpp of 2023 wrote neither vocab_size nor key_length; the tensors are what they were."""
    with open_checkpoint(convert(tiny_release, "gguf-gguf-split", tmp_path / "new")) as source:
        values = {}
        for key, value in source.catalog.metadata.items():
            kind = {bool: "bool", int: "u32", float: "f32", str: "str"}.get(type(value))
            inner = {"scores": "f32", "token_type": "i32"}.get(key.rpartition(".")[2], "str")
            values[key] = (kind or f"arr[{inner}]", value)
        for key in ("llama.vocab_size", "llama.attention.key_length", "general.type",
                    "llama.attention.value_length", "general.source.tool", "split.no",
                    "split.count", "split.tensors.count"):  # fmt: skip
            values.pop(key, None)
        (tmp_path / "old").mkdir()
        sink = create(tmp_path / "old" / "old.gguf", list(source.catalog.tensors.values()), values)
        for name in source.catalog.tensors:
            sink.write(name, [source.read(name)])
        sink.close()
    assert (
        contents(convert(tmp_path / "old", "pth-mistral", tmp_path / "raw"))
        == (made("pth-mistral")[1])
    )


@pytest.fixture
def dense_source(small_args):
    """Random weights of a small Mistral-7B, in raw names and in memory."""
    args = replace(small_args, n_experts=0, n_experts_per_tok=0, sliding_window=16, rope_theta=1e4)
    return random_source(args, 7, None)


@pytest.mark.parametrize("there", DENSE_NAMES)
@pytest.mark.parametrize("start", DENSE_NAMES)
def test_a_dense_model_goes_there_and_back_too(start, there, dense_source, tmp_path):
    """Weights and hyperparameters of Mistral-7B: window and theta survive every layout."""
    first = tmp_path / "first"
    prepare(dense_source, BY_NAME[start], first).run()
    back = convert(convert(first, there, tmp_path / "away"), start, tmp_path / "back")
    assert contents(back) == contents(first)
    with open_checkpoint(back) as checkpoint:
        args = open_source(checkpoint).recognized.args
    expected = dense_source.recognized.args
    for field in ("n_experts", "sliding_window", "rope_theta", "max_seq_len", "norm_eps"):
        assert getattr(args, field) == getattr(expected, field), field


def test_what_a_dense_model_has_no_layout_for_is_refused(dense_source, tmp_path):
    """Packing, fusing and splitting are about experts."""
    for name in set(NAMES) - set(DENSE_NAMES):
        with pytest.raises(UsageFault, match="has no layout") as caught:
            prepare(dense_source, BY_NAME[name], tmp_path / "x")
        assert "mistral, hf, gguf" in caught.value.hint


@pytest.mark.parametrize("vocab_size", [320, 384])
def test_8x22b_from_its_own_form_and_back(vocab_size, small_args, tmp_path):
    """consolidated.safetensors with six query heads to a key head, base vocabulary and v0.3's."""
    args = replace(small_args, dim=48, n_heads=6, n_kv_heads=1, n_experts=8, vocab_size=vocab_size)
    first = tmp_path / "first"
    prepare(random_source(args, 0, None), BY_NAME["safetensors-mistral"], first).run()
    assert (first / "consolidated.safetensors").is_file()
    hf = convert(first, "safetensors-hf", tmp_path / "hf")
    back = tmp_path / "back"
    with open_checkpoint(hf) as checkpoint:
        prepare(open_source(checkpoint), BY_NAME["safetensors-mistral"], back, 100_000).run()
    assert contents(back) == contents(first)
    assert (back / "consolidated-00001-of-00003.safetensors").is_file()


def test_a_sliding_window_of_a_mixture_survives_every_layout(small_args, tmp_path):
    """The packed params.json has its place for it as well."""
    args = replace(small_args, sliding_window=4096, rope_theta=1e4)
    prepare(random_source(args, 0, None), BY_NAME["pth-mistral"], tmp_path / "0").run()
    for number, name in enumerate(NAMES):
        convert(tmp_path / str(number), name, tmp_path / str(number + 1))
        with open_checkpoint(tmp_path / str(number + 1)) as checkpoint:
            found = open_source(checkpoint).recognized.args
        assert (found.sliding_window, found.rope_theta) == (4096, 1e4), name
