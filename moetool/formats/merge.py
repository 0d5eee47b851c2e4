"""Several files, one checkpoint: their catalogs joined, and every contradiction named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.errors import BadHeader
from moetool.formats import gguf
from moetool.formats.rules import shown
from moetool.tensors import Catalog

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moetool.formats.directory import FileSet

_MOST_FINDINGS = 100


def merge(file_set: FileSet, catalogs: Sequence[Catalog]) -> Catalog:
    """Join the catalogs of a file set; the metadata are the first file's.

    Raises:
        BadHeader: a tensor in two files, a stale index, parts of different splits.
    """
    where = str(file_set.directory)
    first = catalogs[0]
    if file_set.format == "gguf" and (len(catalogs) > 1 or "split.count" in first.metadata):
        gguf.check_split(catalogs, where)
    if len(catalogs) > 1:
        _refuse_doubled(catalogs, where)
    if file_set.index is not None:
        _check_index(file_set.index, catalogs, where)
    if len(catalogs) == 1:
        return first
    return Catalog(
        first.format,
        {name: info for catalog in catalogs for name, info in catalog.tensors.items()},
        {name: extent for catalog in catalogs for name, extent in catalog.extents.items()},
        first.metadata,
        tuple(claim for catalog in catalogs for claim in catalog.claims),
    )


def _refuse_doubled(catalogs: Sequence[Catalog], where: str) -> None:
    seen: set[str] = set()
    doubled: list[str] = []
    for catalog in catalogs:
        doubled += [name for name in catalog.tensors if name in seen]
        seen.update(catalog.tensors)
    if doubled:
        raise BadHeader(
            f"{len(doubled)} tensors are in more than one file",
            where=where,
            hint="files of two uploads are mixed; give one file, or sort them apart",
            findings=tuple(f"twice: {shown(name)}" for name in doubled[:_MOST_FINDINGS]),
        )


def _check_index(index: Mapping[str, str], catalogs: Sequence[Catalog], where: str) -> None:
    """An index names every tensor of its shards, each in the shard where it is."""
    found = {
        name: extent.path.name for catalog in catalogs for name, extent in catalog.extents.items()
    }
    wrong = [name for name in {**index, **found} if index.get(name) != found.get(name)]
    if wrong:
        raise BadHeader(
            f"the index and the shards disagree on {len(wrong)} tensors",
            where=where,
            hint="the index is stale; fetch it and the shards from one place",
            findings=tuple(
                f"{shown(name)}: the index says {shown(index.get(name))}, "
                f"it is in {shown(found.get(name))}"
                for name in wrong[:_MOST_FINDINGS]
            ),
        )
