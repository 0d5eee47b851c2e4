"""The text of a RELEASE file as the 2023 release has it: MD5 and name, a line each.

╓──────────────────────────────────────────────────────────╖
║        1faa9bc9b20fcfe81fcd4eb7166a79e6  params.json     ║
╙──────────────────────────────────────────────────────────╜
"""

from __future__ import annotations

from collections.abc import Mapping

from moetool.errors import Refused
from moetool.release.manifest import parse_release_file

WIDTH = 76
NO_MD5 = "0" * 32


def release_text(name: str, md5s: Mapping[str, str]) -> str:
    """Write a RELEASE file.

    Args:
        name: the release's.
        md5s: the digest of each file by its path; only listable ones.
    """
    rows = [f"        {md5}  {path}" for path, md5 in md5s.items()]
    width = max(WIDTH, len(name) + 2, *(len(row) + 2 for row in rows), 0)
    sums = ["·· md5sum ··".center(width), "", *rows]
    return "\n".join([*_box([name.center(width)], width), *_box(sums, width), ""])


def is_listable(path: str) -> bool:
    """Whether a reader of RELEASE files finds this path in its line; none has spaces or bars."""
    try:
        read = parse_release_file(f" ║        {NO_MD5}  {path} ║\n")
    except Refused:
        return False
    return [entry.path for entry in read] == [path]


def _box(lines: list[str], width: int) -> list[str]:
    body = [f" ║{line:<{width}}║" for line in ["", *lines, ""]]
    return [f" ╓{'─' * width}╖", *body, f" ╙{'─' * width}╜"]
