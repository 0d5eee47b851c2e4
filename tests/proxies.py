"""Proxies of test swarms: SOCKS5 (RFC 1928, 1929), which may carry UDP, and HTTP.

They go out from 127.0.0.2, so that whoever is reached can tell them from the one behind them.
"""

from __future__ import annotations

import contextlib
import io
import re
import select
import socket
import socketserver
import struct
import threading

OUT = "127.0.0.2"


def pump(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _join(one, other):
    back = threading.Thread(target=pump, args=(other, one), daemon=True)
    back.start()
    pump(one, other)
    back.join(10)
    other.close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, handler, names, login, udp):
        super().__init__(("127.0.0.1", 0), handler)
        self.names, self.login, self.udp = names, login, udp
        self.asked: list[tuple[str, int]] = []
        self.asked_udp: set[tuple[str, int]] = set()
        self.refused: list[str] = []

    def open(self, host, port):
        self.asked.append((host, port))
        address = self.names.get(host, host)
        return socket.create_connection((address, port), 5, source_address=(OUT, 0))

    def handle_error(self, *_):
        pass


class _Socks(socketserver.BaseRequestHandler):
    def _read(self, nbytes):
        data = b""
        while len(data) < nbytes:
            part = self.request.recv(nbytes - len(data))
            if not part:
                raise ConnectionError
            data += part
        return data

    def handle(self):
        methods = self._read(self._read(2)[1])
        wanted = 2 if self.server.login else 0
        if wanted not in methods:
            self.server.refused.append("no method")
            self.request.sendall(b"\x05\xff")
            return
        self.request.sendall(bytes([5, wanted]))
        if wanted:
            user = self._read(self._read(2)[1]).decode()
            password = self._read(self._read(1)[0]).decode()
            good = (user, password) == self.server.login
            self.request.sendall(bytes([1, not good]))
            if not good:
                self.server.refused.append(user)
                return
        _, command, _, kind = self._read(4)
        host, port = _address(kind, self._read)
        if command == 3 and self.server.udp:
            self._relay()
            return
        if command != 1:
            self.server.refused.append("udp" if command == 3 else "bind")
            self.request.sendall(b"\x05\x07\0\x01" + bytes(6))
            return
        try:
            target = self.server.open(host, port)
        except OSError:
            self.request.sendall(b"\x05\x05\0\x01" + bytes(6))
            return
        self.request.sendall(b"\x05\0\0\x01" + bytes(6))
        _join(self.request, target)

    def _relay(self):
        """UDP ASSOCIATE: datagrams with their addresses before them, as long as TCP is open."""
        inside, outside = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        with inside, outside:
            inside.bind(("127.0.0.1", 0))
            outside.bind((OUT, 0))
            bound = socket.inet_aton("127.0.0.1") + struct.pack(">H", inside.getsockname()[1])
            self.request.sendall(b"\x05\0\0\x01" + bound)
            client = None
            while True:
                for ready in select.select([self.request, inside, outside], [], [])[0]:
                    if ready is self.request:
                        if not self.request.recv(1024):
                            return
                        continue
                    data, sender = ready.recvfrom(1 << 16)
                    if ready is inside:
                        client = sender
                        self._send_on(data, outside)
                    elif client:
                        head = socket.inet_aton(sender[0]) + struct.pack(">H", sender[1])
                        inside.sendto(b"\0\0\0\x01" + head + data, client)

    def _send_on(self, data, outside):
        rest = io.BytesIO(data[4:])
        host, port = _address(data[3], rest.read)
        self.server.asked_udp.add((host, port))
        with contextlib.suppress(OSError):
            outside.sendto(rest.read(), (self.server.names.get(host, host), port))


def _address(kind, read):
    """A host and a port, as SOCKS5 writes them."""
    if kind == 3:
        host = read(read(1)[0]).decode()
    else:
        family = socket.AF_INET if kind == 1 else socket.AF_INET6
        host = socket.inet_ntop(family, read(4 if kind == 1 else 16))
    return host, struct.unpack(">H", read(2))[0]


class _Http(socketserver.BaseRequestHandler):
    def handle(self):
        head = b""
        while b"\r\n\r\n" not in head:
            part = self.request.recv(1)
            if not part:
                return
            head += part
        connect = re.match(rb"CONNECT \[?([^\]\s]+)\]?:(\d+) ", head)
        plain = re.match(rb"GET http://([^/:]+):(\d+)(/\S*) ", head)
        host, port = (connect or plain)[1].decode(), int((connect or plain)[2])
        target = self.server.open(host, port)
        if connect:
            self.request.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        else:
            target.sendall(head.replace(b"http://" + plain[1] + b":" + plain[2], b"", 1))
        _join(self.request, target)


@contextlib.contextmanager
def serving_proxy(kind, *, names=None, login=None, udp=False):
    """A proxy; ``names`` are the hosts that only it knows, ``asked`` where it was sent to.

    With ``udp`` a SOCKS5 proxy carries datagrams too, to ``asked_udp``.
    """
    handler = {"socks5": _Socks, "http": _Http}[kind]
    with _Server(handler, names or {}, login, udp) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        server.port = server.server_address[1]
        try:
            yield server
        finally:
            server.shutdown()
