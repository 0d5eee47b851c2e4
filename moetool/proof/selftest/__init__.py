"""Would the commands notice? Known faults go into fresh copies, and every command must say so.

    release             the sound subjects: a tiny release, converted copies, each in its container
    model               the sound weights, in which tensors and settings can be replaced
    edit                bits, ranges, names and JSON of files
    fault               Fault, Outcome, Detector: what is put in, what is said, who says it
    faults_release      raw releases: flips by position, truncation, lists, zip
    faults_converted    safetensors and GGUF: headers, shards, index, manifest
    faults_values       single values: bits, NaN, casts, zeros
    faults_layout       sound values in the wrong place: swaps, rotations, rope, fusing
    faults_settings     hyperparameters and tokenizers
    run                 all of it in order -> SelftestReport

The commands come from the caller as functions of a path: they are not told what was done to it.
"""

from moetool.proof.selftest.catalogue import FAULTS
from moetool.proof.selftest.fault import Detector, Fault, Kind, Outcome
from moetool.proof.selftest.run import SelftestReport, SoundSubject, Trial, selftest

__all__ = [
    "FAULTS",
    "Detector",
    "Fault",
    "Kind",
    "Outcome",
    "SelftestReport",
    "SoundSubject",
    "Trial",
    "selftest",
]
