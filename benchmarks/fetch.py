"""A fetch from one seeder on the loopback address, beside other clients; and a full check of it.

    python benchmarks/fetch.py [--gib 4] [--rounds 3] [--where /dev/shm] [--only WORD ...]

Rounds are interleaved: each runs every client once, on the same files and the same seeder, and
begins with another one. Before each, more memory than it will write is written and given back: a
virtual machine asks its host for every page that it has not used of late, and up to 1.5 s of CPU a
GB drown what the clients differ in. Goodput and CPU are those of whole processes, start and end
included. Ours hashes every piece once more where it lies and takes RELEASE's MD5, in both orders;
once the release has no RELEASE, so that the pieces are all there is to check; and once ("download
alone") nothing is. The others check what they receive, and nothing that lies on the disk.
libtorrent as it is by default speaks uTP first and is stopped after 15 s. transmission waits ten
seconds until it is unchoked and takes no peers of 127/8: it is left out where this machine has no
other address.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.server
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fetch_clients import (
    ALONE,
    DIGEST_AFTER,
    LIBTORRENT,
    RECHECK,
    SEEDER,
    TRANSMISSION,
)

from moetool.release.torrent.bencode import decode, encode
from moetool.release.torrent.metainfo import piece_claims, read_torrent
from moetool.release.verify.hashing import Wanted, read_digests

PIECE = 4 << 20
CHUNK = 1 << 20
CAP_S = 15.0  # for libtorrent as it is by default
WHOLE_S = 600.0  # for the others, who end by themselves


@dataclass(frozen=True)
class Release:
    """What is served from ``folder``: ``torrent`` has RELEASE beside the weights, ``bare`` not."""

    torrent: Path
    bare: Path
    folder: Path
    nbytes: int


@dataclass(frozen=True)
class Seeder:
    """Where the files are served: at the loopback address, and at ``host`` if there is another."""

    port: int
    host: str | None


@dataclass(frozen=True)
class Run:
    """What one client took: seconds, CPU seconds, peak RSS; and how many bytes it got."""

    wall_s: float
    cpu_s: float
    rss: int
    nbytes: int

    def __str__(self) -> str:
        gigabytes = self.nbytes / 1e9
        return (
            f"{self.nbytes / 1e6 / self.wall_s:6.1f} MB/s {self.cpu_s / gigabytes:6.2f} CPU s/GB "
            f"{self.rss / 1e6:6.0f} MB RSS"
        )


def publish(where: Path, nbytes: int) -> Release:
    """Random weights with RELEASE, and their torrent."""
    folder = where / "published" / "synthetic"
    folder.mkdir(parents=True)
    weights = folder / "consolidated.00.pth"
    whole = hashlib.md5()
    with weights.open("wb") as file:
        for _ in range(nbytes // CHUNK):
            chunk = os.urandom(CHUNK)
            whole.update(chunk)
            file.write(chunk)
    (folder / "RELEASE").write_text(f"{whole.hexdigest()}  {weights.name}\n")
    torrents = []
    for name, paths in (("synthetic", sorted(folder.iterdir())), ("bare", [weights])):
        torrents.append(folder.with_name(f"{name}.torrent"))
        torrents[-1].write_bytes(encode({b"info": info_of(folder.name, paths)}))
    return Release(*torrents, folder.parent, sum(p.stat().st_size for p in folder.iterdir()))


def info_of(name: str, paths: list[Path]) -> dict[bytes, object]:
    """The info dict of files below a folder."""
    pieces, left = bytearray(), b""
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(PIECE - len(left)):
                left += chunk
                if len(left) == PIECE:
                    pieces += hashlib.sha1(left).digest()
                    left = b""
    pieces += hashlib.sha1(left).digest() if left else b""
    return {
        b"name": name.encode(),
        b"piece length": PIECE,
        b"files": [{b"length": p.stat().st_size, b"path": [p.name.encode()]} for p in paths],
        b"pieces": bytes(pieces),
    }


def other_address() -> str | None:
    """An address of this machine that is not of 127/8; None where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: the route is looked up
        except OSError:
            return None
        return probe.getsockname()[0]


@contextlib.contextmanager
def seeding(release: Release) -> Iterator[Seeder]:
    """A seeder in a process of its own."""
    host = other_address()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listen = ",".join(f"{address}:{port}" for address in ("127.0.0.1", host) if address)
    words = [sys.executable, "-c", SEEDER, release.folder, listen, release.torrent, release.bare]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert int(child.stdout.readline()) == port
            yield Seeder(port, host)
        finally:
            child.stdin.close()


@contextlib.contextmanager
def tracking(host: str, port: int) -> Iterator[str]:
    """A tracker that names the seeder: aria2 and transmission take peers from nowhere else."""
    peers = socket.inet_aton(host) + struct.pack(">H", port)
    body = encode({b"interval": 60, b"peers": peers})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/announce"
    finally:
        server.shutdown()
        server.server_close()


def touch_memory(pages: Path, nbytes: int) -> None:
    """Use twice the memory that the client will: what was free for some seconds is the host's."""
    with pages.open("wb", buffering=0) as file:
        for _ in range(2 * nbytes // CHUNK):
            file.write(bytes(CHUNK))
    pages.unlink()


def measured(words: list[object], work: Path, nbytes: int | None, room: int) -> Run:
    """Run a client into an empty folder; without ``nbytes`` it says itself how many came."""
    touch_memory(work.with_name("pages"), room)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    env = {**os.environ, "MOETOOL_HOME": str(work / "home")}
    began = time.perf_counter()
    child = subprocess.Popen(
        [str(word) for word in words], cwd=work, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    assert child.returncode == 0, words
    got = json.loads(said) if nbytes is None else nbytes
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, got)


def clients(release: Release, seeder: Seeder, tracker: str, work: Path) -> dict[str, tuple]:
    """By name how each client is run, and how many bytes it gets (None: it says so)."""
    port = seeder.port
    raw = [sys.executable, "-c", LIBTORRENT, release.torrent, work, port]
    ours = [sys.executable, "-m", "moetool", "fetch", "--out", "copy", "--json", "--no-dht",
            "--peer", f"127.0.0.1:{port}"]  # fmt: skip
    found = {
        "moetool, sequential": ([*ours, "--order", "sequential", release.torrent], release.nbytes),
        "moetool, rarest first": ([*ours, "--order", "rarest", release.torrent], release.nbytes),
        "moetool, pieces alone": ([*ours, release.bare], release.nbytes),
        "moetool, download alone": (
            [sys.executable, "-c", ALONE, release.torrent, work / "copy", port], release.nbytes,
        ),
        "libtorrent, uTP off": ([*raw, "tcp", WHOLE_S], None),
        "libtorrent, default": ([*raw, "utp", CAP_S], None),
    }  # fmt: skip
    if shutil.which("aria2c"):
        found["aria2c"] = (
            ["aria2c", "--no-conf", "--enable-dht=false", "--enable-dht6=false", "--quiet",
             "--enable-peer-exchange=false", "--seed-time=0", "--file-allocation=none",
             f"--bt-tracker={tracker}", "--interface=127.0.0.1", "--listen-port=20000-40000",
             "-d", work / "copy", release.torrent],
            release.nbytes,
        )  # fmt: skip
    return found


@contextlib.contextmanager
def transmission(release: Release, seeder: Seeder, work: Path) -> Iterator[dict[str, tuple]]:
    """How transmission is run, if it is here and the seeder has an address that it takes."""
    if seeder.host is None or not shutil.which("transmission-daemon"):
        yield {}
        return
    with tracking(seeder.host, seeder.port) as tracker:
        torrent = release.torrent.with_name("announced.torrent")
        info = decode(release.torrent.read_bytes())[b"info"]
        torrent.write_bytes(encode({b"announce": tracker.encode(), b"info": info}))
        words = [sys.executable, "-c", TRANSMISSION, torrent, work, WHOLE_S]
        yield {"transmission": (words, None)}


def checks(release: Release) -> dict[str, float]:
    """Seconds of a full check of the published files: ours on 1 and 2 threads, libtorrent's."""
    meta = read_torrent(release.torrent.read_bytes())
    claims = list(piece_claims(meta, release.folder / meta.name))
    wanted = [Wanted(claim.extents, claim.digest.algorithm) for claim in claims]
    found = {}
    for threads in (1, 2):
        began = time.perf_counter()
        computed = read_digests(wanted, threads=threads)
        found[f"check, ours, {threads} threads"] = time.perf_counter() - began
        assert all(computed[w].hex == c.digest.hex for w, c in zip(wanted, claims, strict=True))
    words = [sys.executable, "-c", RECHECK, str(release.torrent), str(release.folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found["check, libtorrent"] = json.loads(done.stdout)
    return found


def digest_after(release: Release, seeder: Seeder, work: Path) -> dict[str, float]:
    """Seconds from the last piece until RELEASE's md5 is compared and the folder published."""
    found = {}
    for order in ("sequential", "rarest"):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        words = [sys.executable, "-c", DIGEST_AFTER, release.torrent, work / "copy", seeder.port]
        done = subprocess.run(
            [str(word) for word in [*words, order]], capture_output=True, text=True, check=True,
            env={**os.environ, "MOETOOL_HOME": str(work / "home")},
        )  # fmt: skip
        found[f"md5 after the last piece, {order}"] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    parser.add_argument(
        "--only", nargs="*", default=[], help="clients whose name has such a word; md5, check"
    )
    options = parser.parse_args()
    runs: dict[str, list[Run]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.where, prefix="moetool-bench-") as name:
        release = publish(Path(name), int(options.gib * 1024) * CHUNK)
        work = Path(name) / "work"
        with (
            seeding(release) as seeder,
            tracking("127.0.0.1", seeder.port) as tracker,
            transmission(release, seeder, work) as others,
        ):
            for turn in range(options.rounds):
                everybody = [*(clients(release, seeder, tracker, work) | others).items()]
                for label, (words, nbytes) in [*everybody[turn:], *everybody[:turn]]:
                    if not options.only or any(word in label for word in options.only):
                        runs[label].append(measured(words, work, nbytes, release.nbytes))
                        print(f"  {label:34} {runs[label][-1]}", flush=True)
                if not options.only or "md5" in options.only:
                    for label, took in digest_after(release, seeder, work).items():
                        seconds[label].append(took)
                if not options.only or "check" in options.only:
                    for label, took in checks(release).items():
                        seconds[label].append(took)
    print(f"{release.nbytes / 1e9:.2f} GB, pieces of {PIECE >> 20} MiB, medians of "
          f"{options.rounds} rounds, {os.cpu_count()} cores")  # fmt: skip
    for label, some in runs.items():
        print(f"{label:36} {sorted(some, key=lambda run: run.nbytes / run.wall_s)[len(some) // 2]}")
    for label, some in seconds.items():
        took = statistics.median(some)
        rate = f"{release.nbytes / 1e9 / took:6.2f} GB/s" if label.startswith("check") else ""
        print(f"{label:36} {took:6.2f} s {rate}")


if __name__ == "__main__":
    main()
