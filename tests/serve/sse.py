"""Who the tests are, and the events of a stream read back."""

from __future__ import annotations

import json

TOKEN, PORT = "a-token-for-tests", 8663
KEY = {"authorization": f"Bearer {TOKEN}"}


def events(text):
    """The documents of a stream, without its end, which must be there."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]
