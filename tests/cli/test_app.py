"""The command line as a whole: exit codes, one JSON document, no traceback, cheap start."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from moetool import __version__

COMMANDS = ["fetch", "verify", "inspect", "convert", "smoke-test", "tiny", "demo"]


def test_help_lists_every_command(moetool_process):
    """All commands are there under the names that users type."""
    shown = moetool_process("--help", check=0).stdout
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_version(moetool):
    """The version is the package's."""
    assert moetool("--version", check=0).stdout == f"moetool {__version__}\n"


@pytest.mark.parametrize("words", [["nonsense"], ["inspect", "--nonsense"], ["convert", "--to"]])
def test_wrong_usage_is_2(words, moetool):
    """A typo is told apart from wrong data."""
    moetool(*words, check=2)


def test_wrong_usage_with_json_is_a_document(moetool):
    """A program that reads stdout gets its document on every failure."""
    document = json.loads(moetool("inspect", "--json", "--nonsense", check=2).stdout)
    assert (document["ok"], document["code"]) == (False, 2)


@pytest.mark.parametrize("command", ["inspect", "verify", "convert", "smoke-test"])
def test_a_path_that_is_not_there_is_usage(command, moetool, tmp_path):
    """The path is named."""
    done = moetool(command, tmp_path / "nothing", check=2)
    assert "no such file or folder" in done.stderr


@pytest.mark.parametrize("command", ["inspect", "verify", "convert", "smoke-test"])
def test_nothing_given_and_nothing_found_says_the_next_step(command, moetool):
    """Without PATH, checkpoint and history the hint shows how to begin."""
    done = moetool(command, check=2)
    assert "hint: moetool fetch 'magnet:…'" in done.stderr


def test_a_closed_pipe_is_silent(tiny_release):
    """`moetool inspect | head -1` ends without a word on stderr."""
    done = subprocess.run(
        f"{sys.executable} -m moetool inspect --tensors {tiny_release} | head -1",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("checkpoint")
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_stdout_is_a_system_fault(tiny_release):
    """Results that cannot be written are not lost in silence."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "moetool", "inspect", tiny_release],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 5
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict"])
def test_a_strict_stdout_does_not_kill_a_report(encoding, moetool_process, tiny_release):
    """Characters that stdout cannot take are escaped."""
    moetool_process("inspect", tiny_release, env={"PYTHONIOENCODING": encoding}, check=0)


def test_no_color_wins_over_force_color(moetool_process, tiny_release):
    """NO_COLOR, then FORCE_COLOR, then the tty."""
    colours = {"NO_COLOR": "1", "FORCE_COLOR": "1"}
    assert "\x1b" not in moetool_process("inspect", tiny_release, env=colours, check=0).stdout
    forced = moetool_process(
        "inspect", tiny_release, env={"FORCE_COLOR": "1", "TERM": "xterm"}, check=0
    )
    assert "\x1b[1m" in forced.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_with_their_codes(number, code):
    """Ctrl-C is 130, SIGTERM 143, and neither shows a traceback."""
    program = (
        "import sys, time; from moetool.cli import app;"
        "app.typer.echo('started'); sys.stdout.flush();"
        "app._invoke = lambda argv: time.sleep(30) or 0;"
        "sys.exit(app.run(['inspect']))"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "started\n"
    time.sleep(0.5)
    running.send_signal(number)
    _, said = running.communicate(timeout=10)
    assert running.returncode == code
    assert "Traceback" not in said
