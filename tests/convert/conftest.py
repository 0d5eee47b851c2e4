"""Conversions that can be stopped anywhere: a raw release on disk and jobs on it."""

from __future__ import annotations

import pytest

from moetool.convert.job import open_source, prepare
from moetool.convert.synthetic import random_source
from moetool.convert.targets import find_target
from moetool.formats import open_checkpoint


class Stop(Exception):
    """The failure that a test injects."""


@pytest.fixture
def stop():
    return Stop


@pytest.fixture
def raw(small_args, tmp_path):
    """A small raw release on disk: one .pth with its CRC-32s."""
    source = random_source(small_args, 0, None)
    prepare(source, find_target("pth", "mistral"), tmp_path / "raw").run()
    return tmp_path / "raw"


@pytest.fixture
def convert(raw, tmp_path):
    """Convert the raw release: each call is a run of its own, as from the command line."""

    def make(kind=("safetensors", "hf"), manner=None, before=None, out="out", **options):
        with open_checkpoint(raw) as checkpoint:
            job = prepare(open_source(checkpoint), find_target(*kind), tmp_path / out, **options)
            if before:
                before(job)
            return job.run(manner=manner)

    return make


@pytest.fixture
def failing_after():
    """Make a job's source fail after so many reads."""

    def arm(n_reads, error):
        def before(job):
            checkpoint, left = job.source.checkpoint, [n_reads]

            class Failing(type(checkpoint)):
                __slots__ = ()

                def read(self, *where):
                    left[0] -= 1
                    if left[0] < 0:
                        raise error
                    return super().read(*where)

            checkpoint.__class__ = Failing

        return before

    return arm


@pytest.fixture
def contents():
    """The bytes of all files of a folder."""

    def read(folder):
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    return read
