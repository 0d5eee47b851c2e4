"""Hostile importance matrices: lengths beyond the file, values that no sum of squares can have."""

from __future__ import annotations

import math
import resource
import struct
from array import array

import pytest

from moetool.errors import FormatError, Refused, TruncatedFile
from moetool.formats.gguf_writer import GgufSink
from moetool.formats.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
from moetool.tensors import DType, TensorInfo

GOOD = Imatrix(
    {
        "blk.0.a.weight": Entry(array("f", [1.0, 2.0]), (5,)),
        "blk.0.b.weight": Entry(array("f", [1.0, 2.0, 3.0, 4.0]), (2, 3)),
    },
    ("text",),
    1,
    5,
)
METADATA = {
    "general.type": ("str", "imatrix"),
    "imatrix.datasets": ("arr[str]", ["text"]),
    "imatrix.chunk_count": ("u32", 1),
    "imatrix.chunk_size": ("u32", 5),
}
HUGE = (1 << 31) - 1


@pytest.fixture
def good(tmp_path):
    """The bytes of a good file in a form."""

    def make(suffix):
        path = tmp_path / f"good{suffix}"
        write_imatrix(path, GOOD)
        return path.read_bytes()

    return make


@pytest.fixture
def read(tmp_path):
    """Read bytes as a file; what is refused is said in print, and cheaply."""

    def of(raw):
        path = tmp_path / "imatrix"
        path.write_bytes(raw)
        return read_imatrix(path)

    return of


@pytest.fixture
def gguf(tmp_path, read):
    """Read a GGUF of given tensors and key-values."""

    def of(tensors, metadata=METADATA):
        path = tmp_path / "made.gguf"
        path.unlink(missing_ok=True)
        infos = [
            TensorInfo(name, DType.F32, shape or (len(values),))
            for name, (shape, values) in tensors.items()
        ]
        sink = GgufSink(path, infos, metadata)
        for name, (_, values) in tensors.items():
            sink.write(name, [array("f", values).tobytes()])
        sink.close()
        return read(path.read_bytes())

    return of


def entry(name=b"a", n_calls=1, n_values=1, values=b"\0\0\0\0"):
    return struct.pack("<i", len(name)) + name + struct.pack("<ii", n_calls, n_values) + values


def dat(*entries, count=None):
    return struct.pack("<i", len(entries) if count is None else count) + b"".join(entries)


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_a_file_cut_anywhere_is_refused(good, read, suffix):
    """But for one place: a .dat that ends with its entries is one of before March 2024."""
    raw = good(suffix)
    padding = len(raw) - len(raw.rstrip(b"\0"))
    cuts = range(len(raw) - (padding if suffix == ".gguf" else 0))
    whole, said = [], set()
    for cut in cuts:
        try:
            read(raw[:cut])
            whole.append(cut)
        except Refused as refused:
            said.add(str(refused).isprintable())
    assert said == {True}
    assert whole == ([len(raw) - 4 - 4 - len("text")] if suffix == ".dat" else [])


DATS = {
    "empty": b"",
    "no entry": dat(),
    "less than none": dat(count=-1),
    "2**31 entries": dat(count=HUGE),
    "more entries than there are": dat(entry(), count=2),
    "a name of 2 GB": dat(struct.pack("<i", HUGE)),
    "a name of -1": dat(struct.pack("<i", -1)),
    "no name": dat(entry(name=b"")),
    "a name that rings": dat(entry(name=b"a\7")),
    "a name twice": dat(entry(), entry()),
    "2**31 values": dat(entry(n_values=HUGE)),
    "no values": dat(entry(n_values=0, values=b"")),
    "-1 values": dat(entry(n_values=-1)),
    "-1 calls": dat(entry(n_calls=-1)),
    "-1 chunks": dat(entry()) + struct.pack("<ii", -1, 0),
    "a dataset of 2 GB": dat(entry()) + struct.pack("<ii", 1, HUGE),
    "something behind": dat(entry()) + struct.pack("<ii", 1, 0) + b"x",
    "a text": b"The old lighthouse keeper",
    "a zip": b"PK\3\4" + bytes(200),
}


@pytest.mark.parametrize("name", DATS)
def test_what_a_dat_cannot_be(read, name):
    with pytest.raises(FormatError):
        read(DATS[name])


def test_lengths_are_not_believed(read):
    """No promise of a file costs memory that the file does not have."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("2**31 values", "a name of 2 GB", "a dataset of 2 GB", "2**31 entries"):
        with pytest.raises(FormatError):
            read(DATS[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_file_larger_than_any_is_refused_unread(tmp_path):
    path = tmp_path / "imatrix.dat"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Refused, match="larger"):
        read_imatrix(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -1e-30])
@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_values_that_are_no_sums_of_squares(tmp_path, value, suffix):
    """Named with their entry and number; the sound entry is not."""
    bad = Entry(array("f", [value, 1.0, value, 2.0]), (1,))
    path = tmp_path / f"imatrix{suffix}"
    write_imatrix(path, Imatrix({**GOOD.entries, "bad": bad}, ("text",), 1, 5))
    with pytest.raises(FormatError) as refused:
        read_imatrix(path)
    n_odd, n_negative = (0, 2) if math.isfinite(value) else (2, 2 * (value < 0))
    assert refused.value.findings == (
        f"bad: {n_odd} of 4 values are not finite, {n_negative} are negative",
    )


@pytest.mark.parametrize("count", [math.nan, math.inf, -1.0, 0.5])
def test_counts_that_count_nothing(gguf, count):
    with pytest.raises(FormatError, match="'a': 1 of 2 counts"):
        gguf({"a.in_sum2": ((2, 1), [1, 1]), "a.counts": ((2, 1), [1, count])})


GGUFS = {
    "counts missing": {"a.in_sum2": (None, [1.0])},
    "sums missing": {"a.counts": (None, [1.0])},
    "fewer counts than matrices": {"a.in_sum2": ((2, 1), [1, 1]), "a.counts": (None, [1.0])},
    "more counts than matrices": {"a.in_sum2": (None, [1, 1]), "a.counts": ((2, 1), [1, 1])},
    "no columns": {"a.in_sum2": ((1, 0), []), "a.counts": (None, [1.0])},
    "no name": {".in_sum2": (None, [1.0]), ".counts": (None, [1.0])},
    "no entries": {"a.weight": (None, [1.0])},
}


@pytest.mark.parametrize("name", GGUFS)
def test_sums_and_counts_that_do_not_belong_together(gguf, name):
    with pytest.raises(Refused):
        gguf(GGUFS[name])


@pytest.mark.parametrize("key", METADATA)
@pytest.mark.parametrize("value", [None, ("f32", 1.0), ("str", "model"), ("bool", True)])
def test_metadata_that_llama_quantize_insists_on(gguf, key, value):
    """Missing, or of another type; a model's GGUF is no importance matrix either."""
    tensors = {"a.in_sum2": (None, [1.0]), "a.counts": (None, [1.0])}
    assert gguf(tensors).importance("a")[0] == 1.0
    changed = {**METADATA, key: value}
    with pytest.raises(FormatError):
        gguf(tensors, {k: v for k, v in changed.items() if v is not None})


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_mutants_are_read_or_refused(good, read, survive, suffix):
    """600 damaged files of each form."""
    outcomes = survive(good(suffix), read, 600)
    assert outcomes["refused"] > 200


def test_a_cut_file_says_what_it_needs(good, read):
    with pytest.raises(TruncatedFile, match="needs 8 bytes at"):
        read(good(".dat")[:30])
