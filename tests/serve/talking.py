"""Who the tests are, a server on a socket, and the events of a stream read back."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager

from moetool.serve.listening import listen
from moetool.serve.server import Server

TOKEN, PORT = "a-token-for-tests", 8663
KEY = {"authorization": f"Bearer {TOKEN}"}


def events(text):
    """The documents of a stream, without its end, which must be there."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@contextmanager
def serving(service):
    """The server on a socket of its own, in a thread."""
    listening = listen(0)
    service.port = listening.getsockname()[1]
    server = Server(service)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield server
    finally:
        service.lane.stop()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
