"""What moetool wrote beside an output: the manifest, the certificate, a signature.

The first two are sealed, so reading them settles them; they make claims on all other files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.convert.execute.manifest import MANIFEST, Manifest, read_manifest
from moetool.proof.certificate.issue import SIGNATURE
from moetool.proof.certificate.record import CERTIFICATE, Record, read_record

if TYPE_CHECKING:
    from moetool.extents import Claim
    from moetool.tensors import Catalog


@dataclass(frozen=True, slots=True)
class Beside:
    """The records of a folder, each None where there is none."""

    folder: Path
    manifest: Manifest | None
    record: Record | None

    def judged(self, files: Mapping[Path, int | None], *, whole: bool) -> dict[Path, int | None]:
        """The files to judge, with the sizes that are promised; those that are missing as well.

        ``whole``: the folder was asked about, not one file of it.
        """
        promised = self.record.sizes(self.folder) if self.record else {}
        promised |= self.manifest.sizes(self.folder) if self.manifest else {}
        found = {path: promised.get(path, size) for path, size in files.items()}
        found |= promised if whole else {}
        for name in self._settled():
            found.pop(self.folder / name, None)
        return found

    def claims(self, catalogs: Sequence[Catalog]) -> Iterator[Claim]:
        """What they say of files and of tensors."""
        if self.manifest:
            yield from self.manifest.claims(self.folder, catalogs)
        if self.record:
            yield from self.record.claims(self.folder)

    def trust_lines(self) -> Iterator[str]:
        """What they record of the source, which nobody looked at now."""
        if self.record:
            yield from self.record.trust_lines()
        elif self.manifest:
            yield from self.manifest.trust_lines()

    def _settled(self) -> Iterator[str]:
        if self.manifest:
            yield MANIFEST
        if self.record:
            yield CERTIFICATE
        if self.manifest or self.record:
            yield SIGNATURE  # speaks of the others; --verify-signature checks it


def read_beside(folder: Path) -> Beside:
    """Read the records of a folder.

    Raises:
        DigestMismatch: one is not as it was written.
        BadHeader: one is of a version that is not known.
    """
    return Beside(folder, read_manifest(folder), read_record(folder))
