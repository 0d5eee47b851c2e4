"""Whole quantised files are llama-quantize's, byte for byte, from every layout; and they run."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from array import array
from dataclasses import replace

import numpy as np
import pytest
import torch

from moetool.arch.recognize import recognize
from moetool.convert.execute.run import Manner
from moetool.convert.job import open_source, prepare
from moetool.convert.quantised.mixes import MIXES, Quantization
from moetool.convert.quantised.recipe import Recipe
from moetool.convert.synthetic import GEOMETRIES, random_source
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint
from moetool.formats.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer

pytestmark = pytest.mark.oracle
llama_cpp = pytest.importorskip("llama_cpp", reason="the llama extra is not installed")

QUICK = Manner(readback=False)
GGUF = ("gguf", None)


def convert(source, out, kind=GGUF, recipe=None, largest=None):
    """Convert, and give the files of weights in their order."""
    with open_checkpoint(source) as checkpoint:
        job = prepare(open_source(checkpoint), find_target(*kind), out, largest, recipe=recipe)
        return [out / name for name in job.run(manner=QUICK).files if name.endswith(".gguf")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quantised")


@pytest.fixture(scope="module")
def whole(folder, tiny_release):
    """The GGUF in bf16 from which llama-quantize starts."""
    return convert(tiny_release, folder / "whole")[0]


@pytest.fixture(scope="module")
def ours(folder, tiny_release):
    """Make our file of a mix, once."""

    def make(mix):
        path = folder / mix / f"{mix}.gguf"
        return path if path.exists() else convert(tiny_release, path.parent, recipe=plain(mix))[0]

    return make


def plain(mix):
    return Recipe(Quantization(mix))


def quantise(source, out, mix, imatrix=None):
    """llama-quantize in this process; an importance matrix as it is handed over by the tool."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = MIXES[mix].file_type, 1
    rows, held = [], []
    for name in imatrix.entries if imatrix else ():
        values = imatrix.importance(name)
        held.append((ctypes.c_float * len(values))(*values))
        rows.append((name.encode(), held[-1], len(values)))
    data = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows)
    if imatrix:
        settings.imatrix = data
    files = (str(source).encode(), str(out).encode())
    assert llama_cpp.llama_model_quantize(*files, settings) == 0


def assert_same(ours, theirs):
    """Types and bytes of every tensor, and the number of the mix."""
    with open_checkpoint(ours) as left, open_checkpoint(theirs) as right:
        a, b = left.catalog, right.catalog
        assert a.tensors == b.tensors
        assert a.metadata["general.file_type"] == b.metadata["general.file_type"]
        wrong = [name for name in a.tensors if bytes(left.read(name)) != bytes(right.read(name))]
    assert wrong == []


@pytest.mark.parametrize("mix", MIXES)
def test_a_file_is_llama_quantizes(ours, whole, mix, tmp_path):
    quantise(whole, tmp_path / "theirs.gguf", mix)
    assert_same(ours(mix), tmp_path / "theirs.gguf")


# Half as large as the release: searches are long where columns count differently.
ARGS = replace(GEOMETRIES["tiny"], n_experts=4, vocab_size=256)


def convert_random(out, recipe=None):
    source = random_source(ARGS, 0, None)
    prepare(source, find_target(*GGUF), out, recipe=recipe).run(manner=QUICK)
    return out / f"{out.name}.gguf"


@pytest.fixture(scope="module")
def unlike(folder):
    """Random weights, and a matrix for all of them but one: columns and experts count unlike."""
    source, random, entries = convert_random(folder / "random"), np.random.default_rng(3), {}
    with open_checkpoint(source) as checkpoint:
        tensors = checkpoint.catalog.tensors.values()
    for info in tensors:
        without = ("norm", "gate_inp", "blk.1.attn_q", "token_embd")
        if any(part in info.name for part in without):
            continue
        counts = [1 + 7 * n for n in range(info.numel // (info.shape[-2] * info.shape[-1]))]
        sums = random.exponential(1, (len(counts), info.shape[-1])) ** 3
        sums[:, ::9] = 0
        if len(counts) > 1:
            counts[2], sums[2] = 0, 0  # no token came to this expert
        entries[info.name] = Entry(array("f", sums.astype(np.float32).ravel()), tuple(counts))
    path = folder / "imatrix.gguf"
    write_imatrix(path, Imatrix(entries, ("a text",), 3, 128))
    return source, path


@pytest.mark.parametrize("mix", ["q4_k_m", "q4_0", "q2_k"])
def test_a_weighed_file_is_llama_quantizes(unlike, mix, tmp_path):
    """Each expert by its own columns, one without a token by none, one matrix without an entry."""
    source, path = unlike
    read = read_imatrix(path)
    quantise(source, tmp_path / "theirs.gguf", mix, read)
    ours = convert_random(
        tmp_path / "ours", Recipe(Quantization(mix, has_imatrix=True), (read, path))
    )
    assert_same(ours, tmp_path / "theirs.gguf")
    with open_checkpoint(ours) as checkpoint, open_checkpoint(source) as before:
        told = checkpoint.catalog.metadata.keys() - before.catalog.metadata.keys()
    assert told == {f"quantize.imatrix.{key}" for key in
                    ("file", "dataset", "entries_count", "chunks_count")}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [("pth", "mistral-packed"), ("safetensors", "hf")], ids=lambda kind: kind[1]
)
def test_whatever_the_source_is_the_bytes_are_these(ours, kind, tiny_release, tmp_path):
    """w2 transposed or queries permuted there, the matrices are the same here."""
    convert(tiny_release, tmp_path / "source", kind)
    (found,) = convert(tmp_path / "source", tmp_path / "out", recipe=plain("q4_k_m"))
    assert_same(found, ours("q4_k_m"))


GENERATE = """
import sys
import llama_cpp
for path in sys.argv[1:]:
    llama = llama_cpp.Llama(path, n_ctx=64, verbose=False, n_threads=1)
    llama.eval(llama.tokenize(b"The old lighthouse", special=False))
    for _ in range(8):
        token = llama.sample(temp=0)
        print(token, end=" ")
        llama.eval([token])
    print()
"""


def generated(*paths):
    """Eight tokens of each, in a process of its own: what llama.cpp cannot load may kill it."""
    done = subprocess.run([sys.executable, "-c", GENERATE, *map(str, paths)], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [line.split() for line in done.stdout.splitlines()]


def test_parts_are_named_and_numbered_as_llama_cpps(ours, tiny_release, tmp_path):
    """It loads all of them by the first, and they hold the bytes of the whole file."""
    parts = convert(tiny_release, tmp_path / "out", recipe=plain("q4_0"), largest=2_000_000)
    count = len(parts)
    assert count > 2
    assert [path.name for path in parts] == [
        f"out-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)
    ]
    assert_same(tmp_path / "out", ours("q4_0"))
    in_parts, whole = generated(parts[0], ours("q4_0"))
    assert in_parts == whole


RUN = ["q8_0", "q4_k_m", "q2_k"]


def test_llama_cpp_generates_from_it(ours):
    assert [len(tokens) for tokens in generated(*map(ours, RUN))] == [8] * len(RUN)


@pytest.mark.parametrize("mix", RUN)
def test_llama_cpps_logits_are_our_runners(ours, mix, tiny_release):
    """Of decoded weights in float32; llama.cpp rounds activations to eight bits for products."""
    path = ours(mix)
    ids = np.load(tiny_release.parent / "golden.npz")["ids"][0]
    with open_checkpoint(path) as checkpoint:
        known = recognize(checkpoint.catalog, checkpoint.directory)
        weights = open_weights(checkpoint, known, torch.device("cpu"), dtype=torch.float32)
        model = Transformer(known.args, weights)
        found = model.forward(torch.from_numpy(ids).long(), model.new_cache(len(ids)))
    llama = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    llama.eval(ids.tolist())
    theirs = torch.from_numpy(np.array(llama.scores[: len(ids)]))
    assert (found - theirs).square().mean() / theirs.square().mean() < 1e-3
