"""Another engine's logits: files read by hand, what is hostile refused, what is far off a no."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import pytest
import torch

from moetool.errors import Refused
from moetool.extents import Extent
from moetool.model.smoke import SmokeTest, Verdict, engines, logits
from moetool.model.smoke.engines import ENGINES, ask
from moetool.model.smoke.npy import read_floats, write_floats
from moetool.tensors import Catalog, DType, TensorInfo

CPU = torch.device("cpu")


@pytest.fixture
def ours():
    """Logits of 40 positions over 50 words, with a deviation of 3."""
    return 3 * torch.randn(40, 50, generator=torch.Generator().manual_seed(0))


def noise(like, size):
    return size * torch.randn(like.shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def numpys():
    """Write an array as numpy does; bytes."""
    numpy = pytest.importorskip("numpy", reason="numpy is the writer to be read")

    def make(array, dtype="<f4", order="C", version=None):
        file = io.BytesIO()
        numpy.lib.format.write_array(
            file, numpy.asarray(array, dtype=dtype, order=order), version=version
        )
        return file.getvalue()

    return make


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_what_numpy_writes_is_read(numpys, tmp_path, dtype, version):
    (tmp_path / "it.npy").write_bytes(numpys([[1.5, -2.0, 3.25]] * 2, dtype, version=version))
    assert torch.equal(read_floats(tmp_path / "it.npy"), torch.tensor([[1.5, -2.0, 3.25]] * 2))


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_numpy_reads_what_we_write(tmp_path, shape):
    numpy = pytest.importorskip("numpy", reason="numpy is the reader")
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    write_floats(tmp_path / "it.npy", values)
    assert (numpy.load(tmp_path / "it.npy") == values.numpy()).all()
    assert torch.equal(read_floats(tmp_path / "it.npy"), values)


def header(text, version=1, size=None):
    wide = struct.pack("<H" if version == 1 else "<I", len(text) if size is None else size)
    return b"\x93NUMPY" + bytes([version, 0]) + wide + text.encode()


SOUND = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n"
HOSTILE = {
    "empty": b"",
    "no magic": b"PK\x03\x04" + bytes(100),
    "cut off in the header": header(SOUND)[:30],
    "cut off in the values": header(SOUND) + bytes(23),
    "more values than it says": header(SOUND) + bytes(25),
    "a pickle": header(SOUND.replace("<f4", "|O")) + b"\x80\x04N.",
    "big end first": header(SOUND.replace("<f4", ">f4")) + bytes(24),
    "integers": header(SOUND.replace("<f4", "<i4")) + bytes(24),
    "column-major": header(SOUND.replace("False", "True")) + bytes(24),
    "fields": header(SOUND.replace("'<f4'", "[('a', '<f4')]")) + bytes(24),
    "a call": header(SOUND.replace("(2, 3)", "__import__('os').getpid()")) + bytes(24),
    "a key twice": header(SOUND.replace("}", "'descr': '<f4', }")) + bytes(24),
    "a key missing": header(SOUND.replace("'shape': (2, 3), ", "")) + bytes(24),
    "a negative dimension": header(SOUND.replace("(2, 3)", "(-2, -3)")) + bytes(24),
    "no dimension": header(SOUND.replace("(2, 3)", "()")) + bytes(4),
    "no values": header(SOUND.replace("(2, 3)", "(0, 3)")),
    "more than memory": header(SOUND.replace("(2, 3)", "(99999999, 99999999)")) + bytes(24),
    "an endless header": header("{" + " " * 100_000, 2),
    "a header longer than the file": header(SOUND, 2, size=0xFFFFFFFF),
    "nested": header("{'shape': " + "(" * 3000),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_everything_else_is_refused(tmp_path, case):
    (tmp_path / "it.npy").write_bytes(HOSTILE[case])
    with pytest.raises(Refused):
        read_floats(tmp_path / "it.npy")


def test_the_sound_header_of_these_is_read(tmp_path):
    (tmp_path / "it.npy").write_bytes(header(SOUND) + bytes(24))
    assert read_floats(tmp_path / "it.npy").shape == (2, 3)


@pytest.mark.parametrize(
    ("size", "word", "verdict"),
    [(0.0, "excellent", "PASS"), (0.02, "excellent", "PASS"), (0.2, "good", "PASS"),
     (0.4, "beyond 0.01", "FAIL")],
)  # fmt: skip
def test_the_distance_is_judged_by_llama_cpps_measure(ours, size, word, verdict):
    check = logits.compare("it", ours, ours + noise(ours, size))
    assert check.verdict.value == verdict
    assert f"({word})" in check.detail
    assert check.value == pytest.approx((size / 3) ** 2, rel=0.1)


def test_a_few_positions_that_say_something_else_are_a_no(ours):
    """Too few for the mean, but their best token is another, and it was decided."""
    ours = ours / 30 - 20
    ours[:, 0] = -10
    theirs = ours.clone()
    theirs[:2, 0], theirs[:2, 1] = ours[:2, 1], ours[:2, 0]
    check = logits.compare("it", ours, theirs)
    assert check.value < logits.GOOD
    assert (check.verdict, check.detail[-31:]) == (Verdict.FAIL, "at 38 of 40 where it is decided")


def test_one_row_is_that_of_the_last_token(ours):
    assert logits.compare("it", ours, ours[-1]).verdict is Verdict.PASS
    assert logits.compare("it", ours, ours[-2]).verdict is Verdict.FAIL


def test_values_that_are_not_finite_are_a_no(ours):
    theirs = ours.clone()
    theirs[0, 0] = float("inf")
    assert logits.compare("it", ours, theirs).detail == "theirs are not finite"
    theirs[0, 0] = 0.0
    ours[3, 3] = float("nan")
    check = logits.compare("it", ours, theirs)
    assert (check.verdict, check.value) == (Verdict.FAIL, None)


def test_logits_of_other_tokens_are_refused(ours):
    logits.fits("it", ours, 40, 50)
    logits.fits("it", ours[0], 40, 50)
    for theirs in (ours[:39], ours[:, :49], ours[None], ours.T):
        with pytest.raises(Refused, match="expected"):
            logits.fits("it", theirs, 40, 50)


@pytest.fixture
def asked(sound, tiny_release, monkeypatch):
    """Ask an engine about the release as if it lay in a file, with a client of the test's own."""

    def run(name, client="", layout="hf", seconds=60, free=1 << 40):
        checkpoint, recognized = sound
        test = SmokeTest(checkpoint, recognized, tiny_release, CPU, quick=True)
        test.observe(lambda _done, _note: None)
        convention = recognized.architecture.convention(layout)
        monkeypatch.setattr(engines, "available_nbytes", lambda _device: free)
        monkeypatch.setattr(engines, "SECONDS", seconds)
        monkeypatch.setattr(engines, "find_spec", lambda name: name != "absent" or None)
        monkeypatch.setattr(engines, "CLIENT", ("-c", client))
        subject = replace_layout(test.subject, convention, tiny_release / "it")
        engine = engines.Engine("it", "absent", ("hf",), "it") if name is None else ENGINES[name]
        return ask(engine, subject, test._seen, torch.bfloat16)

    return run


def replace_layout(subject, convention, path):
    catalog = Catalog("it", {"x": TensorInfo("x", DType.BF16, (1,))}, {"x": Extent(path, 0, 0)})
    checkpoint = type(subject.checkpoint)(catalog, {})
    recognized = replace(subject.recognized, convention=convention)
    return replace(subject, checkpoint=checkpoint, recognized=recognized)


def test_an_engine_that_cannot_be_asked_is_not_covered(asked):
    for check, reason in (
        (asked(None), "absent is not installed"),
        (asked("transformers", layout="mistral"), "moetool convert --to safetensors"),
        (asked("llama.cpp", layout="hf"), "moetool convert --to gguf"),
        (asked("transformers", free=1000), "GB of weights"),
        (
            asked("transformers", "import sys; sys.exit('no such symbol')"),
            "fails",
        ),
    ):
        assert reason in check.detail
        assert check.verdict is (Verdict.FAIL if reason == "fails" else Verdict.NOT_COVERED)


def test_an_engine_that_is_killed_slow_or_broken_is_not_covered(asked):
    killed = asked("transformers", "import os; os.kill(os.getpid(), 9)")
    assert killed.detail == "it cannot be run here: killed by signal 9"
    slow = asked("transformers", "import time; time.sleep(30)", seconds=0.2)
    assert slow.detail == "it was not done after 0.2 s"
    broken = asked("transformers", "import sys; print('no libgomp', file=sys.stderr); sys.exit(69)")
    assert broken.detail == "it cannot be run here: no libgomp"
    assert {c.verdict for c in (killed, slow, broken)} == {Verdict.NOT_COVERED}


def test_an_engine_with_another_vocabulary_is_a_no(asked):
    client = (
        "import sys, struct; t = \"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\";"
        "open(sys.argv[3], 'wb').write(b'\\x93NUMPY\\x01\\x00' + struct.pack('<H', len(t))"
        " + t.encode() + bytes(24))"
    )
    check = asked("transformers", client)
    assert (check.verdict, check.detail) == (
        Verdict.FAIL, "its logits have shape (2, 3), ours (128, 768)",
    )  # fmt: skip
