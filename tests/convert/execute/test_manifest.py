"""The manifest: true of the files, true of the source, and sealed."""

from __future__ import annotations

import hashlib
import json

import pytest
import xxhash

from moetool.convert.execute.manifest import MANIFEST, read_manifest
from moetool.errors import BadHeader, DigestMismatch
from moetool.formats import open_checkpoint


def test_it_says_what_is_there(convert, raw, tmp_path):
    """Files by SHA-256, tensors by both fingerprints, all computed here again from the bytes."""
    convert(("safetensors", "hf-fused"), max_shard_nbytes=9_000)
    out = tmp_path / "out"
    table = json.loads((out / MANIFEST).read_bytes())
    assert set(table["files"]) == {path.name for path in out.iterdir()} - {MANIFEST}
    for name, entry in table["files"].items():
        content = (out / name).read_bytes()
        assert entry == {
            "nbytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "xxh3_128": xxhash.xxh3_128_hexdigest(content),
        }
    with open_checkpoint(raw) as source, open_checkpoint(out) as written:
        assert set(table["tensors"]) == set(written.catalog.tensors)
        for name, entry in table["tensors"].items():
            assert entry["file"] == written.catalog.extents[name].path.name
            content = bytes(written.read(name))
            assert entry["xxh3_128"] == xxhash.xxh3_128_hexdigest(content)
            info, rows = written.catalog.tensors[name], entry["blocks"]["rows"]
            step = rows * 2 * (info.shape[-1] if len(info.shape) > 1 else 1)
            assert entry["blocks"]["xxh3_64"].split() == [
                xxhash.xxh3_64_hexdigest(content[at : at + step])
                for at in range(0, len(content), step)
            ]
            if len(entry["source"]) == 1:
                assert entry["source_xxh3_128"] == xxhash.xxh3_128_hexdigest(
                    source.read(entry["source"][0])
                )
        copied = {n for n, e in table["tensors"].items() if e["source_xxh3_128"] == e["xxh3_128"]}
        assert "lm_head.weight" in copied
        assert "model.layers.0.self_attn.q_proj.weight" not in copied


def test_it_knows_what_a_fetch_and_a_verify_recorded(convert, raw, tmp_path):
    """The link and the SHA-256 of the source, as long as the file is no younger than the record."""
    ours = raw / ".moetool"
    ours.mkdir()
    origin = {"name": "small", "info_hashes": ["ab" * 20], "magnet": "magnet:?xt=urn:btih:ab"}
    (ours / "release.json").write_text(json.dumps(origin))
    weights = raw / "consolidated.00.pth"
    entry = {"nbytes": weights.stat().st_size, "word": "MATCH", "sha256": "cd" * 32}
    (ours / "digests.json").write_text(json.dumps({"files": {weights.name: entry}}))
    convert()
    source = json.loads((tmp_path / "out" / MANIFEST).read_bytes())["source"]
    assert source["files"][weights.name]["sha256"] == "cd" * 32
    assert (source["magnet"], source["info_hashes"]) == (origin["magnet"], ["ab" * 20])
    lines = list(read_manifest(tmp_path / "out").trust_lines())
    assert all(line.startswith("source   NOT COVERED  ") for line in lines)
    assert "cd" * 32 in "\n".join(lines)
    assert "ab" * 20 in lines[-1]
    del entry["sha256"]  # as a fetch leaves it, which hashed every piece
    (ours / "digests.json").write_text(json.dumps({"files": {weights.name: entry}}))
    convert(out="without")
    source = json.loads((tmp_path / "without" / MANIFEST).read_bytes())["source"]
    assert source["files"][weights.name] == {"nbytes": entry["nbytes"], "verified": "MATCH"}
    weights.touch()
    convert(out="later")
    source = json.loads((tmp_path / "later" / MANIFEST).read_bytes())["source"]
    assert source["files"][weights.name] == {"nbytes": entry["nbytes"]}
    assert any(
        "no digest was known" in line for line in read_manifest(tmp_path / "later").trust_lines()
    )


def test_each_byte_of_it_is_sealed(convert, tmp_path):
    """Flipped anywhere, it is refused: its last line is the digest of the others."""
    convert()
    path = tmp_path / "out" / MANIFEST
    content = path.read_bytes()
    assert read_manifest(tmp_path / "out") is not None
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(DigestMismatch):
            read_manifest(tmp_path / "out")
    path.write_bytes(content[:-1])
    with pytest.raises(DigestMismatch):
        read_manifest(tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"files": {"../../x": {"nbytes": 1, "sha256": ""}}},
        {"files": {"x": 1}},
        {"tensors": {"t": {"file": "x"}}},
        {"tensors": {"t": {"file": "x", "blocks": {"rows": 0, "xxh3_64": ""}}}},
        {"tensors": {"t": {"file": "x", "blocks": {"rows": 1, "xxh3_64": []}}}},
    ],
)
def test_what_is_sealed_and_strange_is_refused(change, convert, tmp_path):
    """A seal anybody can make; names that leave the folder and versions unknown are no manifest."""
    from moetool.convert.execute.seal import sealed

    convert()
    path = tmp_path / "out" / MANIFEST
    table = json.loads(path.read_bytes())
    del table["manifest_sha256"]
    path.write_bytes(sealed(table | change, "manifest_sha256"))
    with pytest.raises(BadHeader):
        read_manifest(tmp_path / "out")
    path.unlink()
    assert read_manifest(tmp_path / "out") is None
