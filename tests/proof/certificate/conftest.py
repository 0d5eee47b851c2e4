"""Conversions with a certificate."""

from __future__ import annotations

import pytest

from moetool.convert.execute.run import Manner
from moetool.convert.job import open_source, prepare
from moetool.convert.targets import find_dtype, find_target
from moetool.formats import open_checkpoint
from moetool.proof.certificate.issue import Certifier


@pytest.fixture
def convert(tmp_path):
    """Convert a folder, have it certified, and give the certificate and the output."""

    def run(source, to="safetensors", layout=None, dtype="keep", name="out", before=None):
        out = tmp_path / name
        with open_checkpoint(source) as checkpoint:
            job = prepare(
                open_source(checkpoint), find_target(to, layout), out,
                dtype=find_dtype(dtype), allow_overflow=True,
            )  # fmt: skip
            certifier = Certifier(job.source, checkpoint, lambda _done, _note: None, cold=True)

            def certify(work):
                if before:
                    before(work)
                return certifier(work)

            job.run(manner=Manner(certify=certify))
        return certifier.certificate, out

    return run
