"""The sound subjects, made once."""

import pytest

from moetool.proof.selftest.release import Bench
from moetool.release.fixture import find_fixture


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"), find_fixture())
