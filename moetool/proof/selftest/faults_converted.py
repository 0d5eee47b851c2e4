"""Converted files that were damaged, renamed or mixed, with their manifest and without."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from moetool.convert.execute.journal import Journal, read_journal
from moetool.convert.execute.manifest import MANIFEST
from moetool.proof.selftest.edit import (
    append,
    cut,
    edit_json,
    find,
    flip,
    overwrite,
    substitute,
    swap_files,
)
from moetool.proof.selftest.fault import Fault, Kind, copied

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "model.safetensors.index.json"
ONE = "model.safetensors"
EARLY = "model.layers.0.self_attn.q_proj.weight"  # in the first shard
TENSOR = "model.layers.2.block_sparse_moe.experts.5.w2.weight"
_NAMED = r"damaged: .*layers\.2 expert 5 w2 rows? \d+"


def _shard(folder: Path, number: int) -> Path:
    return sorted(folder.glob("model-*-of-*.safetensors"))[number]


def _weight(folder: Path) -> None:
    from moetool.formats import open_checkpoint

    with open_checkpoint(folder) as checkpoint:
        extent = checkpoint.catalog.extents[TENSOR]
    flip(extent.path, extent.offset + 17 * 512 + 1, 6)


def _stale_index(folder: Path) -> None:
    """The index puts a tensor of the first shard into the second."""

    def change(index: dict[str, Any]) -> None:
        first = next(iter(index["weight_map"]))
        index["weight_map"][first] = _shard(folder, 1).name

    edit_json(folder / INDEX, change)


def _swap_shards(folder: Path) -> None:
    swap_files(_shard(folder, 0), _shard(folder, 1))


def _lying_manifest(folder: Path) -> None:
    """A digest of the manifest edited, and its last line computed anew: it looks whole."""
    raw = (folder / MANIFEST).read_bytes()
    entry = json.loads(raw)["files"][_shard(folder, 0).name]["sha256"].encode()
    head, seal, _ = raw.replace(entry, entry[::-1]).rpartition(b'\n "manifest_sha256": "')
    closing = (hashlib.sha256(head).hexdigest() + '"\n}\n').encode()
    (folder / MANIFEST).write_bytes(head + seal + closing)


def _lying_journal(unfinished: Path) -> None:
    """A weight of a finished shard flipped, and every digest of it in the journal made anew."""
    import xxhash

    from moetool.formats import open_checkpoint

    past = read_journal(unfinished)
    record = next(iter(past.shards.values()))
    path = unfinished / record.file_name
    with open_checkpoint(path) as checkpoint:
        extent = checkpoint.catalog.extents[EARLY]
        flip(path, extent.offset, 6)
        altered = xxhash.xxh3_128_hexdigest(checkpoint.read(EARLY))
    raw = path.read_bytes()
    past.shards[record.file_name] = replace(
        record,
        sha256=hashlib.sha256(raw).hexdigest(),
        xxh3_128=xxhash.xxh3_128_hexdigest(raw),
        tensors=tuple(
            replace(tensor, xxh3_128=altered) if tensor.name == EARLY else tensor
            for tensor in record.tensors
        ),
    )
    Journal(unfinished, past)


def _foreign_shard(folder: Path) -> None:
    """The second shard is the first one, copied over it."""
    shutil.copy(_shard(folder, 0), _shard(folder, 1))


def _without(name: str) -> Callable[[Path], None]:
    """A sound safetensors file that lacks one tensor."""

    def damage(folder: Path) -> None:
        from moetool.formats import create, open_checkpoint

        with open_checkpoint(folder) as checkpoint:
            infos = [info for info in checkpoint.catalog.tensors.values() if info.name != name]
            sink = create(folder / "fewer.safetensors", infos, {"format": "pt"})
            for info in infos:
                sink.write(info.name, [checkpoint.read(info.name)])
            sink.close()
        (folder / "fewer.safetensors").rename(folder / ONE)

    return damage


def _swap_names(folder: Path) -> None:
    """Experts 3 and 5 of a layer exchanged by their names in the header; no byte moves."""
    path = folder / ONE
    length = 8 + int.from_bytes(path.read_bytes()[:8], "little")

    def change(header: bytes) -> bytes:
        other = {b"3": b"5", b"5": b"3"}
        return re.sub(
            rb"(layers\.2\.block_sparse_moe\.experts\.)([35])",
            lambda match: match[1] + other[match[2]],
            header,
        )

    overwrite(path, 0, change, length)


def _wrong_type(folder: Path) -> None:
    """One tensor declared as f16: as many bytes, other values."""
    entry = f'"{TENSOR}":{{"dtype":"BF16"'.encode()
    substitute(folder / ONE, entry, entry.replace(b'"BF16"', b'"F16" '))


def _gguf(folder: Path) -> Path:
    return next(folder.glob("*.gguf"))


_hf, _bare = partial(copied, "hf"), partial(copied, "bare-hf")
_shards, _with_manifest = partial(copied, "bare-hf-shards"), partial(copied, "gguf")
_bare_gguf = partial(copied, "bare-gguf")

FAULTS: tuple[Fault, ...] = (
    _hf("hf-weight-flipped", "a bit of a weight in a shard", _weight, verify=_NAMED),
    _hf("hf-header-flipped", "a bit of a name in a shard's header",
        lambda folder: flip(_shard(folder, 1), find(_shard(folder, 1), b"block_sparse_moe")),
        verify=r"MISMATCH +model-00002", inspect=r"model-00002|names"),
    _hf("config-edited", "config.json edited",
        lambda folder: substitute(folder / "config.json", b"1e-05", b"1e-06"),
        verify=r"MISMATCH +config\.json"),
    _hf("manifest-edited", "a digest of the manifest edited",
        lambda folder: flip(folder / MANIFEST, find(folder / MANIFEST, b'"sha256": "') + 12),
        verify="not as it was written"),
    _hf("manifest-lies", "a digest of the manifest edited, and its seal made anew",
        _lying_manifest, verify=r"MISMATCH +model-00001"),
    _hf("hf-shards-swapped", "two shards under each other's name", _swap_shards,
        verify=r"MISMATCH +model-0000[12]", inspect="index"),
    _hf("hf-shard-missing", "a shard is not there", lambda folder: _shard(folder, 2).unlink(),
        verify=r"model-00003.*missing", inspect=r"missing: 'model-00003"),
    _hf("hf-shard-truncated", "the last 100 bytes of a shard are missing",
        lambda folder: cut(_shard(folder, 2), 100), verify=r"MISMATCH +model-00003",
        inspect=r"model-00003"),
    _with_manifest("gguf-header-flipped", "a bit of a key in a GGUF's header",
                   lambda folder: flip(_gguf(folder), find(_gguf(folder), b"llama.block_count")),
                   verify=r"MISMATCH +gguf\.gguf", inspect=r"block_count|architecture"),
    _with_manifest("gguf-weight-flipped", "a bit of a GGUF's last weight",
                   lambda folder: flip(_gguf(folder), _gguf(folder).stat().st_size - 2),
                   verify=r"damaged: .*output rows? \d+"),
    _shards("shards-swapped", "two shards under each other's name, without a manifest",
            _swap_shards, inspect="index"),
    _shards("index-stale", "the index puts a tensor into another shard", _stale_index,
            inspect="index"),
    _shards("shard-doubled", "one shard copied over another", _foreign_shard,
            inspect="in more than one file"),
    _bare("header-flipped", "a bit of a name in the header, without a manifest",
          lambda folder: flip(folder / ONE, find(folder / ONE, b"block_sparse_moe")),
          inspect=r"names|unknown"),
    _bare("safetensors-truncated", "the last 100 bytes are missing, without a manifest",
          lambda folder: cut(folder / ONE, 100), inspect=r"expected \d+ bytes"),
    _bare("safetensors-appended", "16 bytes behind the last tensor, without a manifest",
          lambda folder: append(folder / ONE, b"\0" * 16), inspect="tensors end at byte"),
    _bare_gguf("gguf-truncated", "the last 100 bytes are missing, without a manifest",
               lambda folder: cut(_gguf(folder), 100), inspect=r"gguf"),
    _bare("tensor-missing", "a sound file that lacks one expert's w2", _without(TENSOR),
          kind=Kind.SEMANTIC, inspect=r"missing .*layers\.2.*experts\.5\.w2"),
    _bare("names-swapped", "experts 3 and 5 of one layer exchanged by name in the header",
          _swap_names, kind=Kind.SEMANTIC,
          diff="layers 2: experts of A in the order of B: 0 1 2 5 4 3 6 7"),
    _bare("type-wrong", "one tensor declared as f16, which it is not", _wrong_type,
          kind=Kind.SEMANTIC, diff="stored as bf16 in A and f16 in B: 1 tensors"),
    Fault("journal-lies", Kind.SEMANTIC,
          "a conversion goes on with a spoilt shard whose journal was made to agree",
          lambda bench: bench.resume(_lying_journal),
          {"diff": r"layers\.0 wq: row \d+ column \d+ bit 6"}),
)  # fmt: skip
