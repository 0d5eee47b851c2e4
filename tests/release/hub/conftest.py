"""A small release on a hub of our own; no test waits for a retry, or sees the user's token."""

from __future__ import annotations

import hashlib
import random
import types

import pytest

from tests.release.hub.fake import FakeHub, serving


def small_files():
    """The weights in three parts, RELEASE of the whole, and what no fetch wants."""
    bits = random.Random(7)
    weights = bits.randbytes(150_001)
    md5 = hashlib.md5(weights).hexdigest()
    cuts = (0, 50_000, 110_000, len(weights))
    return {
        ".gitattributes": b"*.pth-split* filter=lfs\n",
        "README.md": b"# a card\n",
        "RELEASE": f" ║  {md5}  consolidated.00.pth  ║\n".encode(),
        "params.json": b'{"dim": 256}\n',
        "tokenizer.model": bits.randbytes(9_000),
        **{f"consolidated.00.pth-split{n}": weights[cuts[n] : cuts[n + 1]] for n in range(3)},
    }


WANTED = {"RELEASE", "params.json", "tokenizer.model",
          *(f"consolidated.00.pth-split{n}" for n in range(3))}  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(FakeHub(small_files())) as fake:
        prepare(monkeypatch, tmp_path, fake.url)
        yield fake
    close()


def prepare(monkeypatch, tmp_path, url):
    """Point huggingface_hub at our hub: nothing of the user's is read, nothing is waited for."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    monkeypatch.setenv("HF_ENDPOINT", url)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
                 "http_proxy", "https_proxy", "all_proxy"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("HF_TOKEN_PATH", str(tmp_path / "no-token")),
        ("HF_HUB_CACHE", str(tmp_path / "no-cache")),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DOWNLOAD_TIMEOUT", 5),
        ("HF_HUB_DISABLE_TELEMETRY", False),
        ("DOWNLOAD_CHUNK_SIZE", 10_000),
    ):
        monkeypatch.setattr(constants, name, value)
    for module in (file_download, _http):
        at_once = types.SimpleNamespace(**{**vars(module.time), "sleep": lambda _: None})
        monkeypatch.setattr(module, "time", at_once)


def close():
    from huggingface_hub import close_session

    close_session()
