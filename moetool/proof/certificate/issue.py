"""Make a certificate: of a conversion that just ended, or of two folders that somebody has."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetool.convert.execute.identity import found_files
from moetool.convert.execute.manifest import MANIFEST, describe_source, read_manifest
from moetool.errors import DigestMismatch
from moetool.extents import Extent
from moetool.proof.canonical import open_weights, see
from moetool.proof.certificate.certificate import Certificate, certificate
from moetool.proof.certificate.chain import NOW, RECORDED, links, settled_now
from moetool.proof.certificate.comparison import Verdict, compare
from moetool.proof.certificate.record import CERTIFICATE, write_record
from moetool.proof.identity import identify
from moetool.release.verify.hashing import Wanted, read_digests

if TYPE_CHECKING:
    from moetool.convert.job import Source
    from moetool.formats import FileCheckpoint

Progress = Callable[[int, str], None]
Files = Mapping[str, Mapping[str, Any]]
SIGNATURE = "model.sig"
_NO_PART = frozenset({CERTIFICATE, SIGNATURE})  # files that speak of the others


class Certifier:
    """Certifies a conversion at its end; the certificate is kept here for who prints it.

    The output is read through the public reader, as any user's program would. ``cold``: the system
    forgets it first, so that it comes from the disk; not needed where each file was read back.
    """

    def __init__(
        self, source: Source, checkpoint: FileCheckpoint, progress: Progress, *, cold: bool
    ) -> None:
        self._source, self._checkpoint, self._progress = source, checkpoint, progress
        self._cold = cold
        self.certificate: Certificate | None = None

    def __call__(self, work: Path) -> dict[str, bytes]:
        """Compare the finished output with its source, and give the record to write beside it.

        Raises:
            DigestMismatch: the output is not the source's model; the tensors are named.
        """
        weights = see(self._checkpoint, self._source.recognized)
        written_nbytes = sum(path.stat().st_size for path in work.iterdir())
        before = identify(weights, progress=self._behind(written_nbytes))
        manifest = read_manifest(work)
        files = dict(manifest.files) if manifest else {}
        for name in files if self._cold else ():
            _forget(work / name)
        with open_weights(work) as written:
            progress = self._behind(written_nbytes + before.nbytes)
            after = identify(written, like=before, progress=progress)
            comparison = compare(weights, written, before, after)
        origins = _recorded(self._checkpoint)
        chain = links(self._checkpoint.path, origins, before.root, RECORDED)
        found = certificate(comparison, before, after, (origins, files), chain)
        if not found.ok:
            _refuse(found)
        self.certificate = found
        return {CERTIFICATE: write_record(found)}

    def _behind(self, nbytes: int) -> Progress:
        """Progress that goes on where the conversion, or the pass before, has ended."""
        return lambda done, note: self._progress(nbytes + done, note)


def certify(
    source: Path, output: Path, progress: Progress = lambda _done, _note: None
) -> Certificate:
    """Compare an output, of whatever tool, with what it should have been made of.

    Both are read whole, and each file of the output is hashed.

    Raises:
        Refused: one of them is not understood.
        ReadFailed, TruncatedFile: the machine could not read.
    """
    origins = settled_now(source)
    with open_weights(source) as ours, open_weights(output) as theirs:
        before = identify(ours, progress=progress)
        after = identify(theirs, progress=progress)
        comparison = compare(ours, theirs, before, after, progress)
        folder = theirs.checkpoint.directory
    files = _hashed(folder if output.is_dir() else output)
    chain = links(source, origins, before.root, NOW)
    return certificate(comparison, before, after, (origins, files), chain)


def _recorded(checkpoint: FileCheckpoint) -> Files:
    """The files of a source, with what a verification has left on record."""
    described = describe_source(
        checkpoint.path.name, checkpoint.directory, found_files(checkpoint.files)
    )
    files: Files = described["files"]  # type: ignore[assignment]  # the manifest's own form
    return files


def _hashed(path: Path) -> Files:
    """Size and SHA-256 of each file of an output."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    paths = [item for item in found if item.is_file() and item.name not in _NO_PART]
    wanted = {
        item: Wanted((Extent(item.absolute(), 0, item.stat().st_size),), "sha256") for item in paths
    }
    digests = read_digests(wanted.values())
    return {
        item.name: {"nbytes": one.extents[0].nbytes, "sha256": digests[one].hex}
        for item, one in wanted.items()
    }


def _refuse(found: Certificate) -> None:
    """Keep an output that is not its source's model from getting its name.

    Raises:
        DigestMismatch: with the tensors.
    """
    changed = [bound.name for bound in found.bounds if not bound.rounded]
    assert found.verdict is Verdict.DIFFERENT
    raise DigestMismatch(
        f"what was written is not the source's model: root {found.output.root[:16]}…, "
        f"the source's is {found.source.root[:16]}…",
        findings=(*found.reasons, *(f"{name} has other values" for name in changed)),
        hint="the disk, the memory or moetool is not sound: run the same command again, and "
        f"report it if it says the same; {MANIFEST} in the folder has all digests",
    )


def _forget(path: Path) -> None:
    """Have the system forget what it holds of a file, so that it comes from the disk."""
    if not path.is_file():
        return
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
