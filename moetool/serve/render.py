"""A chat template, run in a process of its own: it is a program that came with the checkpoint.

jinja2's sandbox keeps it from python's objects, not from endless loops and from a text that fills
the memory; the limits of a process do. Rendered as transformers does it (huggingface/transformers:
src/transformers/utils/chat_template_utils.py: render_jinja_template).

python -m moetool.serve.render   reads {"template", "messages", "bos_token", "eos_token"} on stdin
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

from moetool.serve.faults import Fault, bad

if TYPE_CHECKING:
    from collections.abc import Sequence

CPU_SECONDS, SECONDS, NBYTES, MOST_TEXT = 2, 20, 512 << 20, 4 << 20
SAID_NO = 3  # the template itself refused these messages, by raise_exception


def render(template: str, messages: Sequence[dict[str, str]], bos: str, eos: str) -> str:
    """The prompt that a template makes of messages, ready for an answer.

    Raises:
        Fault: the template says no, fails, or takes too long or too much.
    """
    asked = {"template": template, "messages": messages, "bos_token": bos, "eos_token": eos}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "moetool.serve.render"],
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode not in {0, SAID_NO}:
        raise Fault(
            HTTPStatus.BAD_REQUEST,
            "the checkpoint's chat template fails, or takes more than it may",
            hint="use /v1/completions",
            code="chat_template_failed",
        )
    if done.returncode == SAID_NO:
        raise bad(f"the chat template says no: {done.stdout.decode()[:200]}", "messages")
    return done.stdout.decode()


class _Refusal(Exception):
    """What a template raises by itself."""


def _raise(message: str) -> NoReturn:
    raise _Refusal(message)


def _main() -> int:
    """Render what is on stdin within the limits."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (NBYTES, NBYTES))
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    template = environment.from_string(asked.pop("template"))
    try:
        text = template.render(**asked, tools=None, documents=None, add_generation_prompt=True)
    except _Refusal as error:
        sys.stdout.write(str(error))
        return SAID_NO
    if len(text) > MOST_TEXT:
        return 1
    sys.stdout.buffer.write(text.encode())
    return 0


def _to_json(value: Any, *, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: ANN401  # whatever a template has
    """As transformers has it: jinja2's own filter would escape what is meant for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


if __name__ == "__main__":
    sys.exit(_main())
