"""What counts as caught, as named, as a lapse and as a false alarm: told with detectors of ours."""

from pathlib import Path

import pytest

from moetool.proof.selftest import Fault, Kind, Outcome, selftest


class FakeBench:
    """One sound subject; a fault's copy has its name in its path."""

    def __init__(self):
        self.good = Path("good")
        self.subjects = {"release": Path("sound/release")}
        self.cleared = 0

    def clear(self):
        self.cleared += 1


def fault(name="broken", kind=Kind.SEMANTIC, **expected):
    named = {command.replace("_", "-"): words for command, words in expected.items()}
    return Fault(name, kind, "something", lambda _bench: Path("spoilt") / name, named)


def says(code, text=""):
    """A detector that finds nothing in the sound subject and says this of everything else."""
    return lambda path, _good: Outcome(0, "fine") if "sound" in path.parts else Outcome(code, text)


def tried(detectors, *faults):
    bench = FakeBench()
    report = selftest(bench, faults, detectors)
    assert bench.cleared
    return report


@pytest.mark.parametrize(
    ("code", "caught"), [(0, False), (1, False), (3, True), (4, True), (5, False)]
)
def test_only_mismatch_and_refusal_count_as_caught(code, caught):
    report = tried({"diff": says(code, "layers.2 is wrong")}, fault(diff=r"layers\.2"))
    assert report.n_caught == caught
    assert report.ok is caught
    assert report.missed == (() if caught else ("broken",))


def test_a_fault_that_is_caught_and_not_named_is_missed():
    report = tried({"diff": says(3, "something is wrong")}, fault(diff=r"layers\.2"))
    assert (report.n_caught, report.n_named, report.ok) == (1, 0, False)
    assert report.trials[0].lapses == (r"diff did not name it: no /layers\.2/",)


def test_every_command_that_must_catch_it_has_to():
    detectors = {"diff": says(3, "layers.2"), "scan": says(0)}
    report = tried(detectors, fault(diff=r"layers\.2", scan=r"layers\.2"))
    assert report.trials[0].caught_by == ("diff",)
    assert report.trials[0].lapses == ("scan did not catch it",)
    assert not report.ok


def test_a_command_that_breaks_is_a_lapse_though_another_catches_the_fault():
    detectors = {"diff": says(3, "layers.2"), "scan": says(1, "\nerror: internal error: oh\n")}
    report = tried(detectors, fault(diff=r"layers\.2"))
    assert report.trials[0].lapses == ("scan broke with exit 1: error: internal error: oh",)
    assert not report.ok


def test_another_command_may_catch_it_besides():
    detectors = {"verify": says(3, "x"), "diff": says(3, "a\n  layers.2 w1  \nb")}
    report = tried(detectors, fault(diff=r"layers\.2"))
    assert report.ok
    assert report.trials[0].caught_by == ("verify", "diff")
    assert report.trials[0].named == "layers.2 w1"


def test_what_is_found_in_a_sound_subject_is_a_false_alarm():
    report = tried({"diff": lambda _path, _good: Outcome(3, "layers.2")}, fault(diff="layers"))
    assert report.sound[0].alarms == ("diff: exit 3: layers.2",)
    assert (report.n_false_alarms, report.missed, report.ok) == (1, (), False)


def test_the_model_is_run_for_semantic_faults_only():
    ran = []

    def smoke_test(path, _good):
        ran.append(path.name)
        return Outcome(0, "")

    detectors = {"smoke-test": smoke_test, "verify": says(3, "bytes")}
    tried(detectors, fault("values"), fault("bytes", Kind.CONTAINER, verify="bytes"))
    assert ran == ["release", "values"]


def test_the_folder_of_the_copy_is_not_told():
    detectors = {
        "verify": lambda path, _good: Outcome(3 * ("spoilt" in path.parts), f"{path}: bad")
    }
    report = tried(detectors, fault("file", Kind.CONTAINER, verify="bad"))
    assert report.trials[0].named == "file: bad"


def test_progress_counts_subjects_and_names_the_next():
    seen = []
    selftest(
        FakeBench(), [fault(diff="x")], {"diff": says(3, "x")}, lambda *told: seen.append(told)
    )
    assert seen == [(0, "sound release"), (1, "broken")]
