"""A piece that two peers give together and that is wrong: who spoils it is found out."""

from __future__ import annotations

import shutil

import libtorrent as lt
import pytest

from moetool.release.fetch import fetch
from moetool.release.provenance import Origin, write_origin
from moetool.release.source import resolve_source
from moetool.release.torrent import session
from moetool.release.torrent.doctor import Remedy
from tests.peers import giving_peer

PIECE = 1 << 20  # 64 blocks, so that both peers give some
BAD = 1  # the piece


@pytest.fixture
def begun(make_release, tmp_path):
    """A release, its stream of bytes, and a folder in which all but one piece of it is here.

    Nothing else is to come, so no good piece speaks for a peer or ends the count of bad ones.
    """
    release = make_release(nbytes=3 * PIECE, piece_length=PIECE)
    paths = [file.path for file in release.meta.files]
    stream = b"".join((release.folder / path).read_bytes() for path in paths)
    partial = tmp_path / "out.partial"
    shutil.copytree(release.folder, partial)
    start = BAD * PIECE - release.meta.files[1].offset
    weights = partial / "consolidated.00.pth"
    lacking = bytearray(weights.read_bytes())
    lacking[start : start + PIECE] = bytes(PIECE)
    weights.write_bytes(lacking)
    origin = Origin(release.meta.name, release.meta.hashes, release.magnet)
    write_origin(partial, release.meta, origin)
    return release, stream, tmp_path / "out"


def spoilt(stream):
    """The stream with a wrong byte in each block of the piece."""
    found = bytearray(stream)
    for at in range(BAD * PIECE, (BAD + 1) * PIECE, 16_384):
        found[at] ^= 1
    return bytes(found)


def _bare_session(settings, _disk):
    """libtorrent without what finds a culprit by itself: smart ban and parole mode."""
    mask = session._alert_mask()
    return lt.session({**settings, "use_parole_mode": False, "alert_mask": mask}, flags=0)


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "as it is"])
def test_a_piece_that_is_wrong_by_one_of_two_givers(bare, begun, options, told, monkeypatch):
    """Each time both give blocks of it: then neither can be blamed, until one is asked alone."""
    if bare:
        monkeypatch.setattr(session, "open_session", _bare_session)
    release, stream, out = begun
    info_hash = release.meta.info_hash
    with (
        giving_peer(info_hash, stream, PIECE) as good,
        giving_peer(info_hash, spoilt(stream), PIECE) as bad,
    ):
        swarm = options(good, bad, encryption="off", rejoin_after_s=1.5, stall_timeout_s=60)
        report = fetch(resolve_source(str(release.torrent)), out, swarm, on_progress=told)
    assert release.same_as(out)
    assert report.payload > PIECE
    if bare:  # else libtorrent may have banned who is good, who then was asked alone
        assert f"tried: {Remedy.SINGLE.value}" in told.lines
        assert set(report.banned) <= {(bad.host, bad.port)}  # nobody, if the good one came first
