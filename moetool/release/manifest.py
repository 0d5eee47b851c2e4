"""What was published: the releases we know, and the digest lists that releases carry.

A RELEASE file is a box of text whose lines hold a digest and a file's name; `md5sum` output and
LLaMA's checklist.chk are the same without the box:

     ║        1faa9bc9b20fcfe81fcd4eb7166a79e6  consolidated.00.pth               ║

A known release is a TOML file in ``data/``. What is not known of it is absent there.
"""

from __future__ import annotations

import datetime as dt
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from moetool.errors import HostileTorrent, Refused, UsageFault
from moetool.extents import Claim, Digest, Extent

RELEASE_FILE = "RELEASE"
CHECKLISTS = (RELEASE_FILE, "checklist.chk")
MAX_LIST_NBYTES = 1 << 20

_LISTED = re.compile(r"(?<![0-9a-fA-F])([0-9a-fA-F]{32})[ \t]+\*?([^\s║|]+)")


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """A published file: path below the release's folder, size and digests as far as known."""

    path: str
    nbytes: int | None = None
    digests: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class Post:
    """Where and when a release was announced."""

    author: str
    date: dt.date
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Smoke:
    """What a model of this release must do: the loss on a bundled text lies in ``loss``.

    ``loss`` is in nats a token; ``prompt`` is a beginning that suits the release.
    """

    text: str
    loss: tuple[float, float]
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class HubCopy:
    """A hub repository (OWNER/NAME) that is said to carry a release's bytes, and in which form."""

    repository: str
    form: str


@dataclass(frozen=True, slots=True)
class Release:
    """A release that is known by name and info-hash; None and empty mean not known."""

    name: str
    info_hash: str
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()
    hub: tuple[HubCopy, ...] = ()
    license: str | None = None  # as SPDX spells it
    files: tuple[ReleaseFile, ...] = ()
    release_md5: str | None = None
    post: Post | None = None
    n_params: int | None = None
    slugs: Mapping[str, str] = field(default_factory=dict)
    smoke: Smoke | None = None
    model: Mapping[str, float] = field(default_factory=dict)  # spelled as params.json does


def parse_release_file(text: str) -> tuple[ReleaseFile, ...]:
    """Read the digests of a RELEASE box, of ``md5sum`` output or of a checklist.chk.

    Raises:
        Refused: a name leaves the folder, or is listed twice with different digests.
    """
    listed: dict[str, ReleaseFile] = {}
    for md5, name in _LISTED.findall(text):
        path = name.removeprefix("./")
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise Refused("the list names a file outside its folder", where=ascii(name))
        entry = ReleaseFile(path, digests=(Digest("md5", md5.lower()),))
        if listed.setdefault(path, entry) != entry:
            raise Refused("the list gives two digests for one file", where=ascii(name))
    return tuple(listed.values())


def list_claims(folder: Path, sizes: Mapping[Path, int]) -> Iterator[Claim]:
    """What the digest lists in ``folder`` say of the files beside them.

    Args:
        folder: where RELEASE or checklist.chk may lie.
        sizes: the size that each file has or should have; a file without one is left out.
    """
    for name in CHECKLISTS:
        path = folder / name
        if not path.is_file() or path.is_symlink() or path.stat().st_size > MAX_LIST_NBYTES:
            continue
        text = path.read_bytes().decode(errors="replace")
        yield from _file_claims(folder, sizes, parse_release_file(text), name)


def known_claims(release: Release, folder: Path, sizes: Mapping[Path, int]) -> Iterator[Claim]:
    """What the bundled record of a known release says of its files."""
    yield from _file_claims(folder, sizes, release.files, f"known release {release.name}")


def post_claim(folder: Path, sizes: Mapping[Path, int], md5: str) -> Iterator[Claim]:
    """What the RELEASE line of the post says: the MD5 of the file of that name."""
    path = folder / RELEASE_FILE
    if path in sizes:
        yield Claim((Extent(path, 0, sizes[path]),), Digest("md5", md5), "post")


def _file_claims(
    folder: Path, sizes: Mapping[Path, int], files: tuple[ReleaseFile, ...], reference: str
) -> Iterator[Claim]:
    for file in files:
        path = folder / file.path
        if path in sizes:
            for digest in file.digests:
                yield Claim((Extent(path, 0, sizes[path]),), digest, reference)


@cache
def known_releases() -> tuple[Release, ...]:
    """Every release that is bundled, by name."""
    folder = resources.files(__package__) / "data"
    texts = (item.read_text() for item in folder.iterdir() if item.name.endswith(".toml"))
    return tuple(sorted((_from_toml(text) for text in texts), key=lambda item: item.name))


def find_release(name: str) -> Release:
    """Look a release up by its name, whatever the case.

    Raises:
        UsageFault: there is none of that name.
    """
    for release in known_releases():
        if release.name.casefold() == name.strip().casefold():
            return release
    names = ", ".join(release.name for release in known_releases())
    raise UsageFault(
        f"no known release is called {name!a}",
        hint=f"known: {names}; or give a magnet link or a .torrent file",
    )


def by_info_hash(info_hash: str | None) -> Release | None:
    """Look a release up by its v1 info-hash."""
    return next((item for item in known_releases() if item.info_hash == info_hash), None)


def by_repository(repository: str) -> Release | None:
    """Look a release up by a hub repository that carries it, whatever the case."""
    wanted = repository.casefold()
    return next(
        (r for r in known_releases() for copy in r.hub if copy.repository.casefold() == wanted),
        None,
    )


def known_slugs() -> dict[str, str]:
    """Every tracker's host by the t.co slug that hides it in a mangled link."""
    return {slug: host for item in known_releases() for slug, host in item.slugs.items()}


def check_listing(release: Release, sizes: Mapping[str, int]) -> None:
    """Compare the file list that a torrent promises with the one that is recorded.

    Args:
        release: the record for the torrent's info-hash.
        sizes: the promised size of each path.

    Raises:
        HostileTorrent: a recorded file is missing or of another size, or there are others.
    """
    if not release.files:
        return
    pinned = {file.path: file.nbytes for file in release.files}
    found = [f"missing: {path}" for path in pinned if path not in sizes]
    found += [f"not recorded: {path!a}" for path in sizes if path not in pinned]
    found += [
        f"{path}: {sizes[path]} bytes, recorded are {nbytes}"
        for path, nbytes in pinned.items()
        if path in sizes and nbytes not in {None, sizes[path]}
    ]
    if found:
        raise HostileTorrent(
            f"the file list is not that of {release.name}",
            hint="the info-hash is that of the release: report this",
            findings=tuple(found),
        )


def _from_toml(text: str) -> Release:
    table: dict[str, Any] = tomllib.loads(text)
    post, smoke = table.get("post"), table.get("smoke")
    return Release(
        name=table["name"],
        info_hash=table["info_hash"],
        trackers=tuple(table.get("trackers", ())),
        web_seeds=tuple(table.get("web_seeds", ())),
        hub=tuple(HubCopy(**entry) for entry in table.get("hub", ())),
        license=table.get("license"),
        files=tuple(_file(entry) for entry in table.get("files", ())),
        release_md5=table.get("release_md5"),
        post=Post(**post) if post else None,
        n_params=table.get("n_params"),
        slugs=table.get("t_co", {}),
        smoke=_smoke(smoke) if smoke else None,
        model=table.get("model", {}),
    )


def _smoke(entry: dict[str, Any]) -> Smoke:
    return Smoke(entry["text"], tuple(entry["loss"]), entry.get("prompt"))


def _file(entry: dict[str, Any]) -> ReleaseFile:
    digests = (Digest(key, entry[key]) for key in ("md5", "sha1", "sha256") if key in entry)
    return ReleaseFile(entry["path"], entry.get("nbytes"), tuple(digests))
