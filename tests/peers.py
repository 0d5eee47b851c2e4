"""Peers of test swarms: such that say little, and one that only waits to be given something."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time
from dataclasses import dataclass

from moetool.release.torrent.bencode import encode

_NUMBERS = itertools.count()  # libtorrent hangs up on two peers of one name


@dataclass(frozen=True)
class FakePeer:
    host: str
    port: int
    met: list  # addresses of those that came


def _message(number, payload=b""):
    return struct.pack(">IB", 1 + len(payload), number) + payload


def _words(info_hash, extended, bitfield, unchoke):
    yield b"\x13BitTorrent protocol" + bytes([0, 0, 0, 0, 0, 0x10, 0, 0])
    yield bytes.fromhex(info_hash) + b"-XX0001-%012d" % next(_NUMBERS)
    yield _message(20, b"\0" + encode(extended))
    if bitfield:
        yield _message(5, bitfield)
    if unchoke:
        yield _message(1)


@contextlib.contextmanager
def silent_peer(info_hash, *, extended=None, n_pieces=0, unchoke=True):
    """A peer that says who it is and what it has, takes every request, and answers none.

    ``extended`` is its extended handshake (BEP 10), ``n_pieces`` how many pieces it has.
    """
    bits = "1" * n_pieces + "0" * (-n_pieces % 8)
    bitfield = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    words = b"".join(_words(info_hash, extended or {b"m": {}}, bitfield, unchoke))

    def listen(client):
        while client.recv(65536):
            pass

    with _listening(words, listen) as peer:
        yield peer


@contextlib.contextmanager
def _listening(words, serve):
    """Say the first words to whoever comes and shakes hands in plain text, then serve him."""
    server = socket.create_server(("127.0.0.1", 0))
    met, held = [], []

    def take():
        while True:
            try:
                client, address = server.accept()
            except OSError:  # closed
                return
            held.append(client)
            threading.Thread(target=talk, args=(client, address), daemon=True).start()

    def talk(client, address):
        with contextlib.suppress(OSError):
            first = client.recv(68, socket.MSG_WAITALL)
            if first[:1] != b"\x13":  # an encrypted handshake
                client.close()
                return
            met.append(address)
            client.sendall(words)
            serve(client)

    threading.Thread(target=take, daemon=True).start()
    try:
        yield FakePeer("127.0.0.1", server.getsockname()[1], met)
    finally:
        for each in (server, *held):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextlib.contextmanager
def giving_peer(info_hash, content, piece_length, *, blocks_a_turn=2, turn_s=0.05):
    """A seeder that gives ``content`` slowly, however bad it is, and takes few requests at a time.

    It unchokes whoever comes again and again: that makes libtorrent ask it for blocks of a piece
    of which another peer gives some, too.
    """
    n_pieces = -(-len(content) // piece_length)
    bits = "1" * n_pieces + "0" * (-n_pieces % 8)
    bitfield = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    words = b"".join(_words(info_hash, {b"m": {}, b"reqq": 4}, bitfield, unchoke=True))

    def serve(client):
        client.settimeout(turn_s)
        buffer, asked = bytearray(), []
        while True:
            with contextlib.suppress(TimeoutError):
                got = client.recv(65536)
                if not got:
                    return
                buffer += got
            while len(buffer) >= 4 and len(buffer) >= 4 + (length := _length(buffer)):
                message = bytes(buffer[4 : 4 + length])
                del buffer[: 4 + length]
                if message[:1] == b"\6":
                    asked.append(struct.unpack(">III", message[1:13]))
            time.sleep(turn_s)
            for index, begin, nbytes in asked[:blocks_a_turn]:
                start = index * piece_length + begin
                head = struct.pack(">II", index, begin)
                client.sendall(_message(7, head + content[start : start + nbytes]))
            del asked[:blocks_a_turn]
            client.sendall(_message(1))

    with _listening(words, serve) as peer:
        yield peer


def _length(buffer):
    return int.from_bytes(buffer[:4], "big")


class Leecher:
    """A client of libtorrent's own on 127.0.0.1 that takes a torrent of who comes to it."""

    def __init__(self, torrent, folder):
        import libtorrent as lt

        off = dict.fromkeys(["enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp"], False)
        self._session = lt.session({
            "listen_interfaces": "127.0.0.1:0", "enable_outgoing_utp": False,
            "allow_multiple_connections_per_ip": True,
            "alert_mask": lt.alert_category.peer | lt.alert_category.connect, **off,
        })  # fmt: skip
        adding = lt.load_torrent_file(str(torrent))
        adding.save_path = str(folder)
        self.handle, until = self._session.add_torrent(adding), time.monotonic() + 10
        while not self.port and time.monotonic() < until:
            time.sleep(0.01)

    @property
    def port(self):
        return self._session.listen_port()

    def met(self):
        """The addresses of those that came since the last call."""
        alerts = self._session.pop_alerts()
        came = [a for a in alerts if type(a).__name__ == "incoming_connection_alert"]
        return {alert.endpoint[0] for alert in came}
