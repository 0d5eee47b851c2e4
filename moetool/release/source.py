"""What a person calls a release: pasted text with a magnet, a .torrent file, or a known name."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import BadMagnet, HostileTorrent, ReadFailed, UsageFault
from moetool.release.magnet import Magnet, Repairs, fill_lost, find, is_tracker
from moetool.release.manifest import (
    Release,
    by_info_hash,
    check_listing,
    find_release,
    known_releases,
    known_slugs,
)
from moetool.release.provenance import MAX_TORRENT_NBYTES
from moetool.release.torrent.metainfo import Metainfo, read_torrent

if TYPE_CHECKING:
    from moetool.release.peek.address import Address
    from moetool.release.torrent.profile import SwarmOptions
    from moetool.release.torrent.watch import Peer


_HUB_HOSTS = {"huggingface.co", "hf.co", "www.huggingface.co"}


@dataclass(frozen=True, slots=True)
class Source:
    """A release to fetch: how to find it, and what is known of it beforehand.

    ``release_md5`` is the digest on the RELEASE line of the post, as pasted or as recorded.
    """

    magnet: Magnet
    repairs: Repairs = field(default_factory=Repairs)
    meta: Metainfo | None = None
    release: Release | None = None
    release_md5: str | None = None


def resolve_source(text: str) -> Source:
    """Find out what is meant.

    Raises:
        BadMagnet: neither a magnet link, an info-hash, a .torrent file nor a known name.
        HostileTorrent: a .torrent file that is refused, or a known name with a strange info-hash.
        ReadFailed: the .torrent file cannot be read.
    """
    if _is_torrent_path(text):
        meta = read_torrent_file(Path(text))
        trackers = tuple(url for url in meta.trackers if is_tracker(url))
        magnet = Magnet(meta.info_hash, meta.info_hash_v2, meta.name, trackers, meta.web_seeds)
        source = Source(magnet, meta=meta, release=by_info_hash(meta.info_hash))
    else:
        source = _from_text(text)
    refuse_impostor(source.magnet.name, source.release)
    if source.meta and source.release:
        check_listing(source.release, _sizes(source.meta))
    md5 = source.release_md5 or (source.release.release_md5 if source.release else None)
    return replace(source, release_md5=md5)


def magnet_of(release: Release) -> Magnet:
    """The link of a known release, with all that is recorded of how to reach it."""
    return Magnet(release.info_hash, None, release.name, release.trackers, release.web_seeds)


def judge_metadata(source: Source, meta: Metainfo) -> Source:
    """Compare the metadata that the swarm gave with what is known of the release.

    Raises:
        HostileTorrent: the file list is not the recorded one, or the name is another release's.
    """
    refuse_impostor(meta.name, source.release)
    if source.release:
        check_listing(source.release, _sizes(meta))
    return replace(source, meta=meta)


def refuse_impostor(name: str | None, release: Release | None) -> None:
    """Refuse a torrent that bears the name of a known release and has another info-hash."""
    for known in known_releases():
        if name and known.name.casefold() == name.casefold() and release != known:
            raise HostileTorrent(
                f"it is called {known.name}, but the info-hash is not that of the release "
                f"({known.info_hash})",
                hint=f"moetool fetch {known.name}",
            )


def public_peers(magnet: Magnet) -> tuple[Peer, ...]:
    """The peers that a link names, without those of private networks.

    A pasted link must not make this machine knock at the doors of its own network.
    """
    found = []
    for text in magnet.peers:
        host, _, port = text.rpartition(":")
        host = host.strip("[]")
        if _may_be_called(ipaddress.ip_address(host)):
            found.append((host, int(port)))
    return tuple(found)


def _may_be_called(address: Address) -> bool:
    return address.is_global


def reaching(magnet: Magnet, options: SwarmOptions) -> SwarmOptions:
    """The options with the trackers and the public peers that a link names."""
    peers = dict.fromkeys(options.peers + public_peers(magnet))
    trackers = dict.fromkeys(magnet.trackers + options.trackers)
    return replace(options, peers=tuple(peers), trackers=tuple(trackers))


def _from_text(text: str) -> Source:
    if _looks_like_name(text):
        release = find_release(text)
        return Source(magnet_of(release), release=release)
    magnet, repairs = find(text, slugs=known_slugs())
    known = by_info_hash(magnet.info_hash)
    if known is not None:
        magnet, repairs = fill_lost(magnet, repairs, known.trackers)
        if not magnet.trackers:
            magnet = replace(magnet, trackers=known.trackers, name=magnet.name or known.name)
    return Source(magnet, repairs, release=known, release_md5=repairs.release_md5)


def _looks_like_name(text: str) -> bool:
    if text.strip().lower().startswith(("http://", "https://")):
        parts = text.strip().split("/")
        of_hub = parts[2].lower() in _HUB_HOSTS and len(parts) > 4  # noqa: PLR2004  # OWNER/NAME
        hint = f"moetool fetch hf:{parts[3]}/{parts[4]}" if of_hub else None
        raise BadMagnet(
            "an http address is no release",
            hint=hint or "paste the magnet link that the page shows",
        )
    try:
        find(text)
    except BadMagnet:
        # One word without a colon is a name that was mistyped rather than half a link.
        if len(text.split()) == 1 and ":" not in text:
            return True
        raise
    return False


def _is_torrent_path(text: str) -> bool:
    if "\n" in text or len(text) > 4096:  # noqa: PLR2004  # PATH_MAX
        return False
    return text.endswith(".torrent") or ("magnet:" not in text and Path(text).is_file())


def read_torrent_file(path: Path) -> Metainfo:
    """Read a .torrent file.

    Raises:
        UsageFault: there is no such file.
        HostileTorrent: too large, malformed, or refused (see `metainfo.read_info`).
        ReadFailed: the machine said no.
    """
    if not path.is_file():
        raise UsageFault("no such .torrent file", where=str(path))
    if path.stat().st_size > MAX_TORRENT_NBYTES:
        raise HostileTorrent(f"more than {MAX_TORRENT_NBYTES} bytes", where=str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReadFailed(error.strerror or "cannot be read", where=str(path)) from error
    return read_torrent(data)


def _sizes(meta: Metainfo) -> dict[str, int]:
    return {file.path: file.nbytes for file in meta.files if not file.pad}
