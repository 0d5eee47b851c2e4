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
session, handles = lt.session(params), []
for torrent in torrents:
    adding = lt.load_torrent_file(torrent)
    adding.save_path = folder
    adding.flags = lt.torrent_flags.update_subscribe  # seed_mode would hash for the first client
    handles.append(session.add_torrent(adding))
while not session.is_listening() or not all(h.status().is_seeding for h in handles):
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
import json, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path
torrent, work, cap = sys.argv[1:]
config, copy = Path(work, "config"), Path(work, "copy")
config.mkdir()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
off = dict.fromkeys(["dht-enabled", "lpd-enabled", "pex-enabled", "utp-enabled",
    "port-forwarding-enabled", "ratio-limit-enabled", "rpc-authentication-required"], False)
more = {"encryption": 0, "cache-size-mb": 64, "rpc-port": port, "rpc-bind-address": "127.0.0.1",
    "download-dir": str(copy), "peer-port-random-on-start": True}
(config / "settings.json").write_text(json.dumps({**off, **more}))
child = subprocess.Popen(["transmission-daemon", "-f", "-g", config],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
session, at = {}, f"http://127.0.0.1:{port}"
def ask(method, **arguments):
    global session
    body = json.dumps({"method": method, "arguments": arguments}).encode()
    while True:
        try:
            asked = urllib.request.Request(f"{at}/transmission/rpc", body, session)
            return json.load(urllib.request.urlopen(asked))["arguments"]
        except urllib.error.HTTPError as error:
            assert error.code == 409
            session = {"X-Transmission-Session-Id": error.headers["X-Transmission-Session-Id"]}
        except urllib.error.URLError:
            assert child.poll() is None
            time.sleep(0.05)
ask("torrent-add", filename=torrent)
began, got, whole = time.monotonic(), 0, 1
while got < whole and time.monotonic() - began < float(cap):
    time.sleep(0.1)
    now = ask("torrent-get", fields=["haveValid", "haveUnchecked", "sizeWhenDone"])["torrents"][0]
    got, whole = now["haveValid"] + now["haveUnchecked"], now["sizeWhenDone"]
child.terminate()
child.wait()
print(json.dumps(got))
"""
