"""Hostile quantised GGUFs and importance matrices: refused cleanly by whoever reads them.

Rows that fill no blocks make other readers compute sizes of a fraction of a block, and a scale may
be any of the 65,536 halves.
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from dataclasses import replace

import pytest

from moetool.cli.app import run
from moetool.convert.job import open_source, prepare
from moetool.convert.quantised.mixes import Quantization
from moetool.convert.quantised.recipe import Recipe
from moetool.convert.synthetic import GEOMETRIES, random_source
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint
from moetool.formats.imatrix import Entry, Imatrix, write_imatrix

NAME = "blk.1.ffn_down_exps.weight"
F16, Q4_K, REMOVED, NONE_SUCH = 1, 12, 4, 4_000_000_000  # numbers of types


ARGS = replace(GEOMETRIES["tiny"], n_experts=2, vocab_size=56)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A sound quantised GGUF, all of it small enough to be written again and again."""
    out, recipe = tmp_path_factory.mktemp("quantised") / "good", Recipe(Quantization("q8_0"))
    prepare(random_source(ARGS, 0, None), find_target("gguf", None), out, recipe=recipe).run()
    return out / "good.gguf"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A raw release that could be quantised."""
    out = tmp_path_factory.mktemp("release") / "raw"
    prepare(random_source(ARGS, 0, None), find_target("pth", "mistral"), out).run()
    return out


def info_at(raw, name):
    """Where the number of dimensions of a tensor stands in the header."""
    text = struct.pack("<Q", len(name)) + name.encode()
    assert raw.count(text) == 1
    return raw.index(text) + len(text)


def with_info(raw, name, dims=None, kind=None, offset=None):
    """The file with other dimensions, another type or another place of a tensor."""
    at = info_at(raw, name)
    (n,) = struct.unpack_from("<I", raw, at)
    found = struct.unpack_from(f"<{n}QIQ", raw, at + 4)
    dims, kind = dims or found[:n], found[n] if kind is None else kind
    offset = found[n + 1] if offset is None else offset
    made = struct.pack(f"<I{n}QIQ", n, *dims, kind, offset)
    return raw[:at] + made + raw[at + len(made) :]


def place_of(raw, name):
    at = info_at(raw, name)
    (n,) = struct.unpack_from("<I", raw, at)
    return struct.unpack_from("<Q", raw, at + 8 + 8 * n)[0]


HEADERS = {
    "a row of 100": lambda raw: with_info(raw, NAME, dims=(100, 256, 2)),
    "a row of 256 + 32 for blocks of 256": lambda raw: with_info(raw, NAME, (288, 256, 2), Q4_K),
    "a row of none": lambda raw: with_info(raw, NAME, dims=(0, 256, 2)),
    "rows beyond 64 bits": lambda raw: with_info(raw, NAME, dims=(1 << 40, 1 << 40, 2)),
    "a type that was removed": lambda raw: with_info(raw, NAME, kind=REMOVED),
    "a type that never was": lambda raw: with_info(raw, NAME, kind=NONE_SUCH),
    "blocks of another type, so that others begin before they end": lambda raw: with_info(
        raw, NAME, kind=F16),
    "in the place of another": lambda raw: with_info(
        raw, NAME, offset=place_of(raw, "blk.1.ffn_up_exps.weight")),
    "a block into another": lambda raw: with_info(raw, NAME, offset=place_of(raw, NAME) - 32),
    "beyond the end": lambda raw: with_info(raw, NAME, offset=1 << 50),
    "cut in the last block": lambda raw: raw[:-40],
    "cut in the middle": lambda raw: raw[: len(raw) // 2],
    "cut in the header": lambda raw: raw[: info_at(raw, NAME) + 7],
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies_is_refused_by_every_command(case, good, tmp_path, capsys):
    """Exit 4 with one line of print, and no output, whoever reads it."""
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HEADERS[case](good.read_bytes()))
    commands = [
        ["inspect", path],
        ["scan", path],
        ["convert", path, "--out", tmp_path / "out"],
        ["convert", path, "--to", "gguf", "--out", tmp_path / "out"],
    ]
    for words in commands:
        assert run([*map(str, words), "--json"]) == 4, words
        told = capsys.readouterr()
        assert json.loads(told.out)["ok"] is False
        assert "Traceback" not in told.err
    assert not list(tmp_path.glob("out*"))


def test_a_sound_one_passes(good, tmp_path):
    """So each refusal above is for its lie alone."""
    assert run(["inspect", str(good)]) == 0
    for words in (["--dtype", "bf16"], ["--to", "gguf", "--dry-run"]):
        assert run(["convert", str(good), "--out", str(tmp_path / "out"), *words]) == 0


def with_scales(path, name, value):
    """The first block of each of two rows gets another scale: 64 weights."""
    with open_checkpoint(path) as checkpoint:
        extent, info = checkpoint.catalog.extents[name], checkpoint.catalog.tensors[name]
    raw = bytearray(path.read_bytes())
    for row in (0, 5):
        struct.pack_into("<e", raw, extent.offset + row * info.row_nbytes, value)
    return bytes(raw)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scales_that_are_no_numbers(good, value, tmp_path, capsys):
    """A plausible file: inspect has nothing to say, scan finds them, no conversion hides them."""
    path = tmp_path / "hostile.gguf"
    path.write_bytes(with_scales(good, NAME, value))
    assert run(["inspect", str(path)]) == 0
    capsys.readouterr()
    assert run(["scan", str(path)]) == 3
    assert NAME in capsys.readouterr().out
    assert run(["convert", str(path), "--out", str(tmp_path / "out"), "--dtype", "f32",
                "--no-certificate", "--json"]) == 0  # fmt: skip
    counts = json.loads(capsys.readouterr().out)["casts"]["total"]
    assert counts["nan"] == 64 if math.isnan(value) else counts["nan"] < 64  # 0 * inf
    assert run(["convert", str(path), "--to", "gguf", "--dtype", "q4_0", "--out",
                str(tmp_path / "twice")]) == 4  # fmt: skip


def test_mutants_of_a_header_are_planned_or_refused(good, survive, tmp_path):
    """What is planned reads within the file."""
    raw, path = good.read_bytes(), tmp_path / "mutant.gguf"
    with open_checkpoint(good) as checkpoint:
        begin = min(extent.offset for extent in checkpoint.catalog.extents.values())
    data = raw[begin:]

    def read(head):
        path.write_bytes(head + data)
        with open_checkpoint(path) as checkpoint:
            job = prepare(open_source(checkpoint), find_target("safetensors", "hf"),
                          tmp_path / "out")  # fmt: skip
            for step in job.plan.steps:
                for part in step.parts:
                    assert checkpoint.catalog.tensors[part.source].nbytes >= part.byte_range[1]

    outcomes = survive(raw[:begin], read, 150)
    assert outcomes["refused"] > 75


MATRICES = {
    "of fewer columns": (Entry(array("f", [1.0] * 128 * 2), (1, 1)), "2 x 128"),
    "of more experts": (Entry(array("f", [1.0] * 256 * 8), (1,) * 8), "8 x 256"),
    "of as many values in other rows": (Entry(array("f", [1.0] * 512), (1,) * 8), "8 x 64"),
    "of one value": (Entry(array("f", [1.0]), (1,)), "1 x 1"),
    "of NaN": (
        Entry(array("f", [math.nan] + [1.0] * 511), (1, 1)),
        "1 of 512 values are not finite",
    ),
    "of infinity": (
        Entry(array("f", [math.inf] * 512), (1, 1)),
        "512 of 512 values are not finite",
    ),
    "of negative squares": (Entry(array("f", [-1.0] * 512), (1, 1)), "512 are negative"),
}


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
@pytest.mark.parametrize("case", MATRICES)
def test_an_importance_matrix_that_cannot_be(case, suffix, raw, tmp_path, capsys):
    """Exit 4, the entry by name, and nothing written; also of one that is another model's."""
    entry, said = MATRICES[case]
    if suffix == ".dat":
        if case == "of as many values in other rows":
            pytest.skip("the older form does not say how many matrices an entry has")
        said = said.replace("2 x 128", "256 values").replace("8 x 256", "2048 values")
        said = said.replace("1 x 1", "1 values")
    path = tmp_path / f"imatrix{suffix}"
    write_imatrix(path, Imatrix({NAME: entry}, ("text",), 1, 5))
    words = ["convert", str(raw), "--to", "gguf", "--dtype", "q4_0", "--imatrix", str(path),
             "--out", str(tmp_path / "out"), "--json"]  # fmt: skip
    for more in ([], ["--dry-run"]):
        assert run([*words, *more]) == 4
        found = json.loads(capsys.readouterr().out)
        (finding,) = found["findings"]
        assert finding.startswith(NAME)
        assert said in finding
    assert not list(tmp_path.glob("out*"))


def test_what_is_no_importance_matrix(raw, good, tmp_path, capsys):
    """A model, an empty file, a folder, a text."""
    (tmp_path / "empty.dat").touch()
    (tmp_path / "text.dat").write_text("The old lighthouse keeper climbed the stairs.")
    strangers = [good, tmp_path / "empty.dat", tmp_path / "text.dat", raw / "consolidated.00.pth",
                 tmp_path]  # fmt: skip
    for path in strangers:
        assert run(["convert", str(raw), "--to", "gguf", "--dtype", "q4_0", "--imatrix", str(path),
                    "--out", str(tmp_path / "out")]) == 4, path  # fmt: skip
        assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
