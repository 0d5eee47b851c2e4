"""Bit rot: single bits flipped anywhere in a release and in a converted output, found and named.

Every flip is judged by `moetool verify` itself, called as a function: what it prints as JSON, or
the error with which it ends. The offsets are drawn with a seed, nine in ten evenly over all bytes
and the others evenly over the files, so that small ones are hit as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from moetool.arch.args import ModelArgs
from moetool.cli.verify import verify
from moetool.convert.execute.manifest import MANIFEST
from moetool.convert.execute.run import Manner
from moetool.convert.job import prepare
from moetool.convert.synthetic import random_source
from moetool.convert.targets import find_target
from moetool.errors import MoetoolError
from moetool.extents import Extent
from moetool.formats import open_checkpoint
from moetool.proof.locate import locate
from moetool.release.torrent.bencode import encode

FLIPS = 1000 if os.environ.get("MOETOOL_FAULTS") == "long" else 300  # make faults; make test
PIECE = 16_384
ARGS = ModelArgs(
    dim=64, n_layers=2, head_dim=16, hidden_dim=160, n_heads=4, n_kv_heads=2, norm_eps=1e-5,
    vocab_size=768, n_experts=3, n_experts_per_tok=2,
)  # fmt: skip


class Flip(NamedTuple):
    """One bit of one file, and the weight it is in, if it is in one: its matrix, and its row."""

    path: Path
    at: int
    bit: int
    slot: str | None
    row: int
    n_rows: int


def written(out, file_format, layout, tokenizer, largest=None):
    target = find_target(file_format, layout)
    job = prepare(random_source(ARGS, 0, tokenizer), target, out, largest)
    job.run(manner=Manner(readback=False))
    return out


@pytest.fixture(scope="module")
def tokenizer(tiny_release):
    return (tiny_release / "tokenizer.model").read_bytes()


@pytest.fixture(scope="module")
def release(tmp_path_factory, tokenizer):
    """A published release: weights, params.json, tokenizer, RELEASE, and the torrent beside."""
    folder = written(tmp_path_factory.mktemp("published") / "small", "pth", "mistral", tokenizer)
    (folder / MANIFEST).unlink()
    lines = [
        f" ║  {hashlib.md5((folder / name).read_bytes()).hexdigest()}  {name}  ║\n"
        for name in ("consolidated.00.pth", "tokenizer.model")
    ]
    (folder / "RELEASE").write_text("".join(lines), encoding="utf-8")
    paths = sorted(folder.iterdir())
    stream = b"".join(path.read_bytes() for path in paths)
    pieces = [stream[at : at + PIECE] for at in range(0, len(stream), PIECE)]
    info = {
        b"name": folder.name.encode(),
        b"piece length": PIECE,
        b"files": [{b"length": p.stat().st_size, b"path": [p.name.encode()]} for p in paths],
        b"pieces": b"".join(hashlib.sha1(piece).digest() for piece in pieces),
    }
    folder.with_name(f"{folder.name}.torrent").write_bytes(encode({b"info": info}))
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tokenizer):
    """A converted output: two shards, index, side files and manifest."""
    out = written(
        tmp_path_factory.mktemp("converted") / "hf", "safetensors", "hf", tokenizer, 400_000
    )
    assert len(list(out.glob("*.safetensors"))) == 2
    return out


def judge(folder):
    """What `moetool verify --json` says: its exit code and its document, or its error."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            verify(folder, json=True, quiet=True)
    except typer.Exit as leaving:
        return leaving.exit_code, json.loads(said.getvalue())
    except MoetoolError as error:
        return error.exit_code, {"files": [], "damaged": [str(error)]}
    return 0, json.loads(said.getvalue())


def drawn(folder, n):
    """Seeded flips, and for each which weight of the sound checkpoint it is in."""
    draw = random.Random(20240613)
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    sizes = {path: path.stat().st_size for path in paths}
    with open_checkpoint(folder) as checkpoint:
        catalog = checkpoint.catalog
    for number in range(n):
        weights = list(sizes.values()) if number % 10 else None
        path = draw.choices(paths, weights)[0]
        at, bit = draw.randrange(sizes[path]), draw.randrange(8)
        (place, *_) = locate(catalog, folder, Extent(path, at, 1))
        slot = place.what if place.tensor else None
        n_rows = catalog.tensors[place.tensor].shape[0] if place.tensor else 0
        yield Flip(path, at, bit, slot, place.start, n_rows)


def flip(path, at, bit):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def rows_named(document, path, slot):
    """The numbers of rows that a line names for this tensor of this file, or None."""
    words = rf"^{re.escape(path.name)} bytes \d+-\d+: {re.escape(slot)} rows? (\d+)(?:-(\d+))?\b"
    for line in document["damaged"]:
        found = re.search(words, line)
        if found:
            return range(int(found[1]), int(found[2] or found[1]) + 1)
    return None


def campaign(folder):
    """Flip, judge, flip back. Counts by what went well, and the flips that did not."""
    assert judge(folder)[0] == 0
    counts, bad, by_file = Counter(), [], Counter()
    for each in drawn(folder, FLIPS):
        flip(each.path, each.at, each.bit)
        try:
            code, document = judge(folder)
        finally:
            flip(each.path, each.at, each.bit)
        blamed = {Path(f["path"]).name for f in document["files"] if f["word"] == "MISMATCH"}
        name = each.path.name
        told = name in blamed or any(name in line for line in document["damaged"])
        by_file[name] += 1
        counts["detected"] += code == 3
        counts["file named"] += told
        counts["no other file blamed"] += not blamed - {name}
        if each.slot:
            rows = rows_named(document, each.path, each.slot)
            counts["in tensors"] += 1
            counts["tensor and row named"] += rows is not None and each.row in rows
            counts["rows named"] += len(rows or ())
            counts["rows there"] += each.n_rows
        if code != 3 or not told:
            bad.append((each, code, document["damaged"]))
    assert judge(folder)[0] == 0
    return counts, bad, by_file


@pytest.mark.long
@pytest.mark.parametrize("subject", ["release", "converted"])
def test_every_flipped_bit_is_found_and_its_place_is_named(subject, request):
    """So many flips each: all detected as a mismatch, all in the right file, the tensor and row."""
    folder = request.getfixturevalue(subject)
    counts, bad, by_file = campaign(folder)
    assert bad == []
    assert counts["detected"] == counts["file named"] == FLIPS
    assert set(by_file) == {path.name for path in folder.iterdir()}
    assert counts["in tensors"] > FLIPS // 2
    assert counts["tensor and row named"] >= 0.99 * counts["in tensors"]
    assert counts["rows named"] < 0.4 * counts["rows there"]  # and not by naming all rows
    if subject == "converted":  # pieces of a torrent run across files, digests of a manifest do not
        assert counts["no other file blamed"] == FLIPS
