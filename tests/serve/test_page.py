"""The page as files: nothing from outside, nothing inline, no way for a text to be markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import moetool.serve
from moetool.serve.static import PAGE

FOLDER = Path(moetool.serve.__file__).parent / "page"
FILES = sorted(FOLDER.iterdir())


def test_every_file_is_served_and_no_other(anyone):
    assert {name for name, _ in PAGE.values()} == {path.name for path in FILES}
    for path, (name, kind) in PAGE.items():
        done = anyone.get(path)
        assert done.content == (FOLDER / name).read_bytes()
        assert done.headers["content-type"].startswith(kind)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_of_the_page(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert way not in text
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=", text)
        assert 'name="viewport"' in text
        controls = re.findall(r"<(?:input|textarea|select)[^>]*\bid=\"(\w+)\"", text)
        labelled = re.findall(r"<label[^>]*for=\"(\w+)\"", text)
        inside = re.findall(r"<label[^>]*>(?:(?!</label>).)*?\bid=\"(\w+)\"[^>]*>", text)
        assert set(controls) <= {*labelled, *inside} | {"both"}
