"""All faults in one list, containers first; a name is used once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.proof.selftest import (
    faults_converted,
    faults_layout,
    faults_release,
    faults_settings,
    faults_values,
)

if TYPE_CHECKING:
    from moetool.proof.selftest.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *faults_release.FAULTS,
    *faults_converted.FAULTS,
    *faults_values.FAULTS,
    *faults_layout.FAULTS,
    *faults_settings.FAULTS,
)
