"""L4 asks transformers and llama.cpp as they are installed: near where sound, far where swapped."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch

from moetool.arch.recognize import recognize
from moetool.convert.job import open_source, prepare
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint
from moetool.model import mixtral
from moetool.model.smoke import SmokeTest, Verdict, engines
from moetool.model.smoke.logits import EXCELLENT, GOOD

pytestmark = pytest.mark.oracle

FORMATS = {"transformers": "safetensors", "llama.cpp": "gguf"}
MODULES = {"transformers": "transformers", "llama.cpp": "llama_cpp"}


@pytest.fixture(scope="module", params=FORMATS)
def engine(request):
    """An engine that is installed."""
    if find_spec(MODULES[request.param]) is None:
        pytest.skip(f"{MODULES[request.param]} is not installed, and it is the oracle")
    return request.param


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tiny_release, engine):
    """The release in the engine's format."""
    out = tmp_path_factory.mktemp("converted") / "tiny"
    convert(tiny_release, out, engine)
    return out


@pytest.fixture(scope="module")
def theirs(converted, engine):
    """What the engine says of the sound conversion, asked once in a process of its own."""
    with looking_at(converted) as test:
        answer = engines.answer(
            engines.ENGINES[engine], test.subject, test.text, test.weights.dtype
        )
    assert isinstance(answer, torch.Tensor), answer
    return answer


def convert(source, out, engine):
    with open_checkpoint(source) as checkpoint:
        prepare(open_source(checkpoint), find_target(FORMATS[engine], None), out).run()


@contextmanager
def looking_at(folder):
    """A quick test of a folder."""
    with open_checkpoint(folder) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)
        yield SmokeTest(
            checkpoint, recognized, checkpoint.directory, torch.device("cpu"), quick=True
        )


def beside(folder, theirs):
    """The check of what the runner says of a folder beside an engine's logits."""
    with looking_at(folder) as test:
        test.observe(lambda _done, _note: None)
        test.compare_logits("it", theirs)
        return next(check for check in test.checks if check.level == "L4")


def test_a_sound_conversion_is_as_the_engine_has_it(converted, theirs):
    check = beside(converted, theirs)
    assert check.verdict is Verdict.PASS, check.detail
    assert check.value < EXCELLENT


def test_maths_of_another_order_is_a_no(converted, theirs, monkeypatch):
    """The runner takes w1 for w3, as a wrong table of names would; the engine does not."""
    swiglu = mixtral.swiglu
    monkeypatch.setattr(
        mixtral, "swiglu", lambda x, w1, w2, w3, *seen: swiglu(x, w3, w2, w1, *seen)
    )
    check = beside(converted, theirs)
    assert check.verdict is Verdict.FAIL
    assert check.value > GOOD


def test_a_conversion_with_w1_and_w3_swapped_in_a_layer_is_a_no(
    theirs, engine, tiny_release, tmp_path
):
    """Beside what the engine said of the sound one: of this one it would say what we say."""
    safetensors = pytest.importorskip("safetensors.torch", reason="it writes the swapped file")
    convert(tiny_release, tmp_path / "hf", "transformers")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in safetensors.load_file(path).items()}
    for name in [n for n in tensors if ".layers.1." in n and n.endswith("w1.weight")]:
        other = name.replace("w1", "w3")
        tensors[name], tensors[other] = tensors[other], tensors[name]
    safetensors.save_file(tensors, path, metadata={"format": "pt"})
    if engine == "llama.cpp":
        convert(tmp_path / "hf", tmp_path / "gguf", engine)
    check = beside(tmp_path / ("gguf" if engine == "llama.cpp" else "hf"), theirs)
    assert check.verdict is Verdict.FAIL
    assert check.value > 10 * GOOD


def test_a_checkpoint_that_the_engine_cannot_load_is_a_no(
    converted, engine, tiny_release, tmp_path
):
    """Something that the runner has no use for is wrong in it."""
    broken = tmp_path / "broken"
    shutil.copytree(converted, broken)
    if engine == "transformers":
        path = broken / "config.json"
        path.write_text(path.read_text().replace('_range": 0.02', '_range": "x"'))
    else:
        shutil.copy(tiny_release / "tokenizer.model", broken)
        (path,) = broken.glob("*.gguf")
        before, key, behind = path.read_bytes().partition(b"tokenizer.ggml.model")
        path.write_bytes(before + key + behind.replace(b"llama", b"other", 1))
    with looking_at(broken) as test:
        test.observe(lambda _done, _note: None)
        test.ask_engine(engine)
        check = next(check for check in test.checks if check.level == "L4")
    assert check.verdict is Verdict.FAIL
    assert check.detail.startswith("it fails on this checkpoint: ")
