"""/v1/completions and /v1/models: the text of `moetool generate`, and what is beside it."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from starlette.testclient import TestClient

from moetool.cli.console import Console
from moetool.cli.running import running
from moetool.cli.serve import _service, _subject
from moetool.experts.trace import Tracer
from moetool.model.generate import Sampling, generate
from moetool.serve.server import Service
from tests.serve.talking import KEY, PORT, TOKEN


def test_the_text_is_that_of_the_command_line(complete, moetool, tiny_release):
    words = ("generate", tiny_release, "--prompt", "The old", "--device", "cpu", "--json")
    for fields in ({}, {"temperature": 1.2, "seed": 7, "top_p": 0.9, "top_k": 40}):
        options = [f"--{k.replace('_', '-')}={v}" for k, v in fields.items()]
        said = json.loads(moetool(*words, "--max-tokens", 12, *options, check=0).stdout)
        found = complete(**fields)
        assert found["choices"][0]["text"] == said["text"]
        assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 12
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + 12
    assert found["model"] == "tiny-mixtral-8x1m"


def test_a_seed_means_the_same_each_time_and_none_is_any(complete):
    def drawn(**fields):
        return complete(temperature=1.5, max_tokens=24, **fields)["choices"][0]["text"]

    assert drawn(seed=3) == drawn(seed=3) != drawn(seed=4)
    assert len({drawn() for _ in range(3)}) > 1


def test_a_stream_adds_up_to_the_whole(complete):
    """Text, tokens, log-probabilities and routing are the same, piece by piece."""
    fields = {"logprobs": 2, "routing": True, "return_token_ids": True, "echo": False}
    (whole,) = complete(**fields)["choices"]
    parts = complete(stream=True, stream_options={"include_usage": True}, **fields)
    *parts, end, usage = parts
    choices = [part["choices"][0] for part in parts]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert [t for choice in choices for t in choice["token_ids"]] == whole["token_ids"]
    assert [r for choice in choices for r in choice["routing"]] == whole["routing"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [item for choice in choices for item in choice["logprobs"][name]]
        assert joined == whole["logprobs"][name]
    assert len(parts) == 12
    assert (end["choices"][0]["finish_reason"], usage["choices"]) == ("length", [])
    assert usage["usage"]["completion_tokens"] == 12
    assert end["timings"]["prompt_tokens"] == usage["usage"]["prompt_tokens"]


def test_logprobs_are_those_of_the_model(complete, subject):
    (choice,) = complete(max_tokens=3, logprobs=5)["choices"]
    said = choice["logprobs"]
    tokens = subject.tokenizer.encode("The old")
    model = subject.model
    logits = model.forward(torch.tensor(tokens), model.new_cache(len(tokens)))[-1]
    logprobs = logits.log_softmax(-1)
    assert said["token_logprobs"][0] == pytest.approx(float(logprobs.max()), abs=1e-5)
    assert list(said["top_logprobs"][0].values()) == pytest.approx(
        logprobs.topk(5).values.tolist(), abs=1e-5
    )
    assert said["text_offset"][1] == len(said["tokens"][0].replace(" ", " "))
    assert all(math.exp(p) <= 1 for p in said["token_logprobs"])


def test_routing_is_what_each_token_met_when_it_was_read(complete, subject):
    """One pass over prompt and answer gives the same experts as the passes of a generation."""
    (choice,) = complete(max_tokens=6, routing=True, return_token_ids=True, echo=True)["choices"]
    tracer = Tracer(subject.model)
    tokens = choice["token_ids"]
    subject.model.hidden(torch.tensor(tokens), subject.model.new_cache(len(tokens)), tracer)
    routed = tracer.take()
    assert len(choice["routing"]) == len(tokens)
    experts = [[[e for e, _ in layer] for layer in token] for token in choice["routing"]]
    assert experts == routed.experts_TLA.tolist()
    weights = torch.tensor([[[w for _, w in la] for la in token] for token in choice["routing"]])
    assert (weights - routed.weights_TLA).abs().max() < 0.02  # other shapes, other sums
    assert weights.sum(-1) == pytest.approx(torch.ones_like(weights.sum(-1)), abs=1e-3)


def test_an_echo_begins_with_the_prompt(complete):
    prompt = "2 + 3 = 5\n7 - 4 ="
    (choice,) = complete(prompt, echo=True, max_tokens=4)["choices"]
    assert choice["text"].startswith(prompt)
    assert len(choice["text"]) > len(prompt)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("routing", [False, True])
def test_a_stop_text_is_not_given_nor_what_follows(complete, stream, routing):
    whole = complete(max_tokens=30)["choices"][0]["text"]
    stop = whole[11:15]
    got = complete(max_tokens=30, stop=["nowhere", stop], stream=stream, routing=routing)
    choices = [part["choices"][0] for part in got] if stream else got["choices"]
    assert "".join(c["text"] for c in choices) == whole[: whole.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"
    if routing:
        assert all(routes for c in choices for routes in c["routing"])


def test_every_stop_text_cuts_at_the_same_place_whatever_the_pieces(complete):
    """A text from each place of the answer, so that stops begin and end inside tokens."""
    whole = complete(max_tokens=12)["choices"][0]["text"]
    for at in range(0, len(whole) - 3, 2):
        stop = whole[at : at + 3]
        (choice,) = complete(max_tokens=12, stop=stop, return_token_ids=True, routing=True)[
            "choices"
        ]
        assert choice["text"] == whole[: whole.index(stop)]
        assert len(choice["token_ids"]) == len(choice["routing"])


def test_the_end_of_the_text_is_a_stop(complete, subject, monkeypatch):
    """The second token is made the mark of the end."""
    ids = complete(max_tokens=5, return_token_ids=True)["choices"][0]["token_ids"]
    monkeypatch.setattr(subject.tokenizer, "eos", ids[1])
    found = complete(max_tokens=5, return_token_ids=True, routing=True)
    (choice,) = found["choices"]
    assert (choice["token_ids"], choice["finish_reason"]) == (ids[:1], "stop")
    assert choice["routing"][0] is not None


def test_token_ids_are_a_prompt(complete, subject):
    ids = subject.tokenizer.encode("The old")
    text = complete("The old")["choices"][0]["text"]
    for prompt in (ids, [ids], ["The old"]):
        assert complete(prompt)["choices"][0]["text"] == text


def test_an_empty_prompt_needs_the_mark_of_a_beginning(complete, subject, monkeypatch):
    assert complete("")["usage"]["prompt_tokens"] == 1
    monkeypatch.setattr(subject.tokenizer, "bos", -1)
    assert complete("", check=400)["error"]["param"] == "prompt"


def test_the_last_token_of_a_full_context_was_not_read(complete, subject, monkeypatch):
    ids = subject.tokenizer.encode("The old")
    small = replace(subject.model.args, max_seq_len=len(ids) + 4)
    monkeypatch.setattr(subject.model, "args", small)
    (choice,) = complete(ids, max_tokens=4, routing=True)["choices"]
    assert [routes is None for routes in choice["routing"]] == [False] * 3 + [True]


def test_models_and_the_card(client, subject):
    listed = client.get("/v1/models").json()
    assert [entry["id"] for entry in listed["data"]] == [subject.name, "chatty"]
    found = client.get(f"/v1/models/{subject.name}").json()
    assert found["card"]["model"]["n_params"] == 7_481_600
    assert client.get("/v1/models/none").status_code == 404


def test_no_path_of_this_machine_is_told(client, tiny_release):
    said = [client.get(path).text for path in ("/v1/models/tiny-mixtral-8x1m", "/v1/queue", "/")]
    assert not any(str(tiny_release.parent) in text for text in said)


def test_two_generations_are_two_in_the_count(client, complete):
    complete()
    complete(stream=True)
    assert client.get("/v1/queue").json() == {"running": None, "waiting": 0, "done": 2}


def test_both_ways_to_generate_agree_on_tokens(complete, subject):
    """The server's loop and the runner's own."""
    ids = subject.tokenizer.encode("The old")
    ours = complete(max_tokens=9, temperature=1, seed=5, return_token_ids=True)["choices"][0]
    theirs = list(generate(subject.model, ids, 9, sampling=Sampling(1.0, seed=5)))
    assert ours["token_ids"] == theirs


def test_a_dense_model_is_served_without_routing(moetool, tmp_path):
    moetool("tiny", tmp_path / "dense", "--geometry", "tiny-dense", check=0)
    with running(tmp_path / "dense", "cpu", "keep", None) as opened:
        service = Service({"dense": _subject(opened, {})}, TOKEN, PORT, print)
        with closing(service):
            client = TestClient(service.app, base_url=f"http://127.0.0.1:{PORT}", headers=KEY)
            body = {"prompt": "The old", "max_tokens": 3, "routing": True, "echo": True}
            (choice,) = client.post("/v1/completions", json=body).json()["choices"]
            assert set(choice["routing"]) == {None}
            assert len(choice["routing"]) == choice["echoed_tokens"] + 3
            assert client.get("/v1/models/dense").json()["card"]["model"]["n_experts"] == 0


def test_weights_that_do_not_fit_are_read_as_they_are_needed(complete, tiny_release):
    """A server with 2 MB for 14 MB of weights says the same."""
    with running(tiny_release, "cpu", "keep", "2MB") as opened:
        service = Service({"small": _subject(opened, {})}, TOKEN, PORT, print)
        with closing(service):
            client = TestClient(service.app, base_url=f"http://127.0.0.1:{PORT}", headers=KEY)
            body = {"prompt": "The old", "max_tokens": 6, "temperature": 0}
            said = client.post("/v1/completions", json=body).json()
    assert said["choices"][0]["text"] == complete(max_tokens=6)["choices"][0]["text"]


def test_two_share_the_memory_and_have_names_of_their_own(tiny_release):
    console, paths = Console(quiet=True), [tiny_release, tiny_release]
    with _service(console, paths, "cpu", "keep", "20MB", PORT) as service:
        assert list(service.subjects) == ["tiny-mixtral-8x1m", "tiny-mixtral-8x1m (B)"]
        budgets = [subject.model.weights.budget for subject in service.subjects.values()]
        assert budgets == [10_000_000, 10_000_000]
        assert len(service.token) >= 32
        client = TestClient(service.app, base_url=f"http://127.0.0.1:{PORT}")
        client.headers["authorization"] = f"Bearer {service.token}"
        assert client.get("/v1/models/tiny-mixtral-8x1m%20(B)").status_code == 200
