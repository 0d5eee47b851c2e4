"""`moetool selftest` as a user meets it: nothing missed, nothing sound blamed, and it can fail."""

import json
import os

import pytest

from moetool.cli import selftest
from moetool.cli.app import run


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_fault_is_caught_and_named_and_nothing_sound_is_blamed(capsys, tmp_path):
    code = run(["selftest", "--json", "--work", str(tmp_path / "work")])
    document = json.loads(capsys.readouterr().out)
    assert document["missed"] == []
    assert [alarm for subject in document["sound"] for alarm in subject["alarms"]] == []
    assert len(document["trials"]) >= 30
    assert document["n_caught"] == document["n_named"] == len(document["trials"])
    assert (code, document["ok"], document["schema"], document["version"]) == (
        0, True, "moetool.selftest", 1,
    )  # fmt: skip
    assert set(document["commands"]) == {"verify", "inspect", "diff", "scan", "smoke-test"}
    assert {trial["kind"] for trial in document["trials"]} == {"container", "semantic"}
    assert os.listdir(tmp_path / "work") == []


def test_the_list_says_who_must_catch_each_fault_and_by_which_words(moetool):
    document = json.loads(moetool("selftest", "--list", "--json", check=0).stdout)
    entry = next(fault for fault in document["faults"] if fault["name"] == "rope-theta-wrong")
    assert entry["kind"] == "semantic"
    assert set(entry["expected"]) == {"diff", "smoke-test"}
    assert "rope-theta-wrong" in moetool("selftest", "--list", check=0).stdout


def test_an_unknown_fault_is_a_usage_error(moetool):
    assert "--list" in moetool("selftest", "--only", "no-such-fault", check=2).stderr


def test_faults_can_be_tried_alone_and_colours_and_tracebacks_do_not_name_them(moetool):
    done = moetool(
        *("selftest", "--only", "release-mantissa-flipped", "--only", "tensor-missing"),
        check=0, env={"FORCE_COLOR": "1", "MOETOOL_DEBUG": "1"},
    )  # fmt: skip
    assert "2 of 2 faults caught, 2 named, 0 missed; 0 false alarms" in done.stdout
    assert "layers.2 expert 5 w2" in done.stdout
    assert "  - missing model.layers.2.block_sparse_moe.experts.5.w2.weight" in done.stdout


def test_commands_that_do_not_look_are_found_out(monkeypatch, capsys):
    """The values differ in one bit: who reads headers and checksums only cannot see it."""
    blind = {name: selftest.COMMANDS[name] for name in ("verify", "inspect")}
    monkeypatch.setattr(selftest, "COMMANDS", blind)
    assert run(["selftest", "--only", "mantissa-bit-flipped"]) == 3
    said = capsys.readouterr().out
    assert "MISSED  mantissa-bit-flipped" in said
    assert "diff did not catch it" in said
    assert "FAIL  0 of 1 faults caught" in said


def test_a_command_that_always_cries_is_found_out(monkeypatch, capsys):
    monkeypatch.setattr(
        selftest, "COMMANDS", {"inspect": ("inspect", "{subject}/no-such-file", "--quiet")}
    )
    assert run(["selftest", "--only", "tensor-missing"]) == 3
    said = capsys.readouterr().out
    assert "FALSE ALARM  sound release: inspect: exit 2" in said
    assert "inspect broke with exit 2" in said
