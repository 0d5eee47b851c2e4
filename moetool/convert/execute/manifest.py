"""moetool-manifest.json beside an output: what it was made of, and what each byte of it should be.

Digests of the files settle whether they are whole, fingerprints of the tensors where they are not.
A tensor's two fingerprints are XXH3-128 of the source's bytes it was made of, in the order of the
plan, and of its own; they are equal where the bytes were copied. Blocks of rows have an XXH3-64
each, by which `verify` places a damaged byte. Where values were cast, it says
how many were changed. Nothing in it depends on when or where it was written. The last line is the
SHA-256 of all lines before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, cast

from moetool import __version__
from moetool.convert.execute.row_blocks import spans
from moetool.convert.execute.seal import read_sealed, sealed
from moetool.errors import BadHeader
from moetool.extents import Claim, Digest, Extent
from moetool.release.hub.listing import read_listing
from moetool.release.provenance import read_origin

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.convert.casts import TensorCast
    from moetool.convert.execute.journal import ShardRecord, SourceFile, Work
    from moetool.convert.plan import Plan
    from moetool.tensors import Catalog, TensorInfo

MANIFEST = "moetool-manifest.json"
SCHEMA, VERSION = "moetool.manifest", 1
_SEAL = "manifest_sha256"


def build(
    work: Work,
    plan: Plan,
    origin: Mapping[str, object],
    shards: Sequence[ShardRecord],
    side_files: Mapping[str, Mapping[str, object]],
    measured: Mapping[str, object] | None = None,
) -> bytes:
    """The bytes of a manifest; ``side_files`` are entries as `file_entry` makes them.

    ``measured``: what is known of a change that was made to the model.
    """
    records = {tensor.name: (shard, tensor) for shard in shards for tensor in shard.tensors}
    tensors = {}
    for step in plan.steps:
        shard, tensor = records[step.target.name]
        tensors[step.target.name] = {
            "file": shard.file_name,
            "dtype": step.target.dtype.label,
            "shape": list(step.target.shape),
            "source": list(dict.fromkeys(part.source for part in step.parts)),
            "source_xxh3_128": tensor.source_xxh3_128,
            "xxh3_128": tensor.xxh3_128,
            "blocks": {"rows": tensor.blocks.rows, "xxh3_64": " ".join(tensor.blocks.xxh3_64)},
            **({"cast": _cast(tensor.cast)} if tensor.cast else {}),
        }
    files = {
        shard.file_name: {
            "nbytes": shard.nbytes,
            "sha256": shard.sha256,
            "xxh3_128": shard.xxh3_128,
        }
        for shard in shards
    }
    table = {
        "schema": SCHEMA,
        "version": VERSION,
        "tool": f"moetool {__version__}",
        "plan_id": work.plan_id,
        "source": dict(origin),
        "options": dict(work.options),
        **({"measured": dict(measured)} if measured else {}),
        "files": files | {name: dict(entry) for name, entry in side_files.items()},
        "tensors": tensors,
    }
    return sealed(table, _SEAL)


def file_entry(content: bytes) -> dict[str, object]:
    """What the manifest says of a file."""
    import xxhash

    return {
        "nbytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "xxh3_128": xxhash.xxh3_128_hexdigest(content),
    }


def describe_source(
    name: str, folder: Path | None, source_files: Sequence[SourceFile]
) -> dict[str, object]:
    """Where a conversion's input comes from: its files, and what a fetch and a verify recorded.

    The word that the verification found, and a SHA-256 if one was taken, count for a file of the
    same size that is no younger than the record.
    """
    known = _recorded_digests(folder) if folder is not None else {}
    files = {}
    for file in source_files:
        entry: dict[str, object] = {"nbytes": file.nbytes}
        nbytes, sha256, word, recorded_ns = known.get(file.name, (-1, "", "", 0))
        if nbytes == file.nbytes and file.mtime_ns <= recorded_ns:
            entry |= {"verified": word, **({"sha256": sha256} if sha256 else {})}
        files[file.name] = entry
    found: dict[str, object] = {"name": name, "files": files}
    origin = read_origin(folder) if folder is not None else None
    if origin is not None:
        found |= {"magnet": origin.magnet, "info_hashes": list(origin.info_hashes)}
    hub = read_listing(folder) if folder is not None else None
    if hub is not None:
        found |= {"hub": {"repository": hub.repository, "commit": hub.commit}}
    return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that was read: what it says of files, of tensors, and of where they come from."""

    files: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, Any]]
    source: Mapping[str, Any]
    tool: str

    def sizes(self, folder: Path) -> dict[Path, int]:
        """The files that should be there, and how large they should be."""
        return {folder / name: int(entry["nbytes"]) for name, entry in self.files.items()}

    def trust_lines(self) -> Iterator[str]:
        """Say what the manifest records of the source, and that nobody looked at it now."""
        made = f"recorded by {self.tool} when this was made of {self.source.get('name')}"
        for name, entry in dict(self.source.get("files") or {}).items():
            digest = entry.get("sha256")
            known = f"sha256 {digest}" if digest else "of which no digest was known"
            yield f"source   NOT COVERED  {name}, {entry.get('nbytes')} bytes, {known}: {made}"
        hashes = ", ".join(map(str, self.source.get("info_hashes") or ()))
        if hashes:
            yield f"source   NOT COVERED  the source came from torrent {hashes}: {made}"
        hub = self.source.get("hub")
        if isinstance(hub, dict):
            place = f"hf:{hub.get('repository')} at commit {hub.get('commit')}"
            yield f"source   NOT COVERED  the source came from {place}: {made}"

    def claims(self, folder: Path, catalogs: Sequence[Catalog]) -> Iterator[Claim]:
        """A claim for each file, and for the blocks of each tensor that the headers still place."""
        for name, entry in self.files.items():
            extent = Extent(folder / name, 0, int(entry["nbytes"]))
            yield Claim((extent,), Digest("sha256", entry["sha256"]), "manifest")
        for catalog in catalogs:
            for name, extent in catalog.extents.items():
                entry = self.tensors.get(name, {})
                if entry.get("file") == extent.path.name:
                    yield from _block_claims(extent, catalog.tensors[name], entry["blocks"])


def _block_claims(extent: Extent, info: TensorInfo, blocks: Mapping[str, Any]) -> Iterator[Claim]:
    """A claim for each block of rows of a tensor; one of which nothing is said matches nothing."""
    digests = chain(blocks["xxh3_64"].split(), repeat(""))
    for (start, nbytes), digest in zip(spans(info, blocks["rows"]), digests, strict=False):
        block = Extent(extent.path, extent.offset + start, nbytes)
        yield Claim((block,), Digest("xxh3_64", digest), f"manifest#{info.name}")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none.

    Raises:
        DigestMismatch: it is not as it was written.
        BadHeader: it is none, or of a version that is not known.
    """
    table, where = read_sealed(folder / MANIFEST, _SEAL), str(folder / MANIFEST)
    if table is None:
        return None
    match table:
        case {"schema": "moetool.manifest", "version": 1, "files": dict(), "tensors": dict()}:
            _check_names(table["files"], where)
            _check_tensors(table["tensors"], where)
            source, tool = _source(table.get("source")), str(table.get("tool"))
            return Manifest(table["files"], table["tensors"], source, tool)
    raise BadHeader("is no manifest of a version that is known", where=where)


def _check_names(files: Mapping[str, object], where: str) -> None:
    for name, entry in files.items():
        match entry:
            case {"nbytes": int(nbytes), "sha256": str()} if nbytes >= 0 and not set(name) & set(
                "/\\\0"
            ):
                continue
        raise BadHeader(f"says {entry!r} of the file {name!r}", where=where)


def _check_tensors(tensors: Mapping[str, object], where: str) -> None:
    for name, entry in tensors.items():
        match entry:
            case {"file": str(), "blocks": {"rows": int(rows), "xxh3_64": str()}} if rows > 0:
                continue
        raise BadHeader(f"says {entry!r} of the tensor {name!r}", where=where)


def _cast(cast: TensorCast) -> dict[str, object]:
    """What a cast changed: it cannot be seen in the output, and not be undone."""
    error = {}
    if cast.error is not None:
        found = cast.error
        error = {"rel_rms": found.rel_rms, "max_abs": found.max_abs, "cosine": found.cosine}
    return {"from": cast.source, "to": cast.target, **asdict(cast.count), **error}


def _source(said: object) -> Mapping[str, Any]:
    """What a manifest says of its source; nothing where that is not a source."""
    match said:
        case {"files": dict(files)} if all(isinstance(entry, dict) for entry in files.values()):
            return cast("Mapping[str, Any]", said)
    return {}


def _recorded_digests(folder: Path) -> dict[str, tuple[int, str, str, int]]:
    """Size, SHA-256, word and time of what the last verification of a fetched folder recorded."""
    path = folder / ".moetool" / "digests.json"
    try:
        recorded_ns = path.stat().st_mtime_ns
        files = json.loads(path.read_bytes())["files"]
        return {
            name: (
                int(entry["nbytes"]),
                str(entry.get("sha256", "")),
                str(entry["word"]),
                recorded_ns,
            )
            for name, entry in files.items()
            if entry["word"] in {"MATCH", "NOT COVERED"}
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # nobody verified it, or the record is not ours: then nothing is known
