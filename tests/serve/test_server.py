"""The server on a real socket: slow, many and vanishing clients, signals, ports (W2, W3)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection

import pytest

from moetool.cli.serve import USUAL_PORT
from moetool.errors import SystemFault
from moetool.serve import connections, listening
from moetool.serve.listening import listen, owner_of
from tests.serve.talking import KEY, serving

LONG = {"prompt": "The old", "max_tokens": 4000, "temperature": 0, "stream": True}
HEADERS = {"content-type": "application/json", **KEY}


def post(port, body, **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/v1/completions", json.dumps(body), {**HEADERS, **headers})
    return connection, connection.getresponse()


def get(port, path="/v1/queue"):
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers=KEY)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def until(condition, seconds=15):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_ends_its_generation(live, stream):
    """4,000 tokens would take most of a minute; those behind it get their turn."""
    if stream:
        connection, answer = post(live.port, LONG)
        assert answer.readline().startswith(b"data: ")
    else:
        connection = HTTPConnection("127.0.0.1", live.port, timeout=20)
        connection.request(
            "POST", "/v1/completions", json.dumps({**LONG, "stream": False}), HEADERS
        )
        until(lambda: live.lane.state["running"])
        answer = connection
    answer.close()
    connection.close()
    until(lambda: live.lane.state["running"] is None)
    connection, answer = post(live.port, {**LONG, "max_tokens": 2, "stream": False})
    assert json.loads(answer.read())["usage"]["completion_tokens"] == 2
    connection.close()


def test_who_waits_is_told_and_who_leaves_the_line_is_gone(live):
    busy, first = post(live.port, LONG)
    assert first.readline().startswith(b"data: ")
    waiting, second = post(live.port, LONG)
    assert second.readline() == b": waiting 1\n"
    assert json.loads(get(live.port)[1])["waiting"] == 1
    second.close()
    waiting.close()
    until(lambda: live.lane.state["waiting"] == 0)
    assert live.lane.state["running"]
    first.close()
    busy.close()
    until(lambda: live.lane.state["running"] is None)


def test_half_a_request_is_not_waited_for(live, monkeypatch):
    """Slow loris: the head never ends; the server answers others and closes it."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    with socket.create_connection(("127.0.0.1", live.port), 10) as slow:
        for byte in b"GET / HTTP/1.1\r\nX":
            slow.sendall(bytes([byte]))
        assert get(live.port)[0] == 200
        slow.settimeout(10)
        with suppress(ConnectionResetError):  # which is as good
            assert slow.recv(1) == b""
    # A connection that had its answer and then says half of the next is no better.
    connection = HTTPConnection("127.0.0.1", live.port, timeout=10)
    connection.request("GET", "/v1/queue", headers=KEY)
    connection.getresponse().read()
    connection.sock.sendall(b"GET /v1")
    with suppress(ConnectionResetError):
        assert connection.sock.recv(1) == b""
    connection.close()


def test_hundreds_of_connections_that_say_nothing_leave_room(service, monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 24)
    with serving(service) as server:
        _crowd(service, server.server_state.connections)


def _crowd(live, held):
    silent = [socket.create_connection(("127.0.0.1", live.port), 10) for _ in range(200)]
    assert get(live.port)[0] == 200
    busy, answer = post(live.port, LONG)  # and a request is no idle connection
    assert answer.readline().startswith(b"data: ")
    more = [socket.create_connection(("127.0.0.1", live.port), 10) for _ in range(40)]
    answer.readline()
    assert answer.readline().startswith(b"data: ")
    assert 1 < len(held) <= 24
    for each in (*silent, *more, answer, busy):
        each.close()


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xfe\xfd\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
     b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
     b"GET " + b"/" * 40_000 + b" HTTP/1.1\r\n\r\n",
     b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: x\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_http_gets_an_error_and_no_more(live, raw):
    with socket.create_connection(("127.0.0.1", live.port), 10) as client:
        client.settimeout(10)
        client.sendall(raw)
        assert client.recv(20)[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 403"}
    assert get(live.port)[0] == 200


def test_a_gigabyte_is_refused_by_its_announcement(live):
    with socket.create_connection(("127.0.0.1", live.port), 10) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
        client.sendall(f"{head}Content-Length: 1000000000\r\n\r\n".encode() + b"{" * 1000)
        client.settimeout(10)
        assert client.recv(12) == b"HTTP/1.1 413"


def test_only_this_machine_can_connect(live):
    """It listens on 127.0.0.1 and on no other address of any family."""
    rows = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as lines:
            rows += [line.split()[1] for line in lines if f":{live.port:04X} 00" in line]
    listening_at = {row for row in rows if row.endswith(f":{live.port:04X}")}
    assert listening_at == {f"0100007F:{live.port:04X}"}


def test_a_port_that_is_taken_names_its_owner():
    with listen(0) as taken:
        port = taken.getsockname()[1]
        assert f"(pid {os.getpid()})" in owner_of(port)
        with pytest.raises(SystemFault) as caught:
            listen(port)
    assert f"(pid {os.getpid()})" in str(caught.value)
    assert caught.value.exit_code == 5
    assert caught.value.hint
    assert owner_of(port) is None


def test_a_machine_without_ipv4_is_said(monkeypatch):
    """As on a host that has IPv6 only."""
    monkeypatch.setattr(listening, "ADDRESS", "192.0.2.1")
    with pytest.raises(SystemFault, match=r"192\.0\.2\.1"):
        listen(0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
def test_a_signal_ends_it_in_the_middle_of_a_text(tiny_release, number, code):
    process = subprocess.Popen(
        [sys.executable, "-m", "moetool", "serve", tiny_release, "--port", "0", "--device", "cpu",
         "--json", "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        lines = []
        while not lines or lines[-1] != b"}\n":
            lines.append(process.stdout.readline())
            assert lines[-1]
        found = json.loads(b"".join(lines))
        port = int(found["url"].split(":")[2].split("/")[0])
        connection, answer = post(port, LONG, authorization=f"Bearer {found['token']}")
        assert answer.readline().startswith(b"data: ")
        process.send_signal(number)
        rest = answer.read().decode()
        assert process.wait(30) == code  # 4,000 tokens would take longer
        connection.close()
        assert "stopping" in rest
        assert "[DONE]" not in rest
        assert process.stdout.read() == b""
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()


def test_the_command_line_names_the_owner(moetool, tiny_release):
    with listen(0) as taken:
        words = ("serve", tiny_release, "--device", "cpu", "--port", taken.getsockname()[1])
        done = moetool(*words, check=5)
    assert f"(pid {os.getpid()})" in done.stderr
    assert "--port 0" in done.stderr


def test_the_extra_is_named_where_it_is_missing(moetool, tiny_release, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    done = moetool("serve", tiny_release, check=2)
    assert "moetool[serve]" in done.stderr


def test_the_usual_port_is_one_that_needs_no_rights():
    assert 1024 < USUAL_PORT < 32768  # below those that Linux gives to clients
