"""What we decode is what llama.cpp's own code decodes, bit for bit; and models so stored run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from moetool.arch.recognize import recognize
from moetool.convert.job import open_source, prepare
from moetool.convert.plan import BLOCKS
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer
from moetool.quant import DECODERS, decode
from moetool.tensors import DType

pytestmark = pytest.mark.oracle
gguf = pytest.importorskip("gguf", reason="it decodes in numpy")
CPU = torch.device("cpu")
HALVES = {  # where in a block a float16 stands
    "q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "mxfp4": [],
    "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208],
}  # fmt: skip


def test_every_type_that_the_planner_takes_has_a_decoder():
    assert set(DECODERS) == BLOCKS == {DType[name.upper()] for name in HALVES}


@pytest.mark.parametrize("label", HALVES)
@pytest.mark.parametrize("scale", [1.0, 1e-7, 3e4])
def test_random_blocks_decode_to_the_same_bits(label, scale):
    """Every code and packed scale; float16 of usual size, subnormal, and at its end."""
    dtype = DType[label.upper()]
    random = np.random.default_rng(7)
    blocks = random.integers(0, 256, (3000, dtype.type_size), dtype=np.uint8)
    for at in HALVES[label]:
        values = np.clip(random.normal(0, scale, len(blocks)), -65504, 65504).astype(np.float16)
        blocks[:, at : at + 2] = values.view(np.uint8).reshape(-1, 2)
    if label == "mxfp4":
        blocks[:, 0] = random.integers(2, 251, len(blocks))  # above, weights are infinite
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[dtype.name])
    found = decode(torch.from_numpy(blocks).flatten(), dtype).numpy()
    assert np.array_equal(
        found.view(np.uint32), expected.astype(np.float32).ravel().view(np.uint32)
    )


@pytest.fixture(scope="module")
def quantised(tiny_release, tmp_path_factory):
    """The trained release in llama.cpp's own mixes, from our GGUF."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the llama extra is not installed")
    folder = tmp_path_factory.mktemp("quantised")
    with open_checkpoint(tiny_release) as checkpoint:
        prepare(open_source(checkpoint), find_target("gguf", None), folder / "whole").run()
    (source,) = (folder / "whole").glob("*.gguf")

    def make(mix):
        path = folder / mix / "model.gguf"
        if not path.exists():
            path.parent.mkdir()
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{mix}")
            files = (str(source).encode(), str(path).encode())
            assert llama_cpp.llama_model_quantize(*files, settings) == 0
        return path

    return make


def run(path, tokens, **options):
    with open_checkpoint(path) as checkpoint:
        known = recognize(checkpoint.catalog, checkpoint.directory)
        weights = open_weights(checkpoint, known, CPU, **options)
        model = Transformer(known.args, weights)
        return model.forward(tokens, model.new_cache(len(tokens))), weights


@pytest.mark.parametrize(
    ("mix", "types", "most_loss"),
    [
        ("Q8_0", {"q8_0"}, 0.01),
        ("Q4_0", {"q4_0", "q6_k"}, 0.05),
        ("Q5_1", {"q5_1", "q6_k"}, 0.02),
        ("Q4_K_M", {"q4_k", "q6_k"}, 0.05),
        ("Q5_K_M", {"q5_k", "q6_k"}, 0.02),
        ("Q3_K_M", {"q3_k"}, 0.1),
        ("Q2_K", {"q2_k", "q3_k"}, 0.5),
    ],
)
def test_a_quantised_gguf_runs(quantised, tiny_release, mix, types, most_loss):
    """With the loss of its source but for what so few bits cost; swapped nibbles would cost all."""
    path = quantised(mix)
    with open_checkpoint(path) as checkpoint:
        stored = {info.dtype.label for info in checkpoint.catalog.tensors.values()}
    assert types <= stored
    ids = torch.from_numpy(np.load(tiny_release.parent / "golden.npz")["ids"][0]).long()
    losses = []
    for where in (tiny_release, path):
        logits, _ = run(where, ids)
        losses.append(float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:])))
    assert abs(losses[1] - losses[0]) < most_loss


def test_a_quantised_gguf_gives_llama_cpps_logits(quantised, tiny_release):
    """In float32 on our side; llama.cpp rounds activations to eight bits for its products."""
    import llama_cpp

    path = quantised("Q8_0")
    ids = np.load(tiny_release.parent / "golden.npz")["ids"][0]
    ours, _ = run(path, torch.from_numpy(ids).long(), dtype=torch.float32)
    llama = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=2)
    llama.eval(ids.tolist())
    theirs = torch.from_numpy(np.array(llama.scores[: len(ids)]))
    error = (ours - theirs).square().mean() / theirs.square().mean()
    assert error < 1e-3
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.9


def test_weights_in_memory_are_the_decoded_blocks(quantised):
    """Read in pieces that end within rows, from a stacked tensor: every expert gets its own."""
    path = quantised("Q4_K_M")
    reader = gguf.GGUFReader(path)
    with open_checkpoint(path) as checkpoint:
        known = recognize(checkpoint.catalog, checkpoint.directory)
        weights = open_weights(checkpoint, known, CPU, dtype=torch.float32)
        for tensor in reader.tensors:
            if tensor.name != "blk.2.ffn_down_exps.weight":
                continue
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            for expert, matrix in enumerate(torch.from_numpy(np.array(expected))):
                name = f"layers.2.feed_forward.experts.{expert}.w2.weight"
                assert torch.equal(weights[name], matrix)
            return
    pytest.fail("no such tensor")


@pytest.mark.parametrize("mix", ["Q8_0", "Q4_K_M"])
def test_beside_its_source_a_quantised_gguf_is_within_the_band_of_its_type(
    quantised, tiny_release, moetool, mix
):
    """The band is a few times what was seen: a zeroed expert or w1 for w3 is off by all of it."""
    done = moetool("smoke-test", quantised(mix), "--against", tiny_release, "--max-tokens", 0,
                   "--json", check=0)  # fmt: skip
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    (seen, band) = (checks["lockstep"][key] for key in ("value", "expected"))
    assert band / 5 < seen < band < 0.3
