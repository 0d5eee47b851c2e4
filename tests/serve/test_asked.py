"""What a request may ask for: the rows of bad values, each refused with its field."""

from __future__ import annotations

import json

import pytest

from moetool.serve.asked import read_chat, read_completion
from moetool.serve.faults import Fault

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": 1 << 70}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": "x" * 300}, "stop"),
        ({"logprobs": 6}, "logprobs"),
        ({"stream": 1}, "stream"),
        ({"stream": []}, "stream"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"model": 5}, "model"),
        ({"file": "/etc/passwd"}, None),
        ({"n_discard": -1}, None),
    ],
)
def test_a_completion_that_cannot_be_meant(fields, param):
    body = json.dumps({"prompt": "x", **fields}).encode()
    with pytest.raises(Fault) as caught:
        read_completion(body)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"nothing", b'{"prompt": "x"', b'{"prompt": "\xff"}', b"[" * 100_000,
     b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b'{"prompt": "x", "prompt": "y"}',
     b'{"prompt": "x", "temperature": NaN}', b'{"prompt": "x", "top_p": Infinity}'],
)  # fmt: skip
def test_a_body_that_is_no_request(body):
    with pytest.raises(Fault) as caught:
        read_completion(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": ["user"], "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": HI * 2000},
        {"messages": HI, "tools": [{"type": "function"}]},
        {"messages": HI, "response_format": {"type": "json_object"}},
        {"messages": HI, "top_logprobs": 21},
        {"messages": HI, "prompt": "x"},
    ],
)
def test_a_chat_that_cannot_be_meant(fields):
    with pytest.raises(Fault) as caught:
        read_chat(json.dumps(fields).encode())
    assert caught.value.status == 400


def test_null_is_left_out_and_what_has_no_effect_is_taken():
    asked = read_completion(b'{"prompt": "x", "stop": null, "seed": null, "user": "me", "n": 1}')
    assert (asked.max_tokens, asked.stops, asked.sampling.temperature) == (16, (), 1.0)


def test_parts_of_a_message_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = read_chat(json.dumps({"messages": [{"role": "user", "content": parts}]}).encode())
    assert asked.messages == ({"role": "user", "content": "ab"},)
