"""What a request may ask for: the fields of the OpenAI API that are done here, and four more.

    top_k             as the command line has it
    routing           true: the experts of each token, in every layer
    return_token_ids  true: the ids of the tokens, as vLLM names them
    echo              the prompt too, in completions, as the API has it

What would change the text and is not done here is refused, not ignored.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from moetool.model.generate import Sampling
from moetool.serve.faults import bad
from moetool.serve.fields import Fields

MOST_TOKENS = 4096  # new ones, of one request
USUAL_TOKENS, USUAL_ANSWER = 16, 512  # the API's for completions; ours for chats, which has none
MOST_STOPS, LONGEST_STOP = 16, 256
MOST_MESSAGES = 1024
HOTTEST = 2.0
ROLES = frozenset({"system", "developer", "user", "assistant"})
COMPLETION_TOP, CHAT_TOP = 5, 20  # log-probabilities beside the chosen one, as the API limits them
SEEDS = 1 << 63


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, checked; exactly one of ``prompt`` and ``messages`` is there.

    ``top_logprobs`` is None where no log-probabilities are wanted.
    """

    model: str | None
    prompt: str | tuple[int, ...] | None
    messages: tuple[dict[str, str], ...] | None
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]
    top_logprobs: int | None
    stream: bool
    include_usage: bool
    echo: bool
    routing: bool
    token_ids: bool


def read_completion(body: bytes) -> Asked:
    """Read a request to /v1/completions.

    Raises:
        Fault: malformed, out of range, or asks for what is not done here.
    """
    fields = Fields(body)
    top = fields.integer("logprobs", 0, COMPLETION_TOP, None)
    echo = fields.flag("echo")
    if echo and top is not None:
        raise bad("echo with logprobs is not done here", "echo", hint="moetool eval scores a text")
    fields.only("suffix")
    fields.only("best_of", 1)
    max_tokens = fields.integer("max_tokens", 1, MOST_TOKENS, USUAL_TOKENS)
    prompt = _prompt(fields.take("prompt"))
    return _finish(fields, max_tokens, top, prompt=prompt, echo=echo)


def read_chat(body: bytes) -> Asked:
    """Read a request to /v1/chat/completions.

    Raises:
        Fault: malformed, out of range, or asks for what is not done here.
    """
    fields = Fields(body)
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, CHAT_TOP, 0)
    for name in ("tools", "functions", "tool_choice", "function_call", "modalities", "audio"):
        fields.only(name, [], "none", ["text"])
    fields.only("response_format", {"type": "text"})
    older = fields.integer("max_tokens", 1, MOST_TOKENS, USUAL_ANSWER)
    max_tokens = fields.integer("max_completion_tokens", 1, MOST_TOKENS, older)
    messages = _messages(fields.take("messages"))
    return _finish(fields, max_tokens, top if wanted else None, messages=messages)


def _finish(
    fields: Fields,
    max_tokens: int,
    top: int | None,
    *,
    prompt: str | tuple[int, ...] | None = None,
    messages: tuple[dict[str, str], ...] | None = None,
    echo: bool = False,
) -> Asked:
    """Take what both kinds of requests share, and refuse the rest."""
    for name, allowed in (("n", 1), ("presence_penalty", 0), ("frequency_penalty", 0)):
        fields.only(name, allowed)
    fields.only("logit_bias", {})
    stream = fields.flag("stream")
    options = fields.take("stream_options") or {}
    asked = Asked(
        model=fields.text("model"),
        prompt=prompt,
        messages=messages,
        max_tokens=max_tokens,
        sampling=_sampling(fields),
        stops=_stops(fields.take("stop")),
        top_logprobs=top,
        stream=stream,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        echo=echo,
        routing=fields.flag("routing"),
        token_ids=fields.flag("return_token_ids"),
    )
    fields.end()
    return asked


def _sampling(fields: Fields) -> Sampling:
    """As the API has it, 1 is the usual temperature, and no seed is any seed."""
    top_p = fields.number("top_p", 0, 1, 1)
    if not top_p:
        raise bad("top_p must be above 0", "top_p", hint="temperature 0 takes the best token")
    return Sampling(
        temperature=fields.number("temperature", 0, HOTTEST, 1),
        top_p=top_p,
        top_k=fields.integer("top_k", 0, 1 << 20, 0),
        seed=fields.integer("seed", -SEEDS, SEEDS - 1, secrets.randbelow(1 << 31)),
    )


def _prompt(value: Any) -> str | tuple[int, ...]:  # noqa: ANN401  # JSON is made of Any
    """A text, or token ids; the API also has a list of one of these."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return _encodable(value, "prompt")
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return tuple(value)
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        raise bad("one prompt at a time", "prompt", hint="send one request for each")
    raise bad("prompt must be a string or a list of token ids", "prompt")


def _messages(value: Any) -> tuple[dict[str, str], ...]:  # noqa: ANN401  # JSON is made of Any
    if not isinstance(value, list) or not 0 < len(value) <= MOST_MESSAGES:
        raise bad(f"messages must be a list of 1 to {MOST_MESSAGES}", "messages")
    return tuple(_message(item) for item in value)


def _message(item: Any) -> dict[str, str]:  # noqa: ANN401  # JSON is made of Any
    role = item.get("role") if isinstance(item, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise bad(f"a message has one of the roles {', '.join(sorted(ROLES))}", "messages")
    content = item.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise bad("the content of a message is a text", "messages", hint="pictures are not read")
    return {"role": role, "content": _encodable(content, "messages")}


def _encodable(text: str, name: str) -> str:
    """The text; JSON can spell halves of surrogate pairs, which no text has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad(f"{name} holds half of a surrogate pair", name) from None
    return text


def _stops(value: Any) -> tuple[str, ...]:  # noqa: ANN401  # JSON is made of Any
    stops = [value] if isinstance(value, str) else [] if value is None else value
    good = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not good or not all(isinstance(s, str) and 0 < len(s) <= LONGEST_STOP for s in stops):
        raise bad(
            f"stop must be a text or a list of up to {MOST_STOPS}, each of 1 to {LONGEST_STOP} "
            "characters",
            "stop",
        )
    return tuple(stops)
