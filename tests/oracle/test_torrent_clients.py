"""aria2 and transmission agree on the info-hash of what we publish, and either side downloads."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from moetool.release.fetch import fetch
from moetool.release.magnet import parse
from moetool.release.publish import run as publish
from moetool.release.publish.seeding import SeedOptions, find_torrent, seed
from moetool.release.source import resolve_source
from moetool.release.torrent.profile import SwarmOptions
from tests.tracker import serving_tracker

pytestmark = pytest.mark.oracle


def program(name):
    return pytest.mark.skipif(
        shutil.which(name) is None,
        reason=f"{name} is not installed (Debian: aria2, transmission-cli)",
    )


def told(*command, **more):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=30, check=False,
        **more,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.fixture
def release(tiny_release, tmp_path):
    """The tiny release without its RELEASE, which `publish` makes."""
    folder = tmp_path / "work" / "tiny"
    folder.mkdir(parents=True)
    for name in ("consolidated.00.pth", "params.json", "tokenizer.model"):
        shutil.copy(tiny_release / name, folder)
    return folder


def reads_hybrid_torrents(name):
    """Both read no empty key of a dictionary before (aria2 pull 1905, transmission issue 1339)."""
    version, first = {
        "aria2c": (told("aria2c", "--version"), (1, 37)),
        "transmission-show": (told("transmission-show", "--version"), (4, 0)),
    }[name]
    return tuple(map(int, re.search(r"(\d+)\.(\d+)", version).groups())) >= first


@pytest.mark.parametrize("v1_only", [True, False])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("aria2c", ["-S"], marks=program("aria2c")),
        pytest.param("transmission-show", [], marks=program("transmission-show")),
    ],
)
def test_the_info_hash_is_theirs(release, name, words, v1_only):
    if not v1_only and not reads_hybrid_torrents(name):
        pytest.skip(f"this {name} is too old to read a hybrid torrent, whoever made it")
    report = publish.run(publish.plan(release, v1_only=v1_only))
    assert report.info_hash in told(name, *words, report.torrent)


@pytest.fixture
def tracker():
    """An HTTP tracker that names one peer, for aria2 asks none that a link names."""
    with serving_tracker(interval_s=5) as server:
        yield server


@program("aria2c")
def test_aria2_downloads_what_we_seed(release, tracker, tmp_path):
    report = publish.run(publish.plan(release, v1_only=True))
    done = threading.Event()

    def on_listening(magnet, _):
        host, _, port = parse(magnet).peers[0].rpartition(":")
        tracker.peers.append((host, int(port)))

    def on_progress(_):
        if done.is_set():
            raise KeyboardInterrupt

    def serve():
        options = SeedOptions(SwarmOptions(dht=False), "127.0.0.1", time_s=60)
        with pytest.raises(BaseException, match="bytes were given"):
            seed(*find_torrent(release, None), options, on_listening=on_listening,
                 on_progress=on_progress)  # fmt: skip

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    words = ["--enable-dht=false", "--enable-dht6=false", "--enable-peer-exchange=false",
             "--seed-time=0", f"--bt-tracker={tracker.url}", "--interface=127.0.0.1",
             "--listen-port=20000-40000", "--no-conf", "--file-allocation=none"]  # fmt: skip
    out = told("aria2c", *words, "-d", tmp_path / "copy", report.torrent)
    done.set()
    thread.join(10)
    for path in report.files:
        assert (tmp_path / "copy" / "tiny" / path).read_bytes() == (release / path).read_bytes(), (
            out
        )


def by_aria2(torrent, folder, _, port):
    return ["aria2c", "--no-conf", "--enable-dht=false", "--enable-dht6=false", "--seed-ratio=0",
            "--enable-peer-exchange=false", "--interface=127.0.0.1", f"--listen-port={port}",
            "--check-integrity", "-d", folder, torrent]  # fmt: skip


def by_transmission(torrent, folder, settings, port):
    settings.mkdir()
    (settings / "settings.json").write_text(json.dumps({
        "bind-address-ipv4": "127.0.0.1", "dht-enabled": False, "lpd-enabled": False,
        "pex-enabled": False, "port-forwarding-enabled": False,
    }))  # fmt: skip
    return ["transmission-cli", "-g", settings, "-M", "-w", folder, "-p", port, torrent]


@contextmanager
def running(words):
    """A client that goes on until it is stopped."""
    words = [str(word) for word in words]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(port, process):
    """Wait until a client listens, 20 s at most."""
    for _ in range(200):
        assert process.poll() is None, "the client has ended"
        with socket.socket() as asking:
            if asking.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the client listens to nobody")


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(by_aria2, marks=program("aria2c")),
        pytest.param(by_transmission, marks=program("transmission-cli")),
    ],
)
def test_we_download_what_they_seed(release, tmp_path, client):
    report = publish.run(publish.plan(release, v1_only=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running(client(report.torrent, release.parent, tmp_path / "settings", port)) as process:
        wait_for(port, process)
        options = SwarmOptions(peers=(("127.0.0.1", port),), dht=False, stall_timeout_s=30)
        found = fetch(resolve_source(str(report.torrent)), tmp_path / "copy", options)
    assert found.ok
    for path in report.files:
        assert (tmp_path / "copy" / path).read_bytes() == (release / path).read_bytes()
