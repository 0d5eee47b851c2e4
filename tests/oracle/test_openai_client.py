"""The official openai client against `moetool serve`, and chat prompts against transformers."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.oracle
openai = pytest.importorskip("openai", reason="the openai client is not installed")
pytest.importorskip("uvicorn", reason="the serve extra is not installed")

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "Tell me of the fox"},
    {"role": "assistant", "content": "It was brave."},
    {"role": "user", "content": "And  then?\nÜber </s> what?"},
]


@pytest.fixture(scope="module")
def with_template(tiny_release, tmp_path_factory):
    """The tiny release in the Hugging Face layout, with a template of its own."""
    from moetool.cli.app import run

    out = tmp_path_factory.mktemp("chat") / "tiny-chat"
    assert run(["convert", str(tiny_release), "--to", "safetensors", "--out", str(out), "-q"]) == 0
    (out / "chat_template.jinja").write_text(TEMPLATE)
    return out


@pytest.fixture(scope="module")
def client(with_template):
    from moetool.cli.running import running
    from moetool.cli.serve import _subject
    from moetool.serve.server import Service
    from tests.serve.talking import TOKEN, serving

    bugs = []
    with running(with_template, "cpu", "keep", None) as opened:
        service = Service({"tiny-chat": _subject(opened, {})}, TOKEN, 0, bugs.append)
        with serving(service):
            url = f"http://127.0.0.1:{service.port}/v1"
            with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
                yield client
        service.close()
    assert not bugs


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny-chat"]
    assert client.models.retrieve("tiny-chat").owned_by == "local"


def test_completions(client, moetool, with_template):
    said = client.completions.create(
        model="tiny-chat", prompt="Once upon a time", max_tokens=10, temperature=0, logprobs=3,
        seed=1, stop=["\n\n"], user="me",
    )  # fmt: skip
    words = (
        "generate",
        with_template,
        "--prompt",
        "Once upon a time",
        "--max-tokens",
        10,
        "--json",
    )
    assert said.choices[0].text == json.loads(moetool(*words, check=0).stdout)["text"]
    assert said.choices[0].finish_reason == "length"
    assert len(said.choices[0].logprobs.tokens) == said.usage.completion_tokens == 10


def test_streamed_completions_with_the_routing_beside(client):
    ask = {"model": "tiny-chat", "prompt": "2 + 3 =", "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(**ask)
    parts = list(
        client.completions.create(
            **ask, stream=True, stream_options={"include_usage": True},
            extra_body={"routing": True, "return_token_ids": True},
        )
    )  # fmt: skip
    assert "".join(c.text for p in parts for c in p.choices) == whole.choices[0].text
    assert parts[-1].usage == whole.usage
    (routes,) = parts[0].choices[0].routing
    assert len(routes) == 4
    assert sum(weight for _, weight in routes[0]) == pytest.approx(1, abs=1e-3)


def test_chats(client):
    ask = {"model": "tiny-chat", "messages": TALK, "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    parts = list(client.chat.completions.create(**ask, stream=True))
    assert whole.choices[0].message.role == "assistant"
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    assert len(whole.choices[0].logprobs.content) == 6


def test_what_is_wrong_is_an_error_of_its_kind(client):
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model="tiny-chat", prompt="x", max_tokens=0)
    with pytest.raises(openai.NotFoundError, match="tiny-chat"):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="pictures are not read"):
        picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
        client.chat.completions.create(
            model="tiny-chat", messages=[{"role": "user", "content": picture}]
        )


def test_the_prompt_of_a_chat_is_that_of_transformers(with_template, tiny_release):
    """Template, control tokens and spaces: the same ids, one by one.

    Ours splits control tokens in a text into characters, which a chat checkpoint's own does not.
    """
    transformers = pytest.importorskip("transformers")
    from moetool.cli.running import running
    from moetool.cli.serve import _subject

    theirs = transformers.AutoTokenizer.from_pretrained(with_template, split_special_tokens=False)
    ids = theirs.apply_chat_template(TALK, add_generation_prompt=True, tokenize=True)
    ids = ids["input_ids"] if hasattr(ids, "keys") else ids
    with running(with_template, "cpu", "keep", None) as opened:
        assert _subject(opened, {}).tokens_of_chat(TALK) == list(ids)
