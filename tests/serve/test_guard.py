"""Who is let through: foreign names and pages, no token, bodies that are too much (W1, W2)."""

from __future__ import annotations

import asyncio
import time

import pytest
from starlette.testclient import TestClient

from moetool.serve import guard
from moetool.serve.server import Service
from moetool.serve.static import PAGE
from tests.serve.talking import KEY, PORT, TOKEN

BODY = {"prompt": "x", "max_tokens": 1, "temperature": 0}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.2:{PORT}",
        f"localhost.evil.example:{PORT}", f"127.0.0.1.nip.io:{PORT}", f"[::1]:{PORT}", "",
        f"0.0.0.0:{PORT}", f"localhost:{PORT}.", f"a@127.0.0.1:{PORT}", f"2130706433:{PORT}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/v1/models"])
def test_only_our_own_name_is_answered(anyone, host, path):
    """A name that was made to point here (DNS rebinding) is another name."""
    done = anyone.get(path, headers={"host": host, **KEY})
    assert done.status_code == 403


def test_both_of_our_names_are(anyone):
    for host in (f"127.0.0.1:{PORT}", f"localhost:{PORT}"):
        assert anyone.get("/v1/models", headers={"host": host, **KEY}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": f"http://127.0.0.1:{PORT + 1}"},
        {"origin": f"https://127.0.0.1:{PORT}"},
        {"origin": f"http://localhost:{PORT}"},  # asked as 127.0.0.1: another origin
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"upgrade": "websocket", "connection": "upgrade"},
    ],
)
def test_other_origins_are_refused_and_given_no_leave_to_read(anyone, headers):
    done = anyone.post("/v1/completions", json=BODY, headers={**KEY, **headers})
    assert done.status_code == 403
    assert not [name for name in done.headers if name.startswith("access-control")]


def test_our_own_page_is_let_through(anyone):
    own = {"origin": f"http://127.0.0.1:{PORT}", "sec-fetch-site": "same-origin", **KEY}
    done = anyone.post("/v1/completions", json=BODY, headers=own)
    assert done.status_code == 200
    assert not [name for name in done.headers if name.startswith("access-control")]


def test_a_link_to_the_page_may_stand_anywhere_and_opens_the_page_only(anyone):
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate",
             "sec-fetch-dest": "document"}  # fmt: skip
    assert anyone.get("/", headers=visit).status_code == 200
    assert anyone.get("/v1/models", headers={**visit, **KEY}).status_code == 403
    assert anyone.get("/app.js", headers=visit).status_code == 403
    assert anyone.get("/", headers={**visit, "sec-fetch-dest": "iframe"}).status_code == 403


def test_a_preflight_gets_nothing(anyone):
    asks = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    done = anyone.options("/v1/completions", headers=asks)
    assert done.status_code == 403
    assert not [name for name in done.headers if name.startswith("access-control")]
    assert anyone.options("/v1/completions", headers=KEY).status_code == 405


@pytest.mark.parametrize(
    "key", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic a-token-for-tests",
            "Bearer a-token-for-test", "Bearer a-token-for-tests2"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/models", "/v1/queue", "/v1/anything"])
def test_no_token_no_answer(anyone, key, path):
    done = anyone.get(path, headers={"authorization": key} if key is not None else {})
    assert (done.status_code, done.headers["www-authenticate"]) == (401, "Bearer")
    assert done.json()["error"]["code"] == "invalid_api_key"


def test_a_form_is_no_request(anyone):
    """What a page can send without asking first: forms and plain text."""
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain"):
        headers = {"content-type": kind, **KEY}
        done = anyone.post("/v1/completions", content='{"prompt":"x"}', headers=headers)
        assert done.status_code == 415


def test_a_websocket_is_refused(anyone):
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), anyone.websocket_connect("/v1/completions"):
        pass


def test_every_answer_carries_the_policy(anyone):
    for path in (*PAGE, "/v1/models", "/none"):
        headers = anyone.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
     "/../pyproject.toml", "/%2e%2e/pyproject.toml", "/..%2fserver.py", "/page/app.js",
     "//etc/passwd", "/static/%00", "/index.html", "/v1/models/../../x", "/v1/models/%2e%2e%2fx"],
)  # fmt: skip
def test_no_path_leads_to_a_file(anyone, path):
    done = anyone.get(path, headers=KEY)
    assert done.status_code == 404
    assert "root" not in done.text


def test_a_body_that_says_that_it_is_large_is_not_read(anyone):
    """No byte of it is taken, so 1 GB costs nothing."""
    began = time.process_time()
    headers = {"content-type": "application/json", "content-length": str(10**9), **KEY}
    done = anyone.post("/v1/completions", content=b"{", headers=headers)
    assert (done.status_code, done.headers["connection"]) == (413, "close")
    assert time.process_time() - began < 1


@pytest.mark.parametrize("told", ["-1", "1e3", "x", "9" * 40])
def test_a_length_that_is_none(anyone, told):
    headers = {"content-type": "application/json", "content-length": told, **KEY}
    assert anyone.post("/v1/completions", content=b"{", headers=headers).status_code == 413


def test_a_body_that_grows_is_cut(service):
    """In chunks, so that no length is told; little more than the limit is ever held."""
    taken = 0

    async def receive():
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b" " * 65_536, "more_body": True}

    assert _status(service, receive) == 413
    assert taken == guard.MOST_BODY // 65_536 + 1


def test_a_body_that_does_not_come_is_not_waited_for(service, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.1)

    async def receive():
        await asyncio.sleep(30)

    assert _status(service, receive) == 408


def test_a_client_that_leaves_in_its_body_starts_nothing(service):
    async def receive():
        return {"type": "http.disconnect"}

    assert _status(service, receive) == 400
    assert service.lane.n_done == 0


def test_a_client_that_is_gone_before_the_first_byte_leaves_the_line(service):
    said = [{"type": "http.request", "body": b'{"prompt": "x", "stream": true}'}]

    async def receive():
        return said.pop() if said else await asyncio.sleep(30)

    async def send(_message):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        _post(service, receive, send)
    assert service.lane.state == {"running": None, "waiting": 0, "done": 1}


def test_a_bug_of_ours_is_told_to_who_runs_the_server(client, service, subject, monkeypatch):
    """And no more than that to who asked."""
    bugs = []
    monkeypatch.setattr(subject.tokenizer, "encode", lambda _text: 1 // 0)
    told = TestClient(
        Service(service.subjects, TOKEN, PORT, bugs.append).app,
        base_url=client.base_url,
        headers=KEY,
    )
    done = told.post("/v1/completions", json=BODY)
    assert (done.status_code, done.json()["error"]["message"]) == (
        500,
        "internal error; see the server",
    )
    assert [type(bug) for bug in bugs] == [ZeroDivisionError]


def _status(service, receive):
    """The status of a POST whose body comes from a function."""
    sent = []

    async def send(message):
        sent.append(message)

    _post(service, receive, send)
    return sent[0]["status"]


def _post(service, receive, send):
    headers = {"host": f"127.0.0.1:{PORT}", "content-type": "application/json", **KEY}
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(service.app(scope, receive, send), 10))


def test_a_prompt_beyond_the_context_is_refused(complete, subject, monkeypatch):
    """Not even cut into tokens where it cannot fit."""
    found = complete([5] * (subject.context + 1), check=400)
    assert found["error"]["code"] == "context_length_exceeded"
    assert complete("a b " * 24_000, check=400)["error"]["code"] == "context_length_exceeded"
    monkeypatch.setattr(subject.tokenizer, "encode", lambda _text: pytest.fail("it was cut"))
    long = "x" * (subject.tokenizer.longest * subject.context + 1)
    assert complete(long, check=400)["error"]["code"] == "context_length_exceeded"
    assert complete([1], max_tokens=4096, check=200, stop=[" "])["choices"]


def test_token_ids_that_the_model_has_not(complete):
    for token in (-1, 768, 10**12):
        assert complete([token], check=400)["error"]["param"] == "prompt"


def test_a_model_that_is_not_here(complete):
    error = complete(check=404, model="../../etc/passwd")["error"]
    assert error["code"] == "model_not_found"
    assert "tiny-mixtral-8x1m" in error["message"]


def test_no_room_for_keys_and_values_is_said(complete, monkeypatch):
    monkeypatch.setattr("moetool.serve.writing.free_nbytes", lambda: 1000)
    error = complete(check=503)["error"]
    assert error["code"] == "NotEnoughMemory"
