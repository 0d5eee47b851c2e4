"""The types that we choose are the types that llama.cpp's own quantiser writes, tensor by tensor.

It looks at names, at row lengths and at a few hyperparameters, not at how many rows there are: so
every matrix here has two, and a model of 80 layers takes a moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from moetool.arch.args import ModelArgs
from moetool.arch.mistral import DENSE_GGUF
from moetool.arch.mixtral import GGUF
from moetool.arch.schema import expand
from moetool.arch.spelling import to_gguf
from moetool.convert.quantised.mixes import MIXES, Quantization, choose, parse_overrides
from moetool.formats import open_checkpoint
from moetool.formats.gguf_types import TENSOR_TYPES
from moetool.tensors import DType

pytestmark = pytest.mark.oracle
pytest.importorskip("llama_cpp", reason="the llama extra is not installed")
gguf = pytest.importorskip("gguf", reason="it writes what is quantised")

NUMBERS = {dtype: number for number, dtype in TENSOR_TYPES.items()}
BASE = ModelArgs(
    dim=256, n_layers=12, head_dim=64, hidden_dim=256, n_heads=4, n_kv_heads=1, norm_eps=1e-5,
    vocab_size=2, n_experts=8, n_experts_per_tok=2,
)  # fmt: skip
DENSE = replace(BASE, n_experts=0, n_experts_per_tok=0)
GEOMETRIES = {
    "8 experts, 32 layers": replace(BASE, n_layers=32),
    "8 experts, 12 layers, no groups": replace(BASE, n_kv_heads=4),
    "8 experts, 80 layers": replace(BASE, n_layers=80),
    "1 expert": replace(BASE, n_experts=1, n_experts_per_tok=1),
    "4 experts": replace(BASE, n_experts=4, n_layers=16),
    "4 experts, 80 layers": replace(BASE, n_experts=4, n_layers=80),
    "16 experts, groups of 2": replace(BASE, n_experts=16, n_kv_heads=2),
    "dense, 32 layers": replace(DENSE, n_layers=32),
    "dense, no groups": replace(DENSE, n_kv_heads=4),
    "dense, 70B": replace(DENSE, n_layers=80),
    "dense, 70B with groups of 2": replace(DENSE, n_layers=80, n_kv_heads=2),
    "dense, 65B": replace(DENSE, n_layers=80, n_kv_heads=4),
    "dim 96": replace(BASE, dim=96, head_dim=24, n_layers=8),
    "dim 96, dense": replace(DENSE, dim=96, head_dim=24),
    "dim 48": replace(BASE, dim=48, head_dim=12, n_layers=8),
    "heads of 24": replace(BASE, head_dim=24, n_layers=8),
    "hidden_dim 288": replace(BASE, hidden_dim=288, n_layers=8),
    "hidden_dim 272": replace(BASE, hidden_dim=272, n_layers=8),
}
MIXTURE, PLAIN, NARROW = "8 experts, 12 layers, no groups", "dense, 32 layers", "hidden_dim 288"


@dataclass(frozen=True)
class Case:
    """A model and what is asked for; overrides are spelled as on the command line."""

    geometry: str
    mix: str
    overrides: tuple[str, ...] = ()
    pure: bool = False
    output: str | None = None
    embedding: str | None = None
    has_imatrix: bool = False

    @property
    def quantization(self):
        return Quantization(
            self.mix,
            parse_overrides(self.overrides),
            self.pure,
            DType[self.output.upper()] if self.output else None,
            DType[self.embedding.upper()] if self.embedding else None,
            self.has_imatrix,
        )


OPTIONS = [
    *[Case(where, mix, has_imatrix=True) for where in (MIXTURE, PLAIN) for mix in MIXES],
    *[Case(MIXTURE, mix, pure=True) for mix in MIXES],
    Case(NARROW, "q4_k_m", pure=True),
    Case(MIXTURE, "q4_k_m", output="q8_0"),
    Case(MIXTURE, "q4_k_m", embedding="q5_1"),
    Case(MIXTURE, "q8_0", output="bf16", embedding="f16", pure=True),
    Case(MIXTURE, "mxfp4_moe", output="q4_0", embedding="q6_k"),
    # The first match decides, also against --pure; the options decide before it.
    Case(MIXTURE, "q4_k_m", ("ffn_down=q8_0", "ffn_=q5_0", "attn_[qk]=bf16")),
    Case(MIXTURE, "q4_k_m", ("ffn_=q5_0", r"blk\.1\.attn_v=q3_k", "output=f32"), pure=True),
    Case(MIXTURE, "q3_k_m", ("output=f16", "token=q2_k"), output="q5_k"),
    Case(MIXTURE, "q2_k", (r"blk\.(0|11)\.ffn_(up|gate)_exps\.weight$=mxfp4", "^blk.1=q4_1")),
    # Where an override takes a tensor, those behind it count as one layer less: not by experts.
    Case(PLAIN, "q4_k_m", (r"blk\.[02]\.(attn_v|ffn_down)=q3_k",)),
    Case(PLAIN, "q4_k_s", (r"blk\.1\.(attn_v|ffn_down)=q8_0",)),
    Case(PLAIN, "q3_k_m", (r"blk\.0\.(attn_v|ffn_down)=q8_0",)),
    Case(MIXTURE, "q4_k_m", (r"blk\.0\.(attn_v|ffn_down)=q3_k",)),
    Case("4 experts", "q4_k_m", (r"blk\.0\.(attn_v|ffn_down)=q3_k",)),
    # Rows that fill no whole blocks of the type asked for.
    Case(NARROW, "q8_0", ("ffn_down=q6_k", "attn=q2_k")),
    Case("hidden_dim 272", "q8_0", ("ffn_down=q4_k",)),
]

QUANTISE = """
import ctypes, json, sys
import llama_cpp
from llama_cpp import llama_cpp as low
quiet = low.llama_log_callback(lambda *_: None)
low.llama_log_set(quiet, None)
for line in sys.stdin:
    job = json.loads(line)
    settings = low.llama_model_quantize_default_params()
    settings.nthread, settings.ftype, settings.pure = 1, job["file_type"], job["pure"]
    if job["output"] is not None:
        settings.output_tensor_type = job["output"]
    if job["embedding"] is not None:
        settings.token_embedding_type = job["embedding"]
    rows = [(pattern.encode(), number) for pattern, number in job["overrides"]]
    overrides = (low.llama_model_tensor_override * (len(rows) + 1))(*rows)
    settings.tt_overrides = overrides
    weighed = (low.llama_model_imatrix_data * 2)((b"-", (ctypes.c_float * 1)(1), 1))
    if job["has_imatrix"]:
        settings.imatrix = weighed
    print(low.llama_model_quantize(job["source"].encode(), job["out"].encode(), settings),
          flush=True)
"""


@cache
def shapes_of(args):
    """Names and shapes as GGUF has them, but for the rows of a matrix, which are two."""
    table = expand(GGUF if args.n_experts else DENSE_GGUF, args)
    return {
        name: stored.shape if len(stored.shape) == 1 else (*stored.shape[:-2], 2, stored.columns)
        for name, stored in table.items()
    }


def write(path, args):
    writer = gguf.GGUFWriter(path, "llama")
    add = {"u32": writer.add_uint32, "f32": writer.add_float32}
    for key, (kind, value) in to_gguf(args).items():
        add[kind](key, value)
    random = np.random.default_rng(0)
    for name, shape in shapes_of(args).items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def number(dtype):
    return None if dtype is None else NUMBERS[dtype]


def outcomes(cases, source, folder):
    """The types and the number that llama.cpp gives each case, all in one process."""
    jobs = []
    for n, case in enumerate(cases):
        asked = case.quantization
        jobs.append(asdict(case) | {
            "source": str(source),
            "out": str(folder / f"{n}.gguf"),
            "file_type": MIXES[case.mix].file_type,
            "output": number(asked.output),
            "embedding": number(asked.embedding),
            "overrides": [(pattern, number(dtype)) for pattern, dtype in asked.overrides],
        })  # fmt: skip
    done = subprocess.run([sys.executable, "-c", QUANTISE], text=True, capture_output=True,
                          input="\n".join(map(json.dumps, jobs)), check=False)  # fmt: skip
    codes = done.stdout.split()
    assert len(codes) == len(jobs), f"llama.cpp died of {cases[len(codes)]}\n{done.stderr}"
    assert set(codes) == {"0"}
    return [written(Path(job["out"])) for job in jobs]


def written(path):
    with open_checkpoint(path) as checkpoint:
        catalog = checkpoint.catalog
    types = {name: info.dtype for name, info in catalog.tensors.items()}
    return types, catalog.metadata["general.file_type"]


def differences(case, outcome):
    """What we choose otherwise: {name: (ours, theirs)}."""
    args = GEOMETRIES[case.geometry]
    ours = choose(case.quantization, shapes_of(args).items(), args)
    types, file_type = outcome
    assert set(ours) == set(types)
    assert MIXES[case.mix].file_type == file_type
    return {name: (ours[name].label, types[name].label) for name in types
            if ours[name] is not types[name]}  # fmt: skip


def compare(geometry, cases, folder):
    write(folder / "source.gguf", GEOMETRIES[geometry])
    found = outcomes(cases, folder / "source.gguf", folder)
    wrong = {case: differences(case, outcome) for case, outcome in zip(cases, found, strict=True)}
    assert {case: names for case, names in wrong.items() if names} == {}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_mix(geometry, tmp_path):
    compare(geometry, [Case(geometry, mix) for mix in MIXES], tmp_path)


@pytest.mark.parametrize("geometry", dict.fromkeys(case.geometry for case in OPTIONS))
def test_what_is_asked_for_goes_before_the_mix(geometry, tmp_path):
    compare(geometry, [case for case in OPTIONS if case.geometry == geometry], tmp_path)
