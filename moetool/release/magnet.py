"""Magnet links: find one in what a person pasted, repair what the web did to it, write it again.

``magnet:?xt=urn:btih:<40 hex>&xt=urn:btmh:1220<64 hex>&dn=<name>&tr=<tracker>&x.pe=<peer>``
(BEP 9, BEP 52). A site that turns bare host names into links sees ``%2Fhost`` as ``%`` and the host
``2Fhost``, and so breaks every tracker of a link that it shows:

    original   udp%3A%2F%2Fopen.demonii.com%3A1337%2Fannounce
    form A     udp%3A%2F%http://2Fopen.demonii.com%3A1337%2Fannounce       the link's text
    form B     udp%3A%2F%https://t.co/2UepcMHjvL%3A1337%2Fannounce         the link's address
    form C     udp%3A%2F%http://2fopen.demonii.com/%3A1337%2Fannounce      normalised
    form D     udp%3a%2f-tp%3a%2f%2f2Fopen.demonii.com%3a1337%2fannounce   re-encoded by a client

libtorrent reads such a link without complaint and drops each broken tracker, so the repair is ours.
The info-hash is never repaired: a guess there would fetch something else.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from moetool.errors import BadMagnet


@dataclass(frozen=True, slots=True)
class Magnet:
    """What a magnet link says; hashes in lower-case hex, peers as ``address:port``.

    ``selected`` are runs of file numbers, first and last (BEP 53); empty: all files.
    """

    info_hash: str | None = None
    info_hash_v2: str | None = None
    name: str | None = None
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    selected: tuple[tuple[int, int], ...] = ()


class Outcome(Enum):
    """What became of a broken tracker."""

    REPAIRED = "repaired"
    REPLACED = "replaced from the known release"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class TrackerRepair:
    """A tracker as it was pasted, and what it is now (None when lost)."""

    pasted: str
    outcome: Outcome
    tracker: str | None = None


@dataclass(frozen=True, slots=True)
class Repairs:
    """What was mended; ``release_md5`` is the digest of a ``RELEASE …`` line beside the link."""

    trackers: tuple[TrackerRepair, ...] = ()
    release_md5: str | None = None

    def __bool__(self) -> bool:
        return bool(self.trackers)


_NO_SLUGS: Mapping[str, str] = MappingProxyType({})
_HEX = re.compile(r"[0-9a-f]+", re.IGNORECASE)
_HEX_V1 = re.compile(r"[0-9a-f]{40}", re.IGNORECASE)
_BASE32_V1 = re.compile(r"[a-z2-7]{32}", re.IGNORECASE)
_MULTIHASH_V2 = re.compile(r"1220([0-9a-f]{64})", re.IGNORECASE)  # BEP 52: sha2-256, 32 bytes
_BARE_HASH = re.compile(r"(?<![0-9a-z])[0-9a-f]{40}(?![0-9a-z])", re.IGNORECASE)
_RELEASE_MD5 = re.compile(r"\bRELEASE\W{1,4}([0-9a-f]{32})\b", re.IGNORECASE)
_HTML_AMPERSAND = re.compile(r"&(?:amp|#38|#x26);", re.IGNORECASE)
_END_OF_LINK = re.compile(r"[\"'<>`{}|\\^\[\]\u2018-\u201f«»]")
_CONTINUES = re.compile(r"&|%[0-9a-f]{2}|(?:tr|dn|ws|xt)=|x\.pe=", re.IGNORECASE)
_HALF_A_PAIR = re.compile(r"(?:[=&%]|%[0-9a-f]|btih:[0-9a-z]{0,39})$", re.IGNORECASE)
_LINKED = r"(?:%https?://|-tps?(?:%3A%2F%2F|://))"
_SHORTENED = re.compile(_LINKED + r"t\.co(?:/|%2F)(\w{10})/?", re.IGNORECASE)
_HOST_LINKED = re.compile(_LINKED + r"2F([^/&%\s]+)(?:/|%2F)?(?=%3A|%2F|&|$)", re.IGNORECASE)
_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", re.IGNORECASE
)
_TRACKER_SCHEMES = ("udp", "http", "https")
_ANNOUNCE = "/announce"
_RUN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
_MAX_RUNS = 10_000


def find(text: str, *, slugs: Mapping[str, str] = _NO_SLUGS) -> tuple[Magnet, Repairs]:
    """Find the magnet link in pasted text and repair its trackers.

    Accepts a link with other words before and behind it, the mangled forms A to D, ``&amp;``, stray
    line breaks and zero-width characters, or nothing but an info-hash (hex, base32, ``1220…``).

    Args:
        text: what was pasted.
        slugs: host names by the t.co slug that hides them; form B is lost without.

    Raises:
        BadMagnet: there is no info-hash in the text, or one that lacks digits.
    """
    clean = _without_invisible(text)
    md5 = _RELEASE_MD5.search(clean)
    link = _cut_link(clean)
    if link is None:
        magnet, mended = _from_bare_hash(clean), tuple[TrackerRepair, ...]()
    else:
        magnet, mended = _parse_link(link, slugs)
    return magnet, Repairs(mended, md5[1].lower() if md5 else None)


def parse(text: str) -> Magnet:
    """Read a magnet link; ``parse(format_magnet(m)) == m`` for every valid `Magnet`."""
    return find(text)[0]


def format_magnet(magnet: Magnet) -> str:
    """Write a magnet as a link, with everything percent-encoded that a site could take for one."""
    pairs = []
    if magnet.info_hash:
        pairs.append(f"xt=urn:btih:{magnet.info_hash}")
    if magnet.info_hash_v2:
        pairs.append(f"xt=urn:btmh:1220{magnet.info_hash_v2}")
    if magnet.name:
        pairs.append(f"dn={quote(magnet.name, safe='')}")
    for key, values in (("tr", magnet.trackers), ("ws", magnet.web_seeds), ("x.pe", magnet.peers)):
        pairs += [f"{key}={quote(value, safe='')}" for value in values]
    if magnet.selected:
        runs = (
            f"{first}-{last}" if last > first else f"{first}" for first, last in magnet.selected
        )
        pairs.append(f"so={','.join(runs)}")
    return "magnet:?" + "&".join(pairs)


def fill_lost(
    magnet: Magnet, repairs: Repairs, trackers: tuple[str, ...]
) -> tuple[Magnet, Repairs]:
    """Put the trackers that a known release had in the place of those that are lost."""
    spare = iter([url for url in trackers if url not in magnet.trackers])
    filled, added = [], []
    for entry in repairs.trackers:
        url = next(spare, None) if entry.outcome is Outcome.LOST else None
        if url is not None:
            added.append(url)
            filled.append(TrackerRepair(entry.pasted, Outcome.REPLACED, url))
        else:
            filled.append(entry)
    return (
        replace(magnet, trackers=magnet.trackers + tuple(added)),
        replace(repairs, trackers=tuple(filled)),
    )


def is_tracker(url: str) -> bool:
    """Whether a URL may be announced to: udp or http(s), a plain host, no credentials."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    host = parts.hostname or ""
    printable = url.isascii() and url.isprintable() and " " not in url
    named = _HOST.fullmatch(host) is not None or _is_address(host)
    return (
        printable
        and parts.scheme in _TRACKER_SCHEMES
        and named
        and "@" not in parts.netloc
        and (port is not None or parts.scheme != "udp")
        and port != 0
    )


def is_peer(text: str) -> bool:
    """Whether a text is ``address:port`` with a numeric address (IPv6 in brackets)."""
    host, _, port = text.rpartition(":")
    v6 = host.startswith("[") and host.endswith("]")
    return (
        port.isascii()
        and port.isdigit()
        and 0 < int(port) < 1 << 16
        and (
            _is_address(host[1:-1]) and ":" in host if v6 else _is_address(host) and ":" not in host
        )
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def _without_invisible(text: str) -> str:
    """Drop zero-width and direction marks (Unicode Cf), undo HTML's ``&amp;`` however often."""
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    while _HTML_AMPERSAND.search(text):
        text = _HTML_AMPERSAND.sub("&", text)
    return text


def _cut_link(text: str) -> str | None:
    """The link from ``magnet:?`` to its end, without line breaks that a page put into it."""
    start = re.search(r"magnet:\s*\?", text, re.IGNORECASE)
    if start is None:
        return None
    rest = text[start.end() :]
    end = _END_OF_LINK.search(rest)
    words = (rest[: end.start()] if end else rest).split()
    link, tail = words[:1], "".join(words[:1])
    for word in words[1:]:
        is_url = re.match(r"https?://", word, re.IGNORECASE)
        if not _HALF_A_PAIR.search(tail) and (is_url or not _CONTINUES.search(word)):
            break
        link.append(word)
        tail = (tail + word)[-64:]  # longer than any half pair, shorter than a hostile link
    query = "".join(link)
    if query.count(")") > query.count("("):
        query = query.rstrip(").,;:!?")
    return query.rstrip(".,;") if not query.endswith("...") else query


def _parse_link(query: str, slugs: Mapping[str, str]) -> tuple[Magnet, tuple[TrackerRepair, ...]]:
    topics, trackers, repairs = [], [], []
    name: str | None = None
    web_seeds, peers = [], []
    selected: tuple[tuple[int, int], ...] = ()
    for key, raw in _pairs(query):
        match key:
            case "xt":
                topics.append(unquote(raw))
            case "dn" if name is None:
                name = unquote_plus(raw) or None
            case "tr":
                tracker, repair = _read_tracker(raw, slugs)
                trackers += [tracker] if tracker and tracker not in trackers else []
                repairs += [repair] if repair else []
            case "ws":
                web_seeds.append(unquote(raw))
            case "x.pe" if is_peer(unquote(raw)):
                peers.append(unquote(raw))
            case "so":
                selected += _runs(unquote(raw))
            case _:
                pass  # kt=, xl=: nothing that fetching needs
    v1, v2 = _info_hashes(topics)
    magnet = Magnet(v1, v2, name, tuple(trackers), tuple(web_seeds), tuple(peers), selected)
    return magnet, tuple(repairs)


def _pairs(query: str) -> Iterator[tuple[str, str]]:
    for pair in query.split("&"):
        key, equals, value = pair.partition("=")
        if equals and value:
            # BEP 9 leaves room for numbered keys (tr.1=…); they mean the same.
            yield re.sub(r"\.\d+$", "", key.lower()), value


def _read_tracker(raw: str, slugs: Mapping[str, str]) -> tuple[str | None, TrackerRepair | None]:
    plain = unquote(raw)
    if is_tracker(plain) and not plain.endswith(("…", "...")):
        return plain, None
    mended = unquote(_unlink(raw, slugs))
    if "%" in mended and not is_tracker(mended):
        mended = unquote(mended)
    mended = re.sub(r"^(\w+:)/+", r"\1//", mended).replace("/:", ":")
    mended = _complete_tail(mended)
    if is_tracker(mended):
        return mended, TrackerRepair(plain, Outcome.REPAIRED, mended)
    return None, TrackerRepair(plain, Outcome.LOST)


def _unlink(raw: str, slugs: Mapping[str, str]) -> str:
    """Undo forms A to D before percent-decoding, for then ``%ht`` cannot be told from text."""
    raw = _SHORTENED.sub(lambda m: f"%2F{slugs[m[1]]}" if m[1] in slugs else m[0], raw)
    return _HOST_LINKED.sub(r"%2F\1", raw)


def _complete_tail(url: str) -> str:
    """Restore the path of a tracker that a page shortened with an ellipsis."""
    short = url.rstrip("….")
    host_end = short.find("/", short.find("://") + 3)
    if short == url or host_end < 0:
        return short
    return short[:host_end] + _ANNOUNCE if _ANNOUNCE.startswith(short[host_end:]) else short


def _runs(text: str) -> tuple[tuple[int, int], ...]:
    """The runs of numbers in ``0,2-4``; what is none is left out."""
    found = (_RUN.fullmatch(word) for word in text.split(",")[:_MAX_RUNS])
    runs = ((int(run[1]), int(run[2] or run[1])) for run in found if run)
    return tuple((first, last) for first, last in runs if first <= last)


def _info_hashes(topics: list[str]) -> tuple[str | None, str | None]:
    v1 = v2 = None
    for topic in topics:
        scheme, _, value = topic.rpartition(":")
        match scheme.lower():
            case "urn:btih":
                v1 = _v1_hex(value)
            case "urn:btmh":
                v2 = _v2_hex(value)
            case _:
                continue
    if v1 is None and v2 is None:
        raise BadMagnet(
            "the link has no info-hash (xt=urn:btih:… or xt=urn:btmh:…)",
            hint="copy the whole link, or give the 40-digit info-hash alone",
        )
    return v1, v2


def _v1_hex(value: str) -> str:
    if _HEX_V1.fullmatch(value):
        return value.lower()
    # 32 hex digits are eight too few rather than base32 that happens to have no letter above F.
    if _BASE32_V1.fullmatch(value) and not _HEX.fullmatch(value):
        return base64.b32decode(value.upper()).hex()
    raise BadMagnet(
        f"the info-hash has {len(value)} characters, expected 40 hex digits or 32 of base32",
        hint="an info-hash cannot be repaired: copy the link again",
    )


def _v2_hex(value: str) -> str:
    found = _MULTIHASH_V2.fullmatch(value)
    if found is None:
        raise BadMagnet(
            f"the v2 info-hash has {len(value)} characters, expected 1220 and 64 hex digits",
            hint="an info-hash cannot be repaired: copy the link again",
        )
    return found[1].lower()


def _from_bare_hash(text: str) -> Magnet:
    word = text.strip()
    if _BASE32_V1.fullmatch(word) and not _HEX.fullmatch(word):
        return Magnet(info_hash=_v1_hex(word))
    if _MULTIHASH_V2.fullmatch(word):
        return Magnet(info_hash_v2=_v2_hex(word))
    hashes = {found.lower() for found in _BARE_HASH.findall(text)}
    if len(hashes) != 1:
        what = "no magnet link and no info-hash" if not hashes else "several info-hashes, no link"
        raise BadMagnet(
            f"the text holds {what}",
            hint="give a magnet link, a .torrent file or the name of a known release",
        )
    return Magnet(info_hash=hashes.pop())
