"""One link of the chain from the post to the files one runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """Of what, what was found (a word of `moetool verify`), the evidence, and when it was found."""

    of: str
    word: str
    text: str
    when: str = ""

    def __str__(self) -> str:
        return f"{self.of:<8} {self.word}  {self.text}" + (f"; {self.when}" if self.when else "")
