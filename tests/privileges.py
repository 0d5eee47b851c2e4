"""Modes of files hold for root too, where a test asks for it."""

from __future__ import annotations

import os
import shutil

import pytest


def without_privileges():
    """A prefix under which even root is refused what the modes refuse."""
    if os.geteuid():
        return []
    tool = shutil.which("setpriv")
    if tool is None:
        pytest.skip("UNTESTED: root may write everywhere, and there is no setpriv")
    drop = "-dac_override,-dac_read_search"
    return [tool, f"--bounding-set={drop}", f"--inh-caps={drop}"]
