"""Chats: by the checkpoint's own template or not at all, and the template on a short leash."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetool.serve.faults import Fault
from moetool.serve.render import render
from tests.serve.talking import events

HI = [{"role": "user", "content": "Tell me of the fox"}]
ASK = {"messages": HI, "temperature": 0, "max_tokens": 8}


def test_without_a_template_there_is_no_chat(client, subject):
    done = client.post("/v1/chat/completions", json={"model": subject.name, **ASK})
    error = done.json()["error"]
    assert (done.status_code, error["code"]) == (400, "no_chat_template")
    assert "raw release is a base model and has none" in error["message"]
    assert "/v1/completions" in error["message"]


def test_a_chat_is_the_completion_of_what_the_template_makes(client, complete, subject):
    tokens = subject.tokenizer
    prompt = [
        tokens.bos, *tokens.encode("[user] Tell me of the fox", bos=False), tokens.eos,
        *tokens.encode("[assistant]", bos=False),
    ]  # fmt: skip
    done = client.post("/v1/chat/completions", json={"model": "chatty", **ASK})
    (choice,) = done.json()["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == complete(prompt, max_tokens=8)["choices"][0]["text"]
    assert done.json()["usage"]["prompt_tokens"] == len(prompt)


def test_a_streamed_chat(client):
    ask = {"model": "chatty", **ASK, "logprobs": True, "top_logprobs": 2}
    whole = client.post("/v1/chat/completions", json=ask).json()["choices"][0]
    parts = events(client.post("/v1/chat/completions", json={**ask, "stream": True}).text)
    deltas = [part["choices"][0]["delta"] for part in parts]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(d.get("content", "") for d in deltas) == whole["message"]["content"]
    assert len(whole["logprobs"]["content"]) == 8
    first = whole["logprobs"]["content"][0]
    assert first["top_logprobs"][0]["logprob"] == first["logprob"]
    assert bytes(first["bytes"]).decode() == first["token"]
    assert parts[0]["object"] == "chat.completion.chunk"


def test_a_template_may_say_no(client):
    messages = [{"role": "system", "content": "x"}, *HI]
    done = client.post("/v1/chat/completions", json={"model": "chatty", "messages": messages})
    assert done.status_code == 400
    assert "no system" in done.json()["error"]["message"]


def test_a_tokenizer_without_control_tokens(subject, monkeypatch):
    monkeypatch.setitem(subject.tokenizer.__dict__, "control", {})
    text = replace(subject, template="{{ messages[0].content }}").tokens_of_chat(HI)
    assert text == subject.tokenizer.encode("Tell me of the fox", bos=False)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 5000000 }}",
        "{{ ('a' * 700000000) | length }}",
        "{% if %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
    ],
    ids=["endless", "long", "large", "no-template", "escape", "mutates"],
)
def test_a_hostile_template_is_refused(template, monkeypatch):
    monkeypatch.setattr("moetool.serve.render.SECONDS", 10**6)  # the process has limits of its own
    with pytest.raises(Fault) as caught:
        render(template, HI, "<s>", "</s>")
    assert caught.value.code == "chat_template_failed"


def test_a_template_has_what_transformers_gives_it():
    template = (
        "{% for m in messages %}{{ m | tojson }}{% break %}{% endfor %}"
        "{{ strftime_now('%Y') | length }}"
    )
    messages = [{"role": "user", "content": "ü<"}]
    assert render(template, messages, "<s>", "</s>") == '{"role": "user", "content": "ü<"}4'
