"""The terminal: hostile names are made visible, numbers are for people."""

import json

import pytest

from moetool.cli.console import Column, Console, count, duration, safe, size
from moetool.errors import BadHeader


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a[/b].pth", "a[/b].pth"),
        ("\x1b[31mred", "\\u001b[31mred"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u200bb\n", "a\\u200bb\\u000a"),
        ("\udcff", "\\udcff"),
        ("größe 模型", "größe 模型"),
    ],
)
def test_names_from_files_are_made_printable(name, shown):
    """Control, bidi, zero-width and surrogate characters are shown, the rest stays."""
    assert safe(name) == shown


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (93_405_585_408, "86.99 GiB")],
)
def test_sizes(nbytes, shown):
    """Binary units, as people know the 87 GB."""
    assert size(nbytes) == shown


def test_counts_and_durations():
    """Exact and rounded side by side; seconds, minutes, hours."""
    assert count(46_702_792_704) == "46,702,792,704 (46.7 B)"
    assert [duration(s) for s in (1.25, 59, 61, 3660)] == [
        "1.2 s", "59 s", "1 min 01 s", "1 h 01 min",
    ]  # fmt: skip


def test_markup_in_names_stays_text(capsys):
    """A tensor called [link=…] is printed, not followed; emoji codes stay codes."""
    console = Console()
    console.table([Column("name")], [("[bold red]OK[/] :skull:",), ("\x1b]0;x\x07",)])
    console.line("[link=file:///etc/passwd]")
    out = capsys.readouterr().out
    assert "[bold red]OK[/] :skull:" in out
    assert "[link=file:///etc/passwd]" in out
    assert "\x1b" not in out


def test_long_names_are_never_cut(capsys):
    """A table is wider than the terminal before a name is shortened."""
    name = "model.layers." + "x" * 300
    Console().table([Column("name"), Column("n", right=True)], [(name, 1)])
    assert name in capsys.readouterr().out


def test_an_error_is_one_document_and_a_message(capsys):
    """With --json stdout holds the document; stderr always has the words."""
    Console(json=True).error(BadHeader("a bad\x1b thing", where="f", findings=("one",), hint="do"))
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["ok"], document["code"], document["kind"]) == (False, 4, "BadHeader")
    assert captured.err == "error: f: a bad\\u001b thing\n  - one\n\nhint: do\n"


def test_plain_progress_says_share_and_rate(capsys, monkeypatch):
    """Off a tty a line every few seconds, not a bar."""
    monkeypatch.setattr("moetool.cli.console.PLAIN_INTERVAL_S", 0.0)
    with Console().progress("convert", 200) as update:
        update(50, "model.safetensors")
    assert "convert:  25.0% of 200 B" in capsys.readouterr().err
