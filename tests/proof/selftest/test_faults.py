"""The faults are faults: each one changes bytes, has its own name, and says who must catch it."""

import re
from collections import Counter
from pathlib import Path

import pytest

from moetool.errors import MoetoolError
from moetool.proof.selftest import FAULTS, Kind
from moetool.proof.selftest.edit import flip, overwrite, substitute
from moetool.proof.selftest.release import LAYOUTS

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "selftest.md"
COMMANDS = {"verify", "inspect", "diff", "scan", "smoke-test"}


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def sound(bench):
    return [content(path) for path in bench.subjects.values()]


def test_there_are_many_of_each_kind_and_each_has_its_own_name():
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names))
    kinds = Counter(fault.kind for fault in FAULTS)
    assert min(kinds[kind] for kind in Kind) >= 30


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_somebody_must_catch_it_and_by_which_words(fault):
    assert set(fault.expected) <= COMMANDS
    assert fault.expected
    for words in fault.expected.values():
        assert not re.search(words, "")
    if fault.kind is Kind.SEMANTIC:  # no digest tells, so no digest may be asked
        assert "verify" not in fault.expected
    else:
        assert "smoke-test" not in fault.expected


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_it_changes_bytes_of_a_copy_and_of_no_sound_subject(fault, bench, sound):
    spoilt = content(fault.make(bench))
    assert spoilt not in sound
    # Every checksum is right: there is none, but for the manifest that a lying journal led to.
    if fault.kind is Kind.SEMANTIC and fault.name != "journal-lies":
        assert not set(spoilt) & {"moetool-manifest.json", "RELEASE"}
    assert [content(path) for path in bench.subjects.values()] == sound


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_page_has_a_row_for_it(fault):
    """With what is done, and in bold who must catch it."""
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if f"| {fault.name} |" in line]
    assert len(rows) == 1
    assert f"| {fault.what} |" in rows[0]
    assert set(re.findall(r"\*\*([\w-]+)\*\*", rows[0])) == set(fault.expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_without_a_change_what_is_written_is_the_sound_subject(bench, name):
    """So what differs in a semantic fault is the fault."""
    assert content(bench.write(name, lambda _model: None)) == content(bench.subjects[name])


def test_a_resumed_conversion_did_the_spoilt_shard_again(bench):
    assert content(bench.subjects["resumed"]) == content(bench.subjects["hf"])


def test_an_edit_that_changes_nothing_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\0" * 8)
    with pytest.raises(MoetoolError, match="no fault"):
        overwrite(path, 0, lambda old: old, 4)
    with pytest.raises(MoetoolError, match="no fault"):
        substitute(path, b"absent", b"other!")
    flip(path, 3, 7)
    assert path.read_bytes() == b"\0\0\0\x80\0\0\0\0"
