"""moetool and a stranger who read docs/reference/identity.md give a model the same identity.

The stranger is independent_identity.py. Its answers for hand-made tensors and for the tiny release
are in identity_vectors.json, for whoever writes a third implementation: ``completed`` makes it.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moetool.arch.args import ModelArgs
from moetool.arch.spelling import to_params_json
from moetool.convert.job import open_source, prepare
from moetool.convert.synthetic import random_source
from moetool.convert.targets import TARGETS, find_dtype
from moetool.formats import open_checkpoint
from moetool.proof import merkle
from moetool.proof.canonical import open_weights
from moetool.proof.identity import identify, leaf_data
from moetool.proof.narrow import NotHeldError, in_type
from moetool.tensors import DType

from . import independent_identity as stranger

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "identity_vectors.json").read_text())
BY_NAME = {f"{target.file_format}-{target.convention}": target for target in TARGETS}
# Numbers of two digits sort before 2 as bytes; no dimension is another, nor a multiple of 8 rows.
WIDE = ModelArgs(
    dim=40, n_layers=11, head_dim=12, hidden_dim=28, n_heads=6, n_kv_heads=3, norm_eps=3e-6,
    vocab_size=53, n_experts=12, n_experts_per_tok=3, rope_theta=12345.678, sliding_window=96,
)  # fmt: skip


def ours(path):
    """The identity by moetool."""
    with open_weights(path) as weights:
        return identify(weights)


def agreed(path):
    """The identity of a checkpoint, after both made the same, down to each leaf."""
    found, expected = ours(path), stranger.identity(path)
    leaves = sorted(found.leaves, key=lambda leaf: leaf.name.encode())
    assert [leaf.name for leaf in leaves] == [leaf.name for leaf in expected.leaves]
    for mine, theirs in zip(leaves, expected.leaves, strict=True):
        for field in ("dtype", "shape", "sha256", "xxh3_128"):
            assert getattr(mine, field) == getattr(theirs, field), (mine.name, field)
    for field in ("root", "any_order_root", "fast_root", "maths_sha256"):
        assert getattr(found, field) == getattr(expected, field), field
    assert [list(ranks) for ranks in found.expert_order] == expected.expert_order
    return expected


def converted(path, name, out, largest=None, dtype=None):
    """What lies at ``path`` in the target of that name."""
    if name.startswith("gguf"):
        pytest.importorskip("gguf", reason="the stranger reads GGUF with it (clients extra)")
    with open_checkpoint(path) as checkpoint:
        kind = find_dtype(dtype) if dtype else None
        prepare(open_source(checkpoint), BY_NAME[name], out, largest, dtype=kind).run()
    return out


def raw_tensors(args, seed=0):
    """Normal f32 values under the raw names."""
    random = torch.Generator().manual_seed(seed)
    shapes = random_source(args, 0, None).checkpoint.catalog.tensors
    return {name: torch.randn(info.shape, generator=random) for name, info in shapes.items()}


def write_raw(folder, args, tensors):
    """A raw release, written by torch."""
    folder.mkdir()
    torch.save(tensors, folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(to_params_json(args)))
    return folder


def in_turn(tensors, kinds, change):
    """Every tensor changed by another of ``kinds``, in turn."""
    return {
        name: change(tensor, kinds[number % len(kinds)])
        for number, (name, tensor) in enumerate(tensors.items())
    }


VALUES = {
    "f32": lambda tensors: tensors,
    "f16": lambda tensors: in_turn(tensors, [torch.float16], torch.Tensor.to),
    "bf16, f16 and f32 values, all stored as f32": lambda tensors: in_turn(
        tensors,
        [torch.float32, torch.bfloat16, torch.float16, torch.float32],
        lambda t, kind: t.to(kind).float(),
    ),
}
NARROWEST = {"f32": {"f32"}, "f16": {"f16"}}


@pytest.fixture(scope="module")
def release_identity(tiny_release):
    """Both agree on the release as it was published."""
    return agreed(tiny_release)


@pytest.mark.parametrize("largest", [None, 4_000_000], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", BY_NAME)
def test_the_trained_release_is_one_model(name, largest, release_identity, tiny_release, tmp_path):
    """In every layout and format, in one file and in many."""
    out = converted(tiny_release, name, tmp_path / "out", largest)
    assert agreed(out) == release_identity
    n_files = len(stranger.files_of(out))
    assert n_files > 2 if largest or name == "pth-mistral-packed" else n_files == 1


@pytest.mark.parametrize("name", ["pth-mistral", "safetensors-hf-fused", "gguf-gguf"])
def test_widening_changes_nothing(name, release_identity, tiny_release, tmp_path):
    """All tensors as f32, which is what a GGUF F32 is."""
    out = converted(tiny_release, name, tmp_path / "out", dtype="f32")
    assert agreed(out) == release_identity


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("values", VALUES)
def test_values_that_are_not_bf16(values, name, small_args, tmp_path):
    """Within a stack of experts each matrix has its own narrowest type."""
    tensors = VALUES[values](raw_tensors(small_args))
    raw = agreed(write_raw(tmp_path / "raw", small_args, tensors))
    assert agreed(converted(tmp_path / "raw", name, tmp_path / "out")) == raw
    assert {leaf.dtype for leaf in raw.leaves} == NARROWEST.get(values, {"bf16", "f16", "f32"})


def test_tensors_stored_in_four_types(small_args, tmp_path):
    """f64 that f32 does not hold, and f64 that bf16 does."""
    kinds = [torch.float64, torch.bfloat16, torch.float16, torch.float32]
    tensors = in_turn(raw_tensors(small_args), kinds, torch.Tensor.to)
    tensors["norm.weight"] = tensors["norm.weight"].double() / 3
    tensors["output.weight"] = tensors["output.weight"].to(torch.bfloat16).double()
    found = agreed(write_raw(tmp_path / "raw", small_args, tensors))
    types = {leaf.name: leaf.dtype for leaf in found.leaves}
    assert set(types.values()) == {"bf16", "f16", "f32", "f64"}
    assert (types["norm.weight"], types["output.weight"]) == ("f64", "bf16")


@pytest.mark.parametrize("name", BY_NAME)
def test_two_digits_of_layers_and_experts(name, tmp_path):
    """Random bf16 weights of another geometry and other hyperparameters."""
    prepare(random_source(WIDE, 5, None), BY_NAME["pth-mistral"], tmp_path / "raw").run()
    raw = agreed(tmp_path / "raw")
    assert agreed(converted(tmp_path / "raw", name, tmp_path / "out")) == raw


@pytest.mark.parametrize("name", ["pth-mistral", "safetensors-hf", "gguf-gguf"])
def test_a_dense_model_has_nothing_to_renumber(name, small_args, tmp_path):
    dense = {"n_experts": 0, "n_experts_per_tok": 0, "sliding_window": 16, "rope_theta": 1e4}
    args = replace(small_args, **dense)
    prepare(random_source(args, 1, None), BY_NAME["pth-mistral"], tmp_path / "raw").run()
    raw = agreed(tmp_path / "raw")
    assert raw.any_order_root == raw.root
    assert agreed(converted(tmp_path / "raw", name, tmp_path / "out")) == raw


def renumbered(tensors, layer, old_of_new):
    """The experts of a layer in another order, and the rows of its router with them."""
    prefix = f"layers.{layer}.feed_forward"
    new = dict(tensors)
    new[f"{prefix}.gate.weight"] = tensors[f"{prefix}.gate.weight"][old_of_new].clone()
    for expert, old in enumerate(old_of_new):
        for matrix in ("w1", "w2", "w3"):
            name = f"{prefix}.experts.{{}}.{matrix}.weight"
            new[name.format(expert)] = tensors[name.format(old)]
    return new


def test_renumbered_experts_have_the_same_root_in_any_order(small_args, tmp_path):
    """The orders tell which expert is which; a router left behind is another model."""
    tensors, old_of_new = raw_tensors(small_args), [2, 0, 1]
    moved = renumbered(tensors, 1, old_of_new)
    first = agreed(write_raw(tmp_path / "first", small_args, tensors))
    second = agreed(write_raw(tmp_path / "second", small_args, moved))
    assert second.any_order_root == first.any_order_root
    assert second.root != first.root
    assert second.expert_order[0] == first.expert_order[0]
    assert second.expert_order[1] == [first.expert_order[1][old] for old in old_of_new]
    gate = "layers.1.feed_forward.gate.weight"
    third = agreed(write_raw(tmp_path / "third", small_args, moved | {gate: tensors[gate]}))
    assert len({first.any_order_root, third.any_order_root}) == 2


def test_twin_experts_have_one_root_whoever_is_first(small_args, tmp_path):
    """Equal digests: the text gives no rank, the root does not need one."""
    tensors = renumbered(raw_tensors(small_args), 0, [1, 0, 1])
    first = agreed(write_raw(tmp_path / "first", small_args, tensors))
    swapped = renumbered(tensors, 0, [1, 2, 0])
    second = agreed(write_raw(tmp_path / "second", small_args, swapped))
    assert second.any_order_root == first.any_order_root


@pytest.mark.parametrize("bits", [0x8000, 0x0001, 0x7F80, 0x7FC1, 0x7F81])
def test_one_value_is_another_model(bits, small_args, tmp_path):
    """-0 for 0, a subnormal, an infinity, two NaNs: each has a root of its own, in f32 too."""
    tensors = in_turn(raw_tensors(small_args), [torch.bfloat16], torch.Tensor.to)
    tensors["norm.weight"][3] = 0
    roots = {agreed(write_raw(tmp_path / "zero", small_args, tensors)).root}
    changed = torch.tensor([bits], dtype=torch.uint16).view(torch.int16)
    tensors["norm.weight"].view(torch.int16)[3] = changed[0]
    here = agreed(write_raw(tmp_path / "here", small_args, tensors))
    wide = tensors["norm.weight"].view(torch.int16).to(torch.int32) << 16
    tensors["norm.weight"] = wide.view(torch.float32)
    assert agreed(write_raw(tmp_path / "wide", small_args, tensors)) == here
    assert len(roots | {here.root}) == 2


@pytest.mark.parametrize(
    ("bits", "at"),
    [
        pytest.param(0x7E00, 7, id="quiet"),
        pytest.param(0x7E00, 65, id="quiet in the tail"),
        pytest.param(0x7FFF, 65, id="all ones in the tail"),
        pytest.param(0x7C01, 7, id="signalling"),
    ],
)
def test_a_nan_in_f16_is_that_nan_in_f32(bits, at, small_args, tmp_path):
    """Wherever it stands: the payload moves 13 bits up, and the model is the same."""
    args = replace(small_args, dim=68)  # 64 fill vector registers of any width, 4 are left
    tensors = in_turn(raw_tensors(args), [torch.float16], torch.Tensor.to)
    narrow = tensors["norm.weight"].view(torch.int16)
    narrow[at] = bits
    wide = torch.from_numpy(stranger.widened(narrow.numpy().view("<u2")).view("<f4"))
    assert int(wide.view(torch.int32)[at]) == 0x7F800000 | (bits & 0x3FF) << 13
    first = agreed(write_raw(tmp_path / "narrow", args, tensors))
    second = agreed(write_raw(tmp_path / "wide", args, tensors | {"norm.weight": wide}))
    assert second == first


def narrowed(dtype, data):
    """The first of the four types in which moetool holds the values, and their bytes."""
    for wanted in ("bf16", "f16", "f32", "f64"):
        try:
            blocks = in_type([data], DType[dtype.upper()], DType[wanted.upper()])
            return wanted, b"".join(bytes(block) for block in blocks)
        except NotHeldError:
            continue
    return None, b""


def strangers(dtype, data):
    """The same by the stranger."""
    kind, bits = stranger.narrowest(dtype, np.frombuffer(data, stranger.WORD[dtype]))
    return kind, bits.tobytes()


def test_every_number_of_f16():
    """63,488 finite and infinite values, as f16 and as the f32 that they are."""
    words = np.arange(1 << 16, dtype="<u2")
    words = words[(words & 0x7FFF) <= 0x7C00]
    wide = stranger.widened(words)
    for stored, bits in (("f16", words), ("f32", wide)):
        assert narrowed(stored, bits.tobytes()) == strangers(stored, bits.tobytes())
        for one in bits[::17]:
            assert narrowed(stored, one.tobytes()) == strangers(stored, one.tobytes()), hex(one)


@pytest.mark.parametrize("stored", ["f32", "f64"])
def test_single_values_near_every_border(stored):
    """The neighbours of all powers of two, and bit patterns at random; 1 value, 1 type."""
    word, exponents, low = {"f32": ("<u4", 1 << 9, 23), "f64": ("<u8", 1 << 12, 52)}[stored]
    powers = np.arange(exponents, dtype=word) << np.array(low, word)
    if stored == "f64":
        powers = np.concatenate([powers[1023 - 160 : 1023 + 132], powers[::97]])
    steps = [0, 1, -1, 1 << low - 7, 1 << low - 8, 1 << low - 10, 1 << low - 11, 1 << low - 23 | 1]
    random = np.random.default_rng(3).integers(0, 1 << 8 * powers.itemsize, 800, word)
    found = set()
    for bits in (
        *(powers + np.array(step % (1 << 64), "<u8").astype(word) for step in steps),
        random,
    ):
        for one in bits:
            kind, data = narrowed(stored, one.tobytes())
            assert (kind, data) == strangers(stored, one.tobytes()), hex(one)
            found.add(kind)
    assert found == {"bf16", "f16", "f32", "f64"} - ({"f64"} if stored == "f32" else set())


def tensor_vector(given):
    """The answers for one hand-made tensor."""
    data = bytes.fromhex(given["stored_bytes"])
    bits = np.frombuffer(data, stranger.WORD[given["stored"]]).reshape(given["shape"])
    leaf = stranger.leaf_of(given["name"], given["stored"], bits)
    inputs = {key: given[key] for key in ("what", "name", "shape", "stored", "stored_bytes")}
    values = stranger.narrowest(given["stored"], bits)[1].tobytes()
    return leaf, inputs | {"type": leaf.dtype, "bytes": values.hex(), "sha256": leaf.sha256,
                           "xxh3_128": leaf.xxh3_128, "leaf": leaf.text().decode()}  # fmt: skip


def release_vector(release):
    """The answers for a checkpoint, with the texts of one leaf, one expert and section 7."""
    found = stranger.identity(release)
    first, *_ = found.leaves
    by_name = {leaf.name: leaf for leaf in found.leaves}
    expert = stranger.expert_text(by_name, 0, 0)
    maths = stranger.maths_text(stranger.hyperparameters(release))
    return {
        "leaf": first.text().decode(), "n_leaves": len(found.leaves), "root": found.root,
        "layer_0_expert_0": {"text": expert.decode(), "sha256": stranger.sha256(expert)},
        "expert_order": found.expert_order, "any_order_root": found.any_order_root,
        "fast_root": found.fast_root,
        "maths": maths.decode(), "maths_sha256": found.maths_sha256,
    }  # fmt: skip


def completed(document, release):
    """The vectors from their inputs: the stored tensors, and the tiny release."""
    leaves, tensors = zip(*map(tensor_vector, document["tensors"]), strict=True)
    roots = [
        {"leaves": sorted(leaf.name for leaf in leaves[:count]),
         "root": stranger.root_of(leaves[:count]),
         "fast_root": stranger.root_of(leaves[:count], "xxh3_128")}
        for count in range(1, 6)
    ]  # fmt: skip
    return {"about": document["about"], "tensors": list(tensors), "roots": roots,
            release.name: release_vector(release)}  # fmt: skip


def test_the_vectors_are_the_strangers(tiny_release):
    """Nothing in the file was edited by hand but its inputs."""
    assert completed(VECTORS, tiny_release) == VECTORS


@pytest.mark.parametrize("vector", VECTORS["tensors"], ids=lambda vector: vector["what"])
def test_moetool_agrees_with_a_vector(vector):
    kind, data = narrowed(vector["stored"], bytes.fromhex(vector["stored_bytes"]))
    assert (kind, data.hex()) == (vector["type"], vector["bytes"])
    digest = f"sha256:{vector['sha256']}"
    leaf = leaf_data(vector["name"], kind, tuple(vector["shape"]), digest)
    assert leaf.decode() == vector["leaf"]


@pytest.mark.parametrize("vector", VECTORS["roots"], ids=lambda vector: str(len(vector["leaves"])))
def test_moetool_agrees_with_the_roots_of_the_vectors(vector):
    of_name = {tensor["name"]: tensor for tensor in VECTORS["tensors"]}
    chosen = [of_name[name] for name in vector["leaves"]]
    assert merkle.root([tensor["leaf"].encode() for tensor in chosen]) == vector["root"]
    fast = [
        leaf_data(t["name"], t["type"], tuple(t["shape"]), f"xxh3_128:{t['xxh3_128']}")
        for t in chosen
    ]
    assert merkle.root(fast) == vector["fast_root"]


def test_moetool_agrees_with_the_vectors_of_the_release(tiny_release):
    found, expected = ours(tiny_release), VECTORS[tiny_release.name]
    for field in ("root", "any_order_root", "fast_root", "maths_sha256"):
        assert getattr(found, field) == expected[field], field
    assert [list(ranks) for ranks in found.expert_order] == expected["expert_order"]


def test_the_stranger_is_one(tiny_release):
    """As a script it prints the roots, and not a module of moetool is imported."""
    code = (
        "import runpy, sys; script, sys.argv = sys.argv[1], sys.argv[1:];"
        "runpy.run_path(script, run_name='__main__');"
        "sys.exit([name for name in sys.modules if name.partition('.')[0] == 'moetool'] or 0)"
    )
    script = HERE / "independent_identity.py"
    done = subprocess.run(
        [sys.executable, "-c", code, script, tiny_release],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    expected = VECTORS[tiny_release.name]
    for field in ("root", "any_order_root", "fast_root", "maths_sha256"):
        assert printed[field] == expected[field]
