"""transformers loads what we convert: same logits, same text, same token ids."""

import json
import shutil

import numpy as np
import pytest

from moetool.convert.job import open_source, prepare
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip("transformers", reason="the clients extra is not installed")
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module", params=["hf", "hf-fused"])
def converted(request, tmp_path_factory, tiny_release):
    """The trained tiny release, converted from raw, in several shards."""
    out = tmp_path_factory.mktemp("converted") / request.param
    target = find_target("safetensors", request.param)
    with open_checkpoint(tiny_release) as checkpoint:
        prepare(open_source(checkpoint), target, out, 4_000_000).run()
    return out


@pytest.fixture(scope="module")
def model(converted):
    """The converted checkpoint in transformers, float32."""
    loaded, info = transformers.MixtralForCausalLM.from_pretrained(
        converted, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return loaded.eval()


@pytest.fixture(scope="module")
def arrays(tiny_release):
    """Golden logits made by an independent conversion."""
    return np.load(tiny_release.parent / "golden.npz")


def test_logits_are_the_golden_ones(model, arrays):
    """An independent conversion of the same release gives the same logits."""
    for ids, expected in zip(arrays["ids"], arrays["logits"], strict=True):
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids)[None].long()).logits[0]
        assert (logits - torch.from_numpy(expected)).abs().max() <= 1e-4


def test_greedy_text_is_the_golden_one(model, golden):
    """48 tokens of each prompt, token by token."""
    for prompt in golden["greedy"].values():
        ids = torch.tensor([prompt["prompt_ids"]])
        mask, n_tokens = torch.ones_like(ids), len(prompt["output_ids"])
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=n_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out[0, ids.shape[1] :].tolist() == prompt["output_ids"]


def test_config_survives_as_the_model_it_was(converted, model):
    """theta, window and context are read as written, whatever the version's defaults."""
    config = json.loads((converted / "config.json").read_text())
    read = model.config
    theta = getattr(read, "rope_theta", None) or read.rope_parameters["rope_theta"]
    assert theta == config["rope_theta"] == 1e6
    assert read.sliding_window is None
    assert read.max_position_embeddings == 32768
    assert read.num_experts_per_tok == 2


def same_ids(folder, model_file, hostile_strings):
    import sentencepiece

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    wrong = [
        text
        for text in hostile_strings(1500)
        if tokenizer(text)["input_ids"] != [1, *reference.encode(text)]
    ]
    assert wrong == []
    decoded = [
        text
        for text in hostile_strings(300)
        if tokenizer.decode(reference.encode(text)) != reference.decode(reference.encode(text))
    ]
    assert decoded == []


def test_token_ids_are_sentencepieces(converted, hostile_strings):
    """1,500 strings, control characters and literal <s> among them."""
    same_ids(converted, converted / "tokenizer.model", hostile_strings)


def test_the_real_tokenizer_of_the_release_too(tmp_path, small_args, hostile_strings):
    """The 2023 release's own tokenizer.model: known digest, same ids in transformers."""
    import hashlib
    from importlib.resources import files

    pytest.importorskip("mistral_common", reason="it carries the release's tokenizer")
    from moetool.arch import spelling
    from moetool.convert.tokenizer_json import tokenizer_config, tokenizer_json
    from moetool.formats.sentencepiece import read_vocabulary
    from moetool.release.manifest import find_release

    content = (files("mistral_common") / "data" / "tokenizer.model.v1").read_bytes()
    known = {file.path: file for file in find_release("mixtral-8x7b-32kseqlen").files}
    published = {digest.algorithm: digest.hex for digest in known["tokenizer.model"].digests}
    assert hashlib.md5(content).hexdigest() == published["md5"]
    assert hashlib.sha256(content).hexdigest() == published["sha256"]
    assert len(content) == known["tokenizer.model"].nbytes
    vocabulary = read_vocabulary(content)
    (tmp_path / "tokenizer.model").write_bytes(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(vocabulary)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(vocabulary, 32768)))
    config = spelling.to_config_json(small_args, "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(config))
    same_ids(tmp_path, tmp_path / "tokenizer.model", hostile_strings)


def tensors_of(folder):
    """All tensors of a folder of safetensors."""
    from safetensors.torch import load_file

    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def equal_tensors(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_what_transformers_saves_is_what_we_wrote(converted, tmp_path):
    """save_pretrained of the loaded model: the files of the layout it came from, bit for bit."""
    loaded = transformers.MixtralForCausalLM.from_pretrained(converted, dtype=torch.bfloat16)
    loaded.save_pretrained(tmp_path / "theirs")
    equal_tensors(tensors_of(converted), tensors_of(tmp_path / "theirs"))


def test_the_fused_layout_is_what_transformers_holds_in_memory(converted, tmp_path):
    """state_dict of the loaded model, name for name and bit for bit."""

    loaded = transformers.MixtralForCausalLM.from_pretrained(converted, dtype=torch.bfloat16)
    with open_checkpoint(converted) as checkpoint:
        target = find_target("safetensors", "hf-fused")
        prepare(open_source(checkpoint), target, tmp_path / "fused").run()
    equal_tensors(tensors_of(tmp_path / "fused"), dict(loaded.state_dict()))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A random MistralForCausalLM with a window of 24, as transformers saves it."""
    config = transformers.MistralConfig(
        vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=24,
        max_position_embeddings=512, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dense") / "theirs"
    transformers.MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_a_dense_mistral_of_transformers_goes_to_raw_and_back(dense, tmp_path):
    """Bit-identical after raw .pth and after GGUF, and loaded again with the same config."""

    expected, source = tensors_of(dense), dense
    for step, words in enumerate([("pth", None), ("gguf", None), ("safetensors", "hf")]):
        with open_checkpoint(source) as checkpoint:
            prepare(open_source(checkpoint), find_target(*words), tmp_path / str(step)).run()
        source = tmp_path / str(step)
    equal_tensors(tensors_of(source), expected)
    theirs = transformers.AutoConfig.from_pretrained(dense)
    ours = transformers.AutoConfig.from_pretrained(source)
    assert type(ours) is type(theirs)
    for field in ("sliding_window", "max_position_embeddings", "rms_norm_eps", "head_dim"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.rope_parameters["rope_theta"] == theirs.rope_parameters["rope_theta"] == 1e4


def test_a_dense_mistral_has_transformers_logits_in_our_runner(dense, tmp_path):
    """Through our raw .pth, beyond the window: one SwiGLU for each layer, no router."""
    from moetool.model.load import open_weights
    from moetool.model.mixtral import Transformer

    with open_checkpoint(dense) as checkpoint:
        prepare(open_source(checkpoint), find_target("pth", None), tmp_path / "raw").run()
    theirs = transformers.MistralForCausalLM.from_pretrained(
        dense, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = torch.randint(101, (80,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(tokens[None]).logits[0]
    with open_checkpoint(tmp_path / "raw") as checkpoint:
        recognized = open_source(checkpoint).recognized
        weights = open_weights(checkpoint, recognized, torch.device("cpu"), torch.float32)
        ours = Transformer(recognized.args, weights)
        logits = ours.forward(tokens, ours.new_cache(80))
    assert (logits - expected).abs().max() < 1e-4 * max(1.0, float(expected.std()))


def test_control_tokens_of_a_chat_template_are_tokens(tiny_release, tmp_path):
    """A template spells them as text, and transformers takes them for what they are."""
    source = tmp_path / "source"
    shutil.copytree(tiny_release, source)
    (source / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{{ eos_token }}"
        "{% endfor %}"
    )
    with open_checkpoint(source) as checkpoint:
        target = find_target("safetensors", None)
        prepare(open_source(checkpoint), target, tmp_path / "hf").run()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=False)
    assert (ids[0], ids[-1]) == (1, 2)
    assert not {1, 2} & set(ids[1:-1])
