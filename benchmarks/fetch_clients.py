"""The programs that `fetch.py` runs, each in a process of its own, with what they print."""

from __future__ import annotations

SEEDER = """
import sys, libtorrent as lt
folder, listen, *torrents = sys.argv[1:]
params = lt.session_params()
params.settings = {"listen_interfaces": listen, "enable_dht": False, "enable_lsd": False,
    "enable_upnp": False, "enable_natpmp": False, "allow_multiple_connections_per_ip": True,
    "unchoke_slots_limit": -1, "max_allowed_in_request_queue": 4000,
    "send_buffer_watermark": 8 << 20, "send_buffer_watermark_factor": 150,
    "send_buffer_low_watermark": 1 << 20}
params.disk_io_constructor = "posix_disk_io_constructor"
session = lt.session(params)
for torrent in torrents:
    adding = lt.load_torrent_file(torrent)
    adding.save_path = folder
    adding.flags = lt.torrent_flags.seed_mode | lt.torrent_flags.upload_mode
    session.add_torrent(adding)
while not session.is_listening():
    session.wait_for_alert(20)
    session.pop_alerts()
print(session.listen_port(), flush=True)
sys.stdin.read()
"""

LIBTORRENT = """
import json, sys, time, libtorrent as lt
torrent, folder, port, utp, cap = sys.argv[1:]
params = lt.session_params()
params.settings = {"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False,
    "enable_upnp": False, "enable_natpmp": False, "allow_multiple_connections_per_ip": True,
    "enable_outgoing_utp": utp == "utp"}
session = lt.session(params)
adding = lt.load_torrent_file(torrent)
adding.save_path = folder
adding.flags = lt.torrent_flags.update_subscribe
handle = session.add_torrent(adding)
handle.connect_peer(("127.0.0.1", int(port)))
until = time.monotonic() + float(cap)
while not handle.status().is_seeding and time.monotonic() < until:
    session.wait_for_alert(50)
    session.pop_alerts()
print(json.dumps(handle.status().total_wanted_done))
"""

RECHECK = """
import json, sys, time, libtorrent as lt
torrent, folder = sys.argv[1:]
params = lt.session_params()
params.settings = {"listen_interfaces": "", "enable_dht": False}
session = lt.session(params)
adding = lt.load_torrent_file(torrent)
adding.save_path = folder
adding.flags = lt.torrent_flags.update_subscribe
began = time.perf_counter()
handle = session.add_torrent(adding)
while not handle.status().is_seeding:
    session.wait_for_alert(20)
    session.pop_alerts()
print(json.dumps(time.perf_counter() - began))
"""

DIGEST_AFTER = """
import json, sys, time
from pathlib import Path
from moetool.release.fetch import fetch
from moetool.release.source import resolve_source
from moetool.release.torrent.profile import SwarmOptions
torrent, out, port, order = sys.argv[1:]
options = SwarmOptions(peers=(("127.0.0.1", int(port)),), dht=False, order=order)
last = 0.0
def hear(progress):
    global last
    if progress.stage == "download" and not progress.told:
        last = time.perf_counter()
fetch(resolve_source(torrent), Path(out), options, on_progress=hear)
print(json.dumps(time.perf_counter() - last))
"""

ALONE = """
import sys
from pathlib import Path
from moetool.release.source import resolve_source
from moetool.release.torrent.download import download
from moetool.release.torrent.profile import SwarmOptions
from moetool.release.torrent.session import Swarm
torrent, out, port = sys.argv[1:]
options = SwarmOptions(peers=(("127.0.0.1", int(port)),), dht=False, disk="pread")
Path(out).mkdir()
with Swarm(options) as swarm:
    download(swarm, resolve_source(torrent).meta, Path(out), (), lambda _: None)
"""

TRANSMISSION = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
torrent, work, cap = sys.argv[1:]
done, config, copy = (Path(work, name) for name in ("done", "config", "copy"))
script = Path(work, "script")
script.write_text(f"#!/bin/sh\\ntouch {done}\\n")
script.chmod(0o755)
config.mkdir()
off = dict.fromkeys(["dht-enabled", "lpd-enabled", "pex-enabled", "utp-enabled"], False)
more = {"encryption": 0, "cache-size-mb": 64, "preallocation": 0}  # blocks on disk are what came
(config / "settings.json").write_text(json.dumps({**off, **more}))
words = ["transmission-cli", "-M", "-et", "-g", config, "-w", copy]
began = time.monotonic()
child = subprocess.Popen([*words, "-f", script, torrent], stdout=subprocess.DEVNULL)
while not done.exists() and time.monotonic() - began < float(cap):
    time.sleep(0.02)
got = sum(p.stat().st_blocks * 512 for p in copy.rglob("*") if p.is_file())
child.terminate()
child.wait()
print(json.dumps(got))
"""
