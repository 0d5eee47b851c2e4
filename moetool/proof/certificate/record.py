"""moetool-certificate.json beside an output: written once, and checked by who holds the output.

Checking needs neither the source nor a network: every file is hashed, and the root is computed
again from the values and compared with the one on record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moetool.convert.execute.seal import read_sealed, sealed
from moetool.errors import BadHeader
from moetool.extents import Claim, Digest, Extent
from moetool.proof.canonical import open_weights
from moetool.proof.identity import identify
from moetool.reports import plain

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.proof.certificate.certificate import Certificate

CERTIFICATE = "moetool-certificate.json"
_SEAL = "certificate_sha256"


def write_record(found: Certificate) -> bytes:
    """The bytes of the record; the last line is the SHA-256 of all lines before it."""
    return sealed({"schema": found.schema, "version": found.version, **plain(found)}, _SEAL)


@dataclass(frozen=True, slots=True)
class Record:
    """A certificate that was read again."""

    table: Mapping[str, Any]

    @property
    def output(self) -> Mapping[str, Any]:
        """What it says of the output."""
        found: Mapping[str, Any] = self.table["output"]
        return found

    def sizes(self, folder: Path) -> dict[Path, int | None]:
        """The files that should be there, and how large they should be."""
        return {folder / name: int(entry["nbytes"]) for name, entry in self.output["files"].items()}

    def claims(self, folder: Path) -> Iterator[Claim]:
        """A claim for each file of the output."""
        for name, entry in self.output["files"].items():
            extent = Extent(folder / name, 0, int(entry["nbytes"]))
            yield Claim((extent,), Digest("sha256", entry["sha256"]), "certificate")

    def trust_lines(self) -> Iterator[str]:
        """What it records of the source, which nobody looked at now."""
        source = self.table["source"]
        made = f"recorded by {self.table['tool']}"
        yield f"source   NOT COVERED  {source['name']}, root {source['root']}: {made}"
        for link in self.table["chain"]:
            yield f"{link['of']:<8} NOT COVERED  {link['word']} when made: {link['text']}"


def read_record(folder: Path) -> Record | None:
    """The certificate of a folder; None where there is none.

    Raises:
        DigestMismatch: it is not as it was written.
        BadHeader: it is none, or of a version that is not known.
    """
    path = folder / CERTIFICATE
    table = read_sealed(path, _SEAL)
    if table is None:
        return None
    match table:
        case {
            "schema": "moetool.certificate",
            "version": 1,
            "tool": str(),
            "source": {"name": str(), "root": str()},
            "output": {"root": str(), "maths_sha256": str(), "files": dict(files)},
            "chain": list(chain),
        } if all(map(_is_file, files.items())) and all(map(_is_link, chain)):
            return Record(table)
    raise BadHeader("is no certificate of a version that is known", where=str(path))


def _is_file(item: tuple[str, object]) -> bool:
    name, entry = item
    match entry:
        case {"nbytes": int(nbytes), "sha256": str()}:
            return nbytes >= 0 and not set(name) & set("/\\\0")
    return False


def _is_link(link: object) -> bool:
    match link:
        case {"of": str(), "word": str(), "text": str()}:
            return True
    return False


@dataclass(frozen=True, slots=True)
class RootCheck:
    """The root on record, and the one that was computed now."""

    expected: str
    found: str
    n_tensors: int
    same_maths: bool

    @property
    def ok(self) -> bool:
        """Whether the values and the settings are those on record."""
        return self.expected == self.found and self.same_maths

    def __str__(self) -> str:
        if self.found != self.expected:
            return f"root     MISMATCH  {self.found} computed now, {self.expected} on record"
        if not self.same_maths:
            return f"root     MISMATCH  {self.found} as on record, with other hyperparameters"
        return f"root     MATCH  {self.found}, computed now from {self.n_tensors} tensors"


def check_root(
    record: Record, path: Path, progress: Callable[[int, str], None] = lambda _done, _note: None
) -> RootCheck:
    """Compute the root of an output again.

    Raises:
        Refused: it cannot be understood any more.
        ReadFailed, TruncatedFile: the machine could not read.
    """
    with open_weights(path) as weights:
        found = identify(weights, progress=progress)
    return RootCheck(
        record.output["root"],
        found.root,
        len(found.leaves),
        found.maths_sha256 == record.output["maths_sha256"],
    )
