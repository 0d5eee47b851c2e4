"""What is known of a source: who is said to have published it, and what its bytes were found to be.

Three kinds of evidence: what was settled now (`certify` reads the source for it), what the last
`moetool verify` of a fetched folder has left on record, and the certificate of a source that is
itself an output. A record counts for a file of the same size that has not been written since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moetool.files.joined import status_of, whole_name
from moetool.proof.certificate.link import Link
from moetool.proof.certificate.record import read_record
from moetool.release.manifest import list_claims, post_claim
from moetool.release.verify.references import origin_words, references
from moetool.release.verify.settle import settle
from moetool.release.verify.subject import find_subject

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.release.verify.subject import Subject

Files = Mapping[str, Mapping[str, Any]]
NOT_COVERED = "NOT COVERED"
NOW = "settled now"
RECORDED = "found by the last moetool verify, not looked at again"
NOBODY = "no verification of these bytes is on record"


def settled_now(path: Path) -> Files:
    """Read a source and settle what torrent, RELEASE and known releases say of its files.

    Raises:
        Refused: what lies in its folder cannot be a release's.
        InTheWay: a file changed while it was read.
    """
    subject = find_subject(path)
    said = references(
        subject.folder, subject.meta, release=subject.release, release_md5=subject.release_md5
    )
    report = settle(said, subject.files)
    found = {}
    for file in report.files:
        digests = {digest.algorithm: digest.hex for digest in file.digests}
        name = file.path.relative_to(subject.folder).as_posix()
        found[name] = {
            "nbytes": file.nbytes,
            "sha256": digests.get("sha256", ""),
            "verified": file.word.value,
        }
    return found


def links(path: Path, files: Files, root: str, when: str = RECORDED) -> tuple[Link, ...]:
    """The links that lead to a source.

    ``files`` has size and, where they are known, SHA-256 and word of each; ``root`` is that of the
    source; ``when`` says when the words were found.

    Raises:
        Refused: what lies in its folder cannot be a release's.
    """
    subject = find_subject(path)
    return (
        Link("origin", "UNPROVEN", origin_words(subject.meta, subject.release, subject.hub)),
        *_torrent(subject, files, when),
        *_content(subject, files, when),
        *_lineage(subject, root),
    )


def _torrent(subject: Subject, files: Files, when: str) -> Iterator[Link]:
    meta = subject.meta
    if meta is None:
        return
    ours = {whole_name(file.path) or file.path for file in meta.files}
    words = {str(entry.get("verified", NOT_COVERED)) for entry in files.values()}
    covered = bool(files) and {*files} <= ours and len(words) == 1
    word = words.pop() if covered else NOT_COVERED
    yield Link("torrent", word, f"info-hash {', '.join(meta.hashes)}", _when(word, when))


def _content(subject: Subject, files: Files, when: str) -> Iterator[Link]:
    listed = _listed(subject)
    for name, entry in files.items():
        word = str(entry.get("verified", NOT_COVERED))
        known = f"sha256 {entry['sha256']}" if entry.get("sha256") else "no digest known"
        said = "".join(f", {text}" for text in listed.get(name, ()))
        text = f"{name}, {entry['nbytes']} bytes, {known}{said}"
        yield Link("content", word, text, _when(word, when))


def _lineage(subject: Subject, root: str) -> Iterator[Link]:
    """What a certificate in the source's own folder says of where the source came from."""
    record = read_record(subject.folder)
    if record is None:
        return
    source, verdict = record.table["source"], record.table["verdict"]
    word = "MATCH" if record.output["root"] == root else "MISMATCH"
    text = f"the source is on its own certificate, {verdict} with {source['name']}"
    yield Link("lineage", word, f"{text}, root {source['root']}")
    for link in record.table["chain"]:
        yield Link("lineage", NOT_COVERED, f"{link['of']} {link['word']} {link['text']}")


def _listed(subject: Subject) -> dict[str, list[str]]:
    """What RELEASE and the post say of files, by name."""
    folder = subject.folder
    there = {path: status_of(path) for path in subject.files}
    sizes = {path: status.nbytes for path, status in there.items() if status}
    claims = [*list_claims(folder, sizes)]
    if subject.release_md5:
        claims += post_claim(folder, sizes, subject.release_md5)
    found: dict[str, list[str]] = {}
    for claim in claims:
        name = claim.extents[0].path.name
        text = f"{claim.digest.algorithm} {claim.digest.hex} by {claim.reference}"
        found.setdefault(name, []).append(text)
    return found


def _when(word: str, when: str) -> str:
    return NOBODY if word == NOT_COVERED and when != NOW else when
