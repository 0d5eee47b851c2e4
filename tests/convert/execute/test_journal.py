"""The journal gives back what was entered, and believes no line that is damaged."""

from __future__ import annotations

import pytest

from moetool.convert.casts import CastCount, TensorCast
from moetool.convert.execute.checked_source import SourceRange
from moetool.convert.execute.journal import (
    JOURNAL,
    Journal,
    Mark,
    Past,
    ShardRecord,
    SourceFile,
    TensorRecord,
    Work,
    read_journal,
)
from moetool.convert.execute.row_blocks import RowBlocks

WORK = Work("ab" * 32, (SourceFile("a.pth", 7, 8),), {"to": "gguf", "max_shard_nbytes": None})
CAST = TensorCast("t", "f32", "f16", CastCount(4, 1, 0, 2, 0))
BLOCKS = RowBlocks(2, ("0a", "0b"))
TENSORS = (TensorRecord("t", "01", "02", BLOCKS, CAST), TensorRecord("ü", "03", "03", BLOCKS))
RANGES = (SourceRange("s", 0, 7, 0xFFFFFFFF),)
SHARD = ShardRecord("x", 9, "aa", "bb", TENSORS, RANGES)
FIRST = Mark("y", "", 5, "d1", TENSORS[:1], RANGES)
SECOND = Mark("y", "d1", 8, "d2", TENSORS[1:], ())


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path, Past(WORK))
    for entry in (SHARD, FIRST, SECOND):
        journal.add(entry)
    return journal


def test_what_is_entered_comes_back(journal, tmp_path):
    past = read_journal(tmp_path)
    assert past == Past(WORK, {"x": SHARD}, {"y": [FIRST, SECOND]})


def test_a_journal_begun_with_a_past_says_the_same(journal, tmp_path):
    (tmp_path / "else").mkdir()
    past = read_journal(tmp_path)
    Journal(tmp_path / "else", past)
    assert read_journal(tmp_path / "else") == past
    assert (tmp_path / "else" / JOURNAL).read_bytes() == (tmp_path / JOURNAL).read_bytes()


def test_a_damaged_line_counts_for_nothing_and_the_others_do(journal, tmp_path):
    """Any byte of any line: what is left is a part of the truth."""
    path = tmp_path / JOURNAL
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        past = read_journal(tmp_path)
        assert past.work in (None, WORK)  # it holds a mapping, so has no hash
        assert past.shards in ({}, {"x": SHARD})
        assert past.marks in ({}, {"y": [FIRST]}, {"y": [FIRST, SECOND]})
        lost = (past.work is None) + (not past.shards) + (past.marks != {"y": [FIRST, SECOND]})
        assert lost in {1, 2}


def test_a_mark_whose_predecessor_is_lost_counts_for_nothing(journal, tmp_path):
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if b'"position":5' not in line))
    assert read_journal(tmp_path).marks == {}


def test_a_file_that_is_begun_anew_forgets_its_marks(journal, tmp_path):
    anew = Mark("y", "", 6, "e1", TENSORS[:1], ())
    journal.add(anew)
    assert read_journal(tmp_path).marks == {"y": [anew]}


def test_a_line_of_another_version_counts_for_nothing(tmp_path):
    from moetool.convert.execute.journal import _encode

    lines = [{"shard": {"file_name": "x"}}, {"mark": 3}, {"plan": {}}, {"news": {}}, {"plan": []}]
    (tmp_path / JOURNAL).write_bytes(b"".join(map(_encode, lines)))
    assert read_journal(tmp_path) == Past()


def test_without_a_journal_nothing_is_claimed(tmp_path):
    assert read_journal(tmp_path) == Past()
