"""The trained tiny release as a server knows it, a client in this process, and one on a socket."""

from __future__ import annotations

from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from moetool.cli.running import running
from moetool.cli.serve import _subject
from moetool.serve.server import Service
from tests.serve.talking import KEY, PORT, TOKEN, events, serving

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}[{{ m.role }}] {{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="session")
def subject(tiny_release):
    with running(tiny_release, "cpu", "keep", None) as opened:
        yield _subject(opened, {})


@pytest.fixture
def service(subject):
    """The tiny release, and the same again with a chat template."""
    chatty = replace(subject, name="chatty", template=TEMPLATE)
    bugs = []
    service = Service({subject.name: subject, "chatty": chatty}, TOKEN, PORT, bugs.append)
    yield service
    service.close()
    assert not bugs


@pytest.fixture
def anyone(service):
    """Somebody without a token."""
    return TestClient(service.app, base_url=f"http://127.0.0.1:{PORT}")


@pytest.fixture
def client(anyone):
    """Somebody with the token."""
    anyone.headers.update(KEY)
    return anyone


@pytest.fixture
def complete(client):
    """The answer to a completion, greedy and short unless it is said otherwise."""

    def run(prompt="The old", check=200, **fields):
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 12, **fields}
        done = client.post("/v1/completions", json=body)
        assert done.status_code == check, done.text
        return done.json() if not body.get("stream") else events(done.text)

    return run


@pytest.fixture
def live(service):
    with serving(service):
        yield service
