"""What all tests share: a small geometry, checkpoints in memory, and the trained tiny release."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from moetool.arch.args import ModelArgs
from moetool.arch.mixtral import MISTRAL, MIXTRAL
from moetool.arch.schema import expand
from moetool.cli.app import run as run_command_line
from moetool.convert.plan import derive_steps
from moetool.convert.stream import stream
from moetool.convert.synthetic import RandomCheckpoint
from moetool.release.fixture import find_fixture
from moetool.tensors import Catalog

# Small, and no two dimensions alike, so that a swapped axis cannot hide.
SMALL = ModelArgs(
    dim=24, n_layers=2, head_dim=8, hidden_dim=40, n_heads=4, n_kv_heads=2, norm_eps=1e-5,
    vocab_size=56, n_experts=3, n_experts_per_tok=2,
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begin with the long tests: the last to begin is the one that all processes wait for."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


class MemoryCheckpoint:
    """A checkpoint whose bytes are held: the smallest thing that keeps the protocol."""

    def __init__(self, catalog: Catalog, data: dict[str, bytes]) -> None:
        self.catalog, self.data = catalog, data

    def read(self, name, start=0, stop=None):
        return self.data[name][start:stop]


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """No test sees or touches the user's list of fetched releases."""
    monkeypatch.setenv("MOETOOL_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("MOETOOL_DEBUG", raising=False)


@pytest.fixture
def small_args():
    return SMALL


@pytest.fixture
def random_checkpoint():
    """Make a random raw checkpoint in memory."""

    def make(args=SMALL, seed=0):
        return RandomCheckpoint(args, seed)

    return make


@pytest.fixture
def in_layout(random_checkpoint):
    """Make the same random weights in any convention, in memory."""

    def make(name, args=SMALL, seed=0):
        source = random_checkpoint(args, seed)
        convention = MIXTRAL.convention(name)
        layout = expand(convention, args)
        steps = derive_steps(source.catalog, expand(MISTRAL, args), layout, args)
        catalog = Catalog(convention.file_format, {s.target.name: s.target for s in steps}, {})
        data = {s.target.name: b"".join(stream(source, s)) for s in steps}
        return MemoryCheckpoint(catalog, data), layout

    return make


@pytest.fixture(scope="session")
def tiny_release() -> Path:
    """The folder of the trained tiny release."""
    return find_fixture().directory


@pytest.fixture(scope="session")
def golden() -> dict:
    """The numbers that transformers gave for the tiny release."""
    return json.loads((find_fixture().torrent.parent / "golden.json").read_text())


@dataclass(frozen=True)
class Done:
    """What a command line left behind."""

    returncode: int
    stdout: str
    stderr: str

    def checked(self, code):
        """Itself, if it ended without a traceback and with the code (if one is asked)."""
        assert "Traceback" not in self.stderr, self.stderr
        if code is not None:
            assert self.returncode == code, f"{self.returncode}\n{self.stdout}\n{self.stderr}"
        return self


@pytest.fixture
def moetool(tmp_path, monkeypatch):
    """Run the command line in this process: torch is imported once, not for each of 200 lines."""

    def run(*words, cwd=tmp_path, check=None, env=None):
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        on_sigterm = signal.getsignal(signal.SIGTERM)
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            try:
                code = run_command_line([str(word) for word in words])
            finally:
                signal.signal(signal.SIGTERM, on_sigterm)
        said = (stream.buffer.getvalue().decode() for stream in (out, err))
        return Done(code, *said).checked(check)

    return run


@pytest.fixture
def moetool_process(tmp_path):
    """Run the command line in its own process, for what only a process shows."""

    def run(*words, cwd=tmp_path, check=None, env=None):
        done = subprocess.run(
            [sys.executable, "-m", "moetool", *map(str, words)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr).checked(check)

    return run


@pytest.fixture
def changed_args():
    """Change fields of hyperparameters."""
    return replace
