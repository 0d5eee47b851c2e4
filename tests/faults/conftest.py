"""The fixtures of the fault campaign; `MOETOOL_FAULTS=long` chooses the long form."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .disks import Namespace
from .halts import Halted, stopped_with
from .harness import LONG, PATIENCE, PLAIN, SHAPES, Place, digests
from .tally import Tally


@pytest.fixture(scope="session")
def many() -> Callable[[int, int], int]:
    """Choose between the number of trials of the long form and that of the short one."""
    return lambda long, short: long if LONG else short


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    """The source of every trial: a random raw checkpoint of 7.5 MB, made once."""
    folder = tmp_path_factory.mktemp("source") / "raw"
    command = [sys.executable, "-m", "moetool", "tiny", str(folder), "--quiet"]
    subprocess.run(command, check=True, timeout=PATIENCE, env=PLAIN, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def place(raw, tmp_path) -> Callable[..., Place]:
    """Make an empty folder for outputs of a shape."""

    def make(shape: str, source: Path = raw, name: str = "place") -> Place:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Place(folder, source, SHAPES[shape])

    return make


@pytest.fixture(scope="session")
def expected(raw, tmp_path_factory) -> Callable[[str], dict[str, str]]:
    """What a run that nobody disturbs writes, for each shape; made once for each."""
    known: dict[str, dict[str, str]] = {}

    def of(shape: str) -> dict[str, str]:
        if shape not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            place = Place(folder, raw, SHAPES[shape], environment=PLAIN)
            done = place.run()
            assert done.code == 0, done.words
            known[shape] = digests(place.out)
            shutil.rmtree(folder)
        return known[shape]

    return of


@pytest.fixture
def tally(expected, request) -> Callable[..., Tally]:
    """Begin the tally of a class of faults; its row is printed at the end of the session."""
    begun: list[Tally] = []
    request.node.tallies = begun

    def make(kind: str, shape: str, *, trusted: bool = True) -> Tally:
        begun.append(Tally(f"{kind}, {shape}", expected(shape), trusted))
        return begun[-1]

    return make


@pytest.fixture
def namespace(tmp_path) -> Namespace:
    """A mount namespace of its own, gone with all that is mounted in it when the test is."""
    with Namespace.opened(tmp_path) as opened:
        yield opened


@pytest.fixture
def half_done(place, raw, tmp_path) -> Callable[..., Place]:
    """A run that was killed with shards finished, from a source of its own if that is to change."""

    def make(shape: str = "hf", n_shards: int = 4, *, own_source: bool = False) -> Place:
        # The name of the source's folder is in the manifest.
        source = shutil.copytree(raw, tmp_path / "own" / raw.name) if own_source else raw
        here = place(shape, source)
        halted: Halted = stopped_with(here, n_shards)
        assert not here.out.exists()
        assert len(here.shards()) == n_shards, halted
        return here

    return make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Give the rows to the report, which is what travels from a worker to the terminal."""
    if call.when == "call":
        rows = [("fault row", one.row()) for one in getattr(item, "tallies", ())]
        item.user_properties += rows
    return (yield)


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the table of the campaign, from all workers."""
    rows = {
        row
        for word in ("passed", "failed")
        for report in terminalreporter.stats.get(word, [])
        for name, row in getattr(report, "user_properties", ())
        if name == "fault row"
    }
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(
            "| class | trials | complete after the fault | resumed | shards reused "
            "| marks reused | wrong | notes |"
        )
        terminalreporter.write_line("|---|---:|---:|---:|---:|---:|---:|---|")
        for row in sorted(rows):
            terminalreporter.write_line(row)
