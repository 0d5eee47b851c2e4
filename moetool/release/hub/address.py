"""What a person writes for a hub repository: ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moetool.errors import UsageFault

SCHEME = "hf:"
# huggingface_hub: utils/_validators.py: letters, digits, - _ . and neither -- nor .. nor .git.
_NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_ADDRESS = re.compile(
    rf"(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[\w./-]{{1,200}}))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository, and the branch, tag or commit that was asked for; None: the main branch."""

    repository: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repository.partition("/")[2]

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(text: str) -> bool:
    """Whether a text is meant for a hub."""
    return text.strip().lower().startswith(SCHEME)


def parse_address(text: str) -> HubAddress:
    """Read an address.

    Raises:
        UsageFault: no such repository can be meant.
    """
    found = _ADDRESS.fullmatch(text.strip()[len(SCHEME) :])
    if not is_address(text) or found is None or re.search(r"--|\.\.|\.git(?:@|$)", text):
        raise UsageFault(
            f"{text[:200]!a} is no hub repository",
            hint="write it as hf:OWNER/NAME or hf:OWNER/NAME@REVISION; moetool releases lists some",
        )
    return HubAddress(found["repository"], found["revision"])
