"""Range requests: what is read is what a local file would give, and no server is believed."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest

from moetool.errors import BadHeader, NetworkFault, Refused, TruncatedFile, UsageFault
from moetool.formats import open_checkpoint
from moetool.formats.remote import SMALL_FILES, read_remote
from moetool.release.fixture import find_fixture
from moetool.release.peek import address as peek_address
from moetool.release.peek import https as peek_https
from moetool.release.peek.address import Gate, is_public
from moetool.release.peek.https import HttpFiles, HttpOptions, name_in

DATA = bytes(range(256)) * 4096  # 1 MiB


@contextlib.contextmanager
def server(files, misbehave=None, certificate=None):
    """A server with ranges on the loopback address; ``misbehave`` may answer in its place."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers))
            if misbehave and misbehave(self) is not None:
                return
            body = files.get(self.path.partition("?")[0].lstrip("/"))
            if body is None:
                self.send_error(404)
                return
            first, last = map(
                int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
            )
            if first >= len(body):
                self.send_error(416)
                return
            answer(
                self,
                body[first : last + 1],
                f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}",
            )

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.block_on_close = False
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        httpd.socket = context.wrap_socket(
            httpd.socket, server_side=True, do_handshake_on_connect=False
        )
        httpd.handle_error = lambda *_: None  # a handshake that the client ends
    scheme = "https" if certificate else "http"
    httpd.asked, httpd.url = asked, f"{scheme}://127.0.0.1:{httpd.server_port}"
    try:
        yield httpd
    finally:
        httpd.shutdown()
        httpd.server_close()


def answer(handler, body, content_range, status=206, **headers):
    handler.send_response(status)
    if content_range:
        handler.send_header("Content-Range", content_range)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(body)
    return True


def opened(url, **options):
    return HttpFiles(url, (), HttpOptions(**{"timeout_s": 5, **options}))


def read_ten(url, **options):
    files = opened(url, **options)
    return files.open(files.name).pread(0, 10)


def test_a_checkpoint_is_read_by_ranges_as_from_the_disk(tmp_path):
    """Headers and the params.json beside it; nothing else, and each byte once."""
    folder = find_fixture().directory
    held = {f"a b/{p.name}": p.read_bytes() for p in folder.iterdir() if p.is_file()}
    asked = {f"a%20b/{name.partition('/')[2]}": data for name, data in held.items()}
    with server(asked) as httpd:
        files = HttpFiles(
            f"{httpd.url}/a%20b/consolidated.00.pth?download=true", SMALL_FILES, HttpOptions()
        )
        found = read_remote(files, tmp_path, files.name)
        origin = files.origin()
    with open_checkpoint(folder) as local:
        assert found.catalog.tensors == local.catalog.tensors
    assert (tmp_path / "params.json").read_bytes() == (folder / "params.json").read_bytes()
    assert not (tmp_path / "config.json").exists()
    size = sum((folder / n).stat().st_size for n in ("consolidated.00.pth", "params.json"))
    assert (origin.name, origin.nbytes) == ("consolidated.00.pth", size)
    assert origin.requests == len(httpd.asked) <= 6
    assert origin.received_nbytes < 700_000 < size / 5
    assert "?" not in origin.link
    for _, headers in httpd.asked:
        assert headers["Accept-Encoding"] == "identity"
        assert not {"Cookie", "Authorization", "Referer"} & set(headers)


def test_any_range_and_never_twice():
    with server({"x.gguf": DATA}) as httpd:
        file = opened(f"{httpd.url}/x.gguf").open("x.gguf")
        for offset, nbytes in [(0, 5), (262_140, 10), (1_048_000, 576), (9, 0), (0, len(DATA))]:
            assert file.pread(offset, nbytes) == DATA[offset : offset + nbytes]
        count = len(httpd.asked)
        assert file.pread(300_000, 500_000) == DATA[300_000:800_000]
        assert len(httpd.asked) == count
        with pytest.raises(TruncatedFile):
            file.pread(len(DATA), 1)


def _wrong(**told):
    """An answer that is right but for what is told."""

    def misbehave(handler):
        told_range = told.get("content_range", f"bytes 0-262143/{len(DATA)}")
        headers = {k: v for k, v in told.items() if k[0].isupper()}
        body = told.get("body", DATA[:262_144])
        return answer(handler, body, told_range, told.get("status", 206), **headers)

    return misbehave


@pytest.mark.parametrize(
    ("misbehave", "error", "words"),
    [
        (_wrong(status=200, content_range=None), Refused, "whole files only"),
        (_wrong(content_range=None), Refused, "no range"),
        (_wrong(content_range=f"bytes 1-262144/{len(DATA)}"), Refused, "says"),
        (_wrong(content_range=f"bytes 0-262142/{len(DATA)}"), Refused, "says"),
        (_wrong(content_range="bytes 0-262143/*"), Refused, "says"),
        (_wrong(content_range="bytes 0-262143/1000"), Refused, "says"),
        (_wrong(content_range="bytes 0-262143/9999999999999999999999"), Refused, "says"),
        (_wrong(content_range="bytes 0-262143/999999999999999999"), Refused, "says"),
        (_wrong(Content_Length="262145"), Refused, "another length"),
        (_wrong(Content_Encoding="gzip"), Refused, "encoded"),
        (_wrong(body=DATA[:1000], Content_Length="262144"), NetworkFault, "broke off|ends after"),
        (_wrong(body=DATA[:1000], Content_Length=None), NetworkFault, "ends after 1000 of"),
        (_wrong(body=DATA[:262_200], Content_Length=None), Refused, "more than it says"),
        (_wrong(status=416, content_range=None), TruncatedFile, "empty"),
        (_wrong(status=404, content_range=None), NetworkFault, "404"),
        (_wrong(status=503, content_range=None), NetworkFault, "503"),
        (_wrong(status=302, Location="https://10.0.0.7/x.gguf"), Refused, "private network"),
        (_wrong(status=302, Location="https://[::ffff:169.254.169.254]/"), Refused, "private"),
        (_wrong(status=302, Location="https://[fd00::1]/x"), Refused, "private network"),
        (_wrong(status=302, Location="http://192.0.2.9/x"), Refused, "plain http"),
        (_wrong(status=302, Location="file:///etc/passwd"), Refused, "not an https"),
        (_wrong(status=302, Location="https://me:pw@127.0.0.1/x"), Refused, "password"),
        (_wrong(status=302, Location="/x.gguf"), Refused, "redirects"),
        (_wrong(status=301, Location=None), Refused, "redirects"),
    ],
)
def test_a_server_that_misbehaves_is_told_and_not_believed(misbehave, error, words):
    with server({}, misbehave) as httpd, pytest.raises(error, match=words):
        read_ten(f"{httpd.url}/x.gguf")
    assert len(httpd.asked) <= peek_https.MAX_REDIRECTS + 1


def test_a_redirect_on_the_same_machine_is_followed():
    def misbehave(handler):
        if handler.path == "/old.gguf":
            return answer(handler, b"", None, 307, Location="/new.gguf?signed=1")
        return None

    with server({"new.gguf": DATA}, misbehave) as httpd:
        assert read_ten(f"{httpd.url}/old.gguf") == DATA[:10]


def test_a_file_that_changes_between_two_requests_is_refused():
    tags = iter(["a", "b"])

    def misbehave(handler):
        first, last = map(int, re.findall(r"\d+", handler.headers["Range"]))
        said = f"bytes {first}-{last}/{len(DATA)}"
        return answer(handler, DATA[first : last + 1], said, ETag=next(tags))

    with server({}, misbehave) as httpd:
        file = opened(f"{httpd.url}/x.gguf").open("x.gguf")
        with pytest.raises(Refused, match="changed"):
            file.pread(900_000, 10)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_drips_is_left_in_time(part):
    """Each byte comes before the timeout of one read; the request as a whole is bounded."""

    def misbehave(handler):
        with contextlib.suppress(OSError):
            if part == "body":
                handler.send_response(206)
                handler.send_header("Content-Range", f"bytes 0-262143/{len(DATA)}")
                handler.end_headers()
            for _ in range(100):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.05)
        return True

    began = time.monotonic()
    with server({}, misbehave) as httpd, pytest.raises(NetworkFault, match=r"in 0\.4 s"):
        read_ten(f"{httpd.url}/x.gguf", timeout_s=0.2)
    assert time.monotonic() - began < 2


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate with")
def test_a_certificate_must_be_trusted_and_of_that_host(tmp_path, monkeypatch):
    made = tmp_path / "made.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=x"
    subprocess.run(
        ["openssl", *words.split(), "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", made, "-out", tmp_path / "certificate.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    with made.open("ab") as both:
        both.write((tmp_path / "certificate.pem").read_bytes())
    with server({"x.gguf": DATA}, certificate=made) as httpd:
        with pytest.raises(NetworkFault, match="certificate"):
            read_ten(f"{httpd.url}/x.gguf")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert read_ten(f"{httpd.url}/x.gguf") == DATA[:10]
        with pytest.raises(NetworkFault, match="certificate"):
            read_ten(f"{httpd.url.replace('127.0.0.1', 'localhost')}/x.gguf")


def test_a_server_that_is_silent_or_not_there():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.gguf"
        with pytest.raises(NetworkFault):
            read_ten(url, timeout_s=0.2)
    with pytest.raises(NetworkFault, match="cannot connect"):
        read_ten(url)


def test_headers_without_an_end_are_not_followed(monkeypatch):
    monkeypatch.setattr(peek_https, "MAX_NBYTES", 600_000)
    with server({"x.gguf": DATA}) as httpd:
        file = opened(f"{httpd.url}/x.gguf").open("x.gguf")
        with pytest.raises(Refused, match="longer than"):
            file.pread(0, len(DATA))


def test_a_file_that_is_no_checkpoint_and_a_shard_that_is_missing(tmp_path):
    shard = "model-00001-of-00001.safetensors"
    index = b'{"weight_map": {"a": "%s"}}' % shard.encode()
    with server({"x.gguf": DATA, "model.safetensors.index.json": index}) as httpd:
        with pytest.raises(BadHeader):
            read_remote(opened(f"{httpd.url}/x.gguf"), tmp_path, "x.gguf")
        name = "model.safetensors.index.json"
        with pytest.raises(BadHeader, match="is not there"):
            read_remote(opened(f"{httpd.url}/{name}"), tmp_path, name)


@pytest.mark.parametrize(
    "url",
    ["http://192.0.2.1/x.gguf", "ftp://a/x.gguf", "https:///x.gguf", "https://u@127.0.0.1/x.gguf",
     "https://127.0.0.1:99999/x.gguf", "https://127.0.0.1/x\n.gguf"],
)  # fmt: skip
def test_addresses_that_cannot_be_meant(url):
    with pytest.raises(UsageFault):
        opened(url)


def test_nothing_secret_of_an_address_is_printed():
    with pytest.raises(UsageFault) as caught:
        opened("https://me:pw@127.0.0.1/x.gguf?signed=1")
    assert caught.value.where == "https://127.0.0.1/x.gguf"


def test_plain_http_to_others_only_where_it_is_allowed():
    assert Gate(allow_http=True).first("http://192.0.2.1/x").addresses
    assert Gate().first("http://127.0.0.1/x").addresses


def test_a_host_whose_address_changes_leads_nowhere_private(monkeypatch):
    """What a name stood for at first may be private; what it stands for later may not become so."""
    answers = iter(["198.51.100.7", "127.0.0.1", "10.1.1.1"])

    def resolve(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(peek_address.socket, "getaddrinfo", resolve)
    gate = Gate()
    gate.first("https://rebound.example/x")
    for _ in range(2):
        with pytest.raises(Refused, match="private"):
            gate.beside("https://rebound.example/params.json")


@pytest.mark.parametrize(
    ("text", "public"),
    [("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.0.0.1", False),
     ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False),
     ("::1", False), ("fe80::1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False),
     ("2002:0a00:0001::", False)],
)  # fmt: skip
def test_which_addresses_are_public(text, public):
    assert is_public(ipaddress.ip_address(text)) is public


def test_names_in_addresses():
    assert name_in("https://a/b/c%20d.gguf?x=/y") == "c d.gguf"
    assert name_in("https://a/b/") == ""
    for evil in ("https://a/%2e%2e", "https://a/..%2fx.gguf", "https://a/%1b.gguf"):
        with pytest.raises(UsageFault):
            name_in(evil)
