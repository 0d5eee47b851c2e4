"""What an interrupted run left, down to the blocks that libtorrent counts a piece by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from moetool.release.fetch import fetch
from moetool.release.pieces import pieces_of
from moetool.release.provenance import Origin, write_origin
from moetool.release.resume import begun_blocks, fill_out, prepare
from moetool.release.source import resolve_source
from moetool.release.torrent.serve import seed
from moetool.release.verify.settle import Word
from tests.lines import line_to
from tests.release.conftest import FETCH

BLOCK = 16_384
PIECE = 16 * BLOCK
N_KILLS = 20 if os.environ.get("MOETOOL_FAULTS") == "long" else 4


@pytest.fixture(params=["v1", "hybrid", "v2"])
def large(request, make_release):
    """Of a v2 torrent only the .torrent has the digests of single pieces, so that is the source."""
    return make_release(nbytes=2_000_000, piece_length=PIECE, kind=request.param)


def _copied(release, folder, *runs):
    """Files with holes: of the weights only these ranges are there."""
    origin = Origin(release.meta.name, release.meta.hashes, release.magnet, None, None)
    write_origin(folder, release.meta, origin)
    weights = (release.folder / "consolidated.00.pth").read_bytes()
    fill_out(release.meta, folder)
    with (folder / "consolidated.00.pth").open("r+b") as file:
        for start, stop in runs:
            file.seek(start)
            file.write(weights[start:stop])
    return folder


def _first(release):
    """Where in the weights the first piece begins that holds nothing else, and its number."""
    weights = release.folder / "consolidated.00.pth"
    return next(
        (piece.extents[0].offset, piece.index)
        for piece in pieces_of(release.meta, release.folder)
        if [extent.path for extent in piece.extents] == [weights]
    )


def _coming(release):
    """The bytes that come: of a hybrid torrent also the padding that fills a file's last block."""
    meta, block = release.meta, BLOCK if release.meta.pieces and release.meta.info_hash_v2 else 1
    return sum(-(-file.nbytes // block) * block for file in meta.files if not file.pad)


def test_blocks_that_were_written_are_told_and_no_others(large, tmp_path):
    start, index = _first(large)
    here = _copied(
        large, tmp_path / "some",
        (start, start + PIECE),
        (start + PIECE + 3 * BLOCK, start + PIECE + 5 * BLOCK),
        (start + 3 * PIECE - 2 * BLOCK, start + 3 * PIECE - 4096),
    )  # fmt: skip
    have = prepare(large.meta, here, lambda _: None)
    assert [i for i, is_here in enumerate(have) if is_here] == [index]
    found = begun_blocks(large.meta, here, have)
    # Of the last run one block is whole; of the other a page is missing.
    assert found == {
        index + 1: [k in {3, 4} for k in range(16)],
        index + 2: [k == 14 for k in range(16)],
    }


@pytest.mark.parametrize("kind", ["hybrid", "v2"])
def test_in_the_last_piece_of_a_file_padding_is_no_block(kind, make_release, tmp_path):
    """2,000,000 bytes end within the eleventh block of their last piece, where a piece has 16."""
    large = make_release(nbytes=2_000_000, piece_length=PIECE, kind=kind)
    start = 7 * PIECE
    some = _copied(large, tmp_path / "some", (start + 9 * BLOCK, 2_000_000))
    have = prepare(large.meta, some, lambda _: None)
    (blocks,) = begun_blocks(large.meta, some, have).values()
    n_blocks = 16 if kind == "hybrid" else 11
    assert blocks == [9 <= k < 11 for k in range(n_blocks)]
    # All of it is there, and wrong: nothing of it is used.
    with (some / "consolidated.00.pth").open("r+b") as file:
        file.seek(start)
        file.write(bytes(9 * BLOCK))
    assert begun_blocks(large.meta, some, have) == {}


def test_a_piece_that_is_there_and_wrong_comes_anew(large, tmp_path):
    start, index = _first(large)
    here = _copied(large, tmp_path / "some", (start, start + PIECE))
    with (here / "consolidated.00.pth").open("r+b") as file:
        file.seek(start + 5)
        file.write(b"wrong")
    have = prepare(large.meta, here, lambda _: None)
    assert not have[index]
    assert begun_blocks(large.meta, here, have) == {}


def test_what_was_begun_is_not_fetched_again(large, options, tmp_path):
    start, _ = _first(large)
    _copied(
        large,
        tmp_path / "out.partial",
        (start + BLOCK, start + PIECE),
        (start + PIECE, start + 3 * PIECE - BLOCK),
    )
    with seed(large.torrent, large.folder) as peer:
        report = fetch(resolve_source(str(large.torrent)), tmp_path / "out", options(peer))
    assert large.same_as(tmp_path / "out")
    assert report.payload == _coming(large) - (3 * PIECE - 2 * BLOCK)


def test_begun_blocks_that_are_wrong_come_again_and_nobody_is_blamed(large, options, tmp_path):
    start, _ = _first(large)
    here = _copied(large, tmp_path / "out.partial", (start + BLOCK, start + PIECE))
    with (here / "consolidated.00.pth").open("r+b") as file:
        file.seek(start + 2 * BLOCK)
        file.write(b"wrong")
    with seed(large.torrent, large.folder) as peer:
        report = fetch(resolve_source(str(large.torrent)), tmp_path / "out", options(peer))
    assert large.same_as(tmp_path / "out")
    assert report.verification.verdict is Word.MATCH
    assert report.banned == ()
    assert report.payload == _coming(large) + BLOCK


@pytest.mark.parametrize("kind", ["v1", "hybrid", "v2"])
def test_a_kill_costs_little_whatever_the_pieces(kind, make_release, seeders, options, tmp_path):
    """Pieces are so large that a run seldom ends one; what came is counted on the line."""
    release = make_release(nbytes=30_000_000, piece_length=8 << 20, kind=kind)
    out = tmp_path / "out"
    with (
        seeders(release.torrent.read_bytes(), release.folder) as peer,
        line_to(peer, bytes_s=10_000_000) as line,
    ):
        words = [sys.executable, "-c", FETCH, release.torrent, out, line.port, 0]
        for _ in range(N_KILLS):
            before, until_s = line.nbytes, time.monotonic() + 20
            with subprocess.Popen([*map(str, words)], stdout=subprocess.DEVNULL) as child:
                while line.nbytes - before < 30_000_000 // (N_KILLS + 2):
                    assert child.poll() is None
                    assert time.monotonic() < until_s
                    time.sleep(0.01)
                child.send_signal(signal.SIGKILL)
        assert not out.exists()
        fetch(resolve_source(str(release.torrent)), out, options(line))
    assert release.same_as(out)
    again = line.nbytes - release.meta.nbytes * 1.002  # two words in a thousand are the protocol's
    assert again < N_KILLS * 600_000
