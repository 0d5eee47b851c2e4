"""Starts ranks: as many processes of rank.py, over gloo on this machine alone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moetool.convert.synthetic import GEOMETRIES, write_full_geometry
from moetool.formats import open_checkpoint

HERE = Path(__file__).parent
LOCAL = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def start_ranks(n, *command, timeout=120):
    """Run a command of python's n times, each a rank; return exit codes, stdouts and stderrs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": port}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **LOCAL, "RANK": str(rank), "LOCAL_RANK": str(rank),
                 **{name: str(value) for name, value in world.items()}},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(n)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [process.returncode for process in started], *zip(*said, strict=True)


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """A checkpoint of 213 MB, all of it a hole, and its hyperparameters."""
    args = replace(GEOMETRIES["tiny"], n_layers=8, hidden_dim=2048)
    path = tmp_path_factory.mktemp("large") / "model"
    write_full_geometry(args, path)
    return path, args


RANKS = [2, 4] if os.environ.get("MOETOOL_FAULTS") == "long" else [2]  # make faults; make test


@pytest.fixture(scope="session", params=RANKS, ids="{} ranks".format)
def by_ranks(request, tmp_path_factory, large):
    """What every rank found, by its number."""
    n, folder = request.param, tmp_path_factory.mktemp("ranks")
    codes, _, errors = start_ranks(n, HERE / "rank.py", "all", folder, large[0])
    assert codes == [0] * n, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(n)]


@pytest.fixture(scope="session")
def alone():
    """What one process finds."""
    sys.path.insert(0, str(HERE))
    from scenarios import run_all

    sys.path.remove(str(HERE))
    threads = torch.get_num_threads()
    found = run_all()
    torch.set_num_threads(threads)
    return found


@pytest.fixture
def failing():
    """Start ranks of which one fails; return exit codes and stderrs."""

    def run(n, how):
        codes, _, errors = start_ranks(n, HERE / "rank.py", how)
        return codes, errors

    return run


@pytest.fixture
def ranks_of():
    """Run the command line as so many ranks, without torchrun's own process."""

    def run(n, *words):
        codes, outputs, errors = start_ranks(n, "-m", "moetool", *words)
        assert set(outputs[1:]) | set(errors[1:]) == {""}, errors  # rank 0 alone speaks
        return codes, outputs[0], errors[0]

    return run


@pytest.fixture
def damaged(tiny_release, tmp_path):
    """A copy of the release with one NaN, in the first value of an expert of the last layer."""
    path = tmp_path / "damaged"
    shutil.copytree(tiny_release, path)
    with open_checkpoint(path) as checkpoint:
        rows = checkpoint.catalog.extents["layers.3.feed_forward.experts.2.w2.weight"]
    with rows.path.open("r+b") as file:
        file.seek(rows.offset)
        file.write(b"\xff\x7f")
    return path


@pytest.fixture
def torchrun(tmp_path):
    """Run the command line under torchrun."""

    def run(n, *words, stdin=None):
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr",
             "127.0.0.1", "--nproc-per-node", str(n), "-m", "moetool", *map(str, words)],
            cwd=tmp_path, env={**os.environ, **LOCAL}, capture_output=True, text=True,
            input=stdin, timeout=120, check=False,
        )  # fmt: skip

    return run
