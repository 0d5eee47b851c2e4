"""Our importance matrix beside what transformers and llama.cpp multiply, and the gguf package."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from moetool.arch.mixtral import MIXTRAL
from moetool.arch.recognize import recognize
from moetool.convert.job import open_source, prepare
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint
from moetool.formats.imatrix import Imatrix, read_imatrix, write_imatrix
from moetool.model.imatrix import Collector, cut_in_chunks, gather
from moetool.model.load import open_weights
from moetool.model.mixtral import Transformer
from moetool.model.tokenizer import open_tokenizer
from moetool.tensors import DType

pytestmark = pytest.mark.oracle
SIZE = 128  # tokens of a chunk
N_LAYERS, N_EXPERTS = 4, 8


@pytest.fixture(scope="module")
def chunks(tiny_release):
    """Three chunks of the release's own text."""
    text = (tiny_release.parent / "smoke_text.txt").read_text()
    with open_checkpoint(tiny_release) as checkpoint:
        tokenizer = open_tokenizer(checkpoint.catalog, checkpoint.directory)
    return cut_in_chunks(tokenizer.encode(text), SIZE, tokenizer.bos)[:3]


@pytest.fixture(scope="module")
def ours(tiny_release, chunks):
    """What we gather, in float32, output included."""
    with open_checkpoint(tiny_release) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)
        weights = open_weights(checkpoint, recognized, torch.device("cpu"), torch.float32)
        collector = Collector(MIXTRAL.convention("gguf"), N_EXPERTS)
        gather(Transformer(recognized.args, weights), chunks, collector, with_output=True)
    return Imatrix(collector.entries(), ("smoke_text.txt",), len(chunks), SIZE)


def same(ours, theirs, counts, rel):
    """Sums of every matrix, ``[matrices, columns]`` in float64, and the tokens of each."""
    assert set(theirs) == set(ours.entries)
    for name, sums in theirs.items():
        entry = ours.entries[name]
        assert list(entry.counts) == list(counts[name]), name
        found = np.array(entry.sums).reshape(sums.shape)
        assert np.abs(found - sums).max() <= rel * sums.max(), name


class Recorder(TorchFunctionMode):
    """Adds up squares of what goes through linear, by the address of the matrix."""

    def __init__(self, matrices):
        super().__init__()
        self.sums, self.counts = {}, {}
        self.of = {tensor.data_ptr(): name for name, tensor in matrices.items()}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, name = args[0].flatten(0, -2).double(), self.of[args[1].data_ptr()]
            self.sums[name] = self.sums.get(name, 0) + x.square().sum(0).numpy()
            self.counts[name] = self.counts.get(name, 0) + len(x)
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def transformers_model(tmp_path_factory, tiny_release):
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    out = tmp_path_factory.mktemp("imatrix") / "hf"
    with open_checkpoint(tiny_release) as checkpoint:
        prepare(open_source(checkpoint), find_target("safetensors", "hf"), out).run()
    return transformers.MixtralForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def matrices_of(model):
    """Their matrices by GGUF name, experts by number; w1 and w3 are one, for the same input."""
    found = {"output.weight": model.lm_head.weight}
    for number, layer in enumerate(model.model.layers):
        attention, experts = layer.self_attn, layer.mlp.experts
        for c in "qkv":
            found[f"blk.{number}.attn_{c}.weight"] = getattr(attention, f"{c}_proj").weight
        found[f"blk.{number}.attn_output.weight"] = attention.o_proj.weight
        found[f"blk.{number}.ffn_gate_inp.weight"] = layer.mlp.gate.weight
        for expert in range(N_EXPERTS):
            found[f"blk.{number}.ffn_gate_exps.weight", expert] = experts.gate_up_proj[expert]
            found[f"blk.{number}.ffn_down_exps.weight", expert] = experts.down_proj[expert]
    return found


def test_sums_are_those_of_transformers(ours, transformers_model, chunks):
    recorder = Recorder(matrices_of(transformers_model))
    with torch.inference_mode(), recorder:
        for chunk in chunks:
            transformers_model(chunk[None])
    sums, counts = {}, {}
    for key in recorder.of.values():
        if isinstance(key, str):
            sums[key], counts[key] = recorder.sums[key][None], [recorder.counts[key]]
    for layer in range(N_LAYERS):
        for theirs, names in (("gate", ("gate", "up")), ("down", ("down",))):
            keys = [(f"blk.{layer}.ffn_{theirs}_exps.weight", e) for e in range(N_EXPERTS)]
            for kind in names:
                name = f"blk.{layer}.ffn_{kind}_exps.weight"
                sums[name] = np.stack([recorder.sums[key] for key in keys])
                counts[name] = [recorder.counts[key] for key in keys]
    same(ours, sums, counts, 1e-4)


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_the_file_goes_round(ours, tmp_path, suffix):
    write_imatrix(tmp_path / f"i{suffix}", ours)
    found = read_imatrix(tmp_path / f"i{suffix}")
    assert set(found.entries) == set(ours.entries)
    for name in ours.entries:
        expected = ours.importance(name)
        # means times calls, divided by calls: float32 rounds twice more
        assert list(found.importance(name)) == pytest.approx(list(expected), rel=3e-7)


def test_the_gguf_package_reads_it(ours, tmp_path):
    """Names, shapes, types, values; dimensions come innermost first there."""
    gguf = pytest.importorskip("gguf", reason="the oracle of GGUF")
    write_imatrix(tmp_path / "i.gguf", ours)
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items() if "." in key}
    assert {k: v for k, v in fields.items() if not k.startswith("GGUF.")} == {
        "general.type": "imatrix",
        "imatrix.datasets": ["smoke_text.txt"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": SIZE,
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * len(ours.entries)
    for name, entry in ours.entries.items():
        sums, counts = tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"]
        n, columns = len(entry.counts), len(entry.sums) // len(entry.counts)
        assert {sums.tensor_type, counts.tensor_type} == {gguf.GGMLQuantizationType.F32}
        assert sums.shape.tolist() == ([columns, n] if n > 1 else [columns])
        assert counts.shape.tolist() == ([1, n] if n > 1 else [1])
        assert np.array_equal(sums.data.ravel(), np.array(entry.sums, np.float32))
        assert counts.data.ravel().tolist() == list(entry.counts)


def test_what_the_gguf_package_writes_is_read(ours, tmp_path):
    """A file of its writer, with a tensor of sums of activations that newer tools add."""
    gguf = pytest.importorskip("gguf", reason="the oracle of GGUF")
    writer = gguf.GGUFWriter(tmp_path / "i.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a", "b"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 512)
    name = "blk.0.ffn_down_exps.weight"
    sums = np.array([[4, 8, 2], [0, 0, 0]], np.float32)
    writer.add_tensor(f"{name}.in_sum2", sums)
    writer.add_tensor(f"{name}.counts", np.array([[4], [0]], np.float32))
    writer.add_tensor(f"{name}.in_sum", sums)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(tmp_path / "i.gguf")
    assert list(found.importance(name)) == [1, 2, 0.5, 1, 1, 1]
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("a", "b"), 2, 512)


class GgmlTensor(ctypes.Structure):
    """ggml-org/ggml: include/ggml.h, struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int), ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
    )  # fmt: skip

    def array(self, dtype):
        """A view of the elements, outermost dimension first."""
        nbytes = sum((n - 1) * step for n, step in zip(self.ne, self.nb, strict=True)) + 4
        raw = np.frombuffer((ctypes.c_char * nbytes).from_address(self.data), dtype)
        return np.lib.stride_tricks.as_strided(raw, self.ne[::-1], self.nb[::-1])


class Seen:
    """What libllama multiplies, seen through the callback that llama-imatrix uses."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def __call__(self, address, ask, _):
        node = GgmlTensor.from_address(address)
        weight, x = (GgmlTensor.from_address(node.src[i]) if node.src[i] else None for i in (0, 1))
        name = weight.name.decode() if weight and x else ""
        matrix = name.endswith(".weight") and "norm" not in name and name != "token_embd.weight"
        if ask or not matrix:
            return matrix or not ask
        if weight.ne[2] == 1:
            self.add(name, 1, 0, x.array(np.float32).reshape(-1, x.ne[0]))
            return True
        ids_TA = GgmlTensor.from_address(node.src[2]).array(np.int32)[0, 0]
        x_TAI = np.broadcast_to(x.array(np.float32)[0], (*ids_TA.shape, x.ne[0]))
        for expert in range(N_EXPERTS):
            self.add(name, N_EXPERTS, expert, x_TAI[ids_TA == expert])
        return True

    def add(self, name, n_matrices, matrix, rows):
        if name not in self.sums:
            self.sums[name] = np.zeros((n_matrices, rows.shape[-1]))
            self.counts[name] = [0] * n_matrices
        self.sums[name][matrix] += np.square(rows.astype(np.float64)).sum(0)
        self.counts[name][matrix] += len(rows)


def test_sums_are_those_of_llama_cpp(ours, chunks, tiny_release, tmp_path):
    """The same matrices under the same names, the same experts for every token."""
    llama = pytest.importorskip("llama_cpp", reason="the llama extra is not installed")
    with open_checkpoint(tiny_release) as checkpoint:
        target = find_target("gguf", "gguf")
        prepare(open_source(checkpoint), target, tmp_path / "gguf", dtype=DType.F32).run()
    path = str(next((tmp_path / "gguf").glob("*.gguf"))).encode()
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path, llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = SIZE
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # f32
    seen = Seen()
    callback = params.cb_eval = llama.ggml_backend_sched_eval_callback(seen)
    context = llama.llama_init_from_model(model, params)
    for chunk in chunks:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        batch = llama.llama_batch_init(SIZE, 0, 1)
        batch.n_tokens = SIZE
        for i, token in enumerate(chunk.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, True
        assert llama.llama_decode(context, batch) == 0
        llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    assert callback is not None  # held until here
    same(ours, seen.sums, seen.counts, 1e-3)


class GgufInitParams(ctypes.Structure):
    """ggml-org/ggml: include/gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def test_ggmls_own_reader_opens_it(ours, tmp_path):
    """What it refuses, llama-quantize takes for a file of the older form."""
    llama = pytest.importorskip("llama_cpp", reason="the llama extra is not installed")
    ggml = ctypes.CDLL(str(Path(llama.__file__).parent / "lib" / "libggml-base.so"))
    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_init_from_file.argtypes = (ctypes.c_char_p, GgufInitParams)
    ggml.gguf_find_tensor.restype = ggml.gguf_get_n_tensors.restype = ctypes.c_int64
    ggml.gguf_get_n_tensors.argtypes = ggml.gguf_free.argtypes = (ctypes.c_void_p,)
    ggml.gguf_find_tensor.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    path = tmp_path / "i.gguf"
    write_imatrix(path, ours)
    opened = ggml.gguf_init_from_file(str(path).encode(), GgufInitParams(True, None))
    assert opened
    assert ggml.gguf_get_n_tensors(opened) == 2 * len(ours.entries)
    assert ggml.gguf_find_tensor(opened, b"blk.3.ffn_up_exps.weight.counts") >= 0
    ggml.gguf_free(opened)
