"""L1 on random weights: every kind of damage is found where it is, in every layout."""

from __future__ import annotations

import math
import struct

import pytest

from moetool.model.smoke import Verdict, bits
from moetool.model.smoke.subject import Subject
from moetool.tensors import Catalog, DType, TensorInfo

W2 = "layers.1.feed_forward.experts.3.w2.weight"  # [40, 56] in the odd geometry


class Damaged:
    """A checkpoint of which some bytes were written over."""

    def __init__(self, checkpoint, edits):
        self.catalog, self._checkpoint, self._edits = checkpoint.catalog, checkpoint, edits

    def read(self, name, start=0, stop=None):
        data = bytearray(self._checkpoint.read(name))
        for at, new in self._edits.get(name, ()):
            data[at : at + len(new)] = new
        return bytes(data)[start:stop]


@pytest.fixture
def look(random_checkpoint, recognized, odd_args):
    """Scan a random raw checkpoint with edits: {name: [(offset, bytes)]}; verdicts by name."""

    def scan(edits=None, checkpoint=None, layout="mistral"):
        source = Damaged(checkpoint or random_checkpoint(odd_args), edits or {})
        subject = Subject(source, recognized(layout), None, None)
        found = bits.scan(subject, lambda _done, _note: None)
        return {check.name: check for check in (each(found) for each in bits.CHECKS)}

    return scan


def failing(checks):
    return {name for name, check in checks.items() if check.verdict is Verdict.FAIL}


def at(row, column, columns=56, size=2):
    return (row * columns + column) * size


def test_sound_weights_pass_all(look):
    assert failing(look()) == set()


@pytest.mark.parametrize("pattern", [0x7FC0, 0xFFC0, 0x7F81, 0xFFFF])
def test_one_nan_of_any_kind_is_named_by_layer_expert_row_and_column(look, pattern):
    checks = look({W2: [(at(17, 31), struct.pack("<H", pattern))]})
    assert failing(checks) == {"no NaN"}
    assert checks["no NaN"].detail == "layers.1 expert 3 w2 row 17 column 31"


@pytest.mark.parametrize("pattern", [0x7F80, 0xFF80])
def test_one_infinity_is_named(look, pattern):
    checks = look({W2: [(at(39, 55), struct.pack("<H", pattern))]})
    assert failing(checks) == {"no infinity"}
    assert checks["no infinity"].detail == "layers.1 expert 3 w2 row 39 column 55"


def test_the_largest_finite_value_is_no_infinity(look):
    assert failing(look({W2: [(0, struct.pack("<H", 0x7F7F))]})) == set()


def test_several_nans_are_counted_and_the_first_is_named(look):
    nan = struct.pack("<H", 0x7FC0)
    checks = look({W2: [(at(5, 2), nan), (at(5, 1), nan), (at(20, 0), nan)]})
    assert checks["no NaN"].detail == "layers.1 expert 3 w2 row 5 column 1 and 2 more"


def test_a_zero_row_and_a_row_of_negative_zeros_are_found(look):
    checks = look({W2: [(at(7, 0), bytes(112)), (at(9, 0), b"\x00\x80" * 56)]})
    assert failing(checks) == {"no zero rows"}
    assert checks["no zero rows"].detail == "layers.1 expert 3 w2 row 7 and 1 more"


def test_a_zeroed_expert_is_found(look):
    name = "layers.0.feed_forward.experts.2.{}.weight"
    checks = look({name.format(w): [(0, bytes(40 * 56 * 2))] for w in ("w1", "w2", "w3")})
    # Three matrices of zeros: their rows say so, and w1 and w3 are equal besides.
    assert failing(checks) == {"no zero rows", "no duplicates"}
    assert "layers.0 expert 2 w1 row 0 and 55 more" in checks["no zero rows"].detail


def test_a_zero_row_of_a_token_table_is_no_fault(look):
    checks = look({"tok_embeddings.weight": [(at(3, 0, 40), bytes(80))]})
    assert failing(checks) == set()
    assert "1 zero rows of token tables" in checks["no zero rows"].detail


def test_a_constant_matrix_is_found(look):
    checks = look({W2: [(0, struct.pack("<H", 0x3F80) * (40 * 56))]})
    assert failing(checks) == {"no constant matrix"}
    assert checks["no constant matrix"].detail == "layers.1 expert 3 w2"


def test_an_expert_written_twice_is_found(look, random_checkpoint, odd_args):
    other = "layers.2.feed_forward.experts.0.w2.weight"
    data = bytes(random_checkpoint(odd_args).read(other))
    checks = look({W2: [(0, data)]})
    assert failing(checks) == {"no duplicates"}
    assert checks["no duplicates"].detail == "layers.1 expert 3 w2 = layers.2 expert 0 w2"


@pytest.mark.parametrize("layout", ["mistral-packed", "hf", "hf-fused", "gguf", "gguf-split"])
def test_findings_have_raw_names_in_every_layout(look, in_layout, recognized, odd_args, layout):
    """Row 1 of wq in the raw release lies elsewhere in a file of halves; it is named as row 1."""
    from moetool.arch.mixtral import MISTRAL
    from moetool.arch.schema import Role, expand
    from moetool.convert.plan import derive_steps
    from moetool.convert.stream import stream

    raw, _ = in_layout("mistral", odd_args)
    nan = struct.pack("<H", 0x7FC0)
    query = "layers.2.attention.wq.weight"
    source = Damaged(raw, {query: [(at(1, 5, 40), nan)], W2: [(at(4, 50), nan)]})
    target = recognized(layout).layout
    steps = derive_steps(raw.catalog, expand(MISTRAL, odd_args), target, odd_args)
    moved = type(raw)(
        Catalog("memory", {step.target.name: step.target for step in steps}, {}),
        {step.target.name: b"".join(stream(source, step)) for step in steps},
    )
    detail = look(checkpoint=moved, layout=layout)["no NaN"].detail
    assert (
        detail == f"layers.1 expert 3 w2 row 4 column 50; layers.2 {Role.WQ.value} row 1 column 5"
    )


@pytest.mark.parametrize(
    ("dtype", "code", "values"),
    [
        (DType.F32, "<f", [math.nan, math.inf, 3.4e38]),
        (DType.F16, "<e", [math.nan, math.inf, 65504.0]),
    ],
)
def test_other_float_types_are_read_by_their_own_bits(in_layout, recognized, dtype, code, values):
    from moetool.arch.mixtral import MISTRAL
    from moetool.arch.schema import expand
    from moetool.convert.plan import derive_steps
    from moetool.convert.stream import stream

    args = recognized().args
    raw, layout = in_layout("mistral", args)
    steps = derive_steps(raw.catalog, layout, expand(MISTRAL, args), args, dtype=dtype)
    data = {step.target.name: b"".join(stream(raw, step)) for step in steps}
    infos = {
        name: TensorInfo(name, dtype, info.shape) for name, info in raw.catalog.tensors.items()
    }
    size = struct.calcsize(code)
    edits = {W2: [(at(r, 3, size=size), struct.pack(code, v)) for r, v in enumerate(values)]}
    source = Damaged(type(raw)(Catalog("memory", infos, {}), data), edits)
    found = bits.scan(Subject(source, recognized(), None, None), lambda _done, _note: None)
    assert [str(finding) for finding in found.nan] == ["layers.1 expert 3 w2 row 0 column 3"]
    assert [str(finding) for finding in found.infinite] == ["layers.1 expert 3 w2 row 1 column 3"]


def test_pieces_do_not_change_what_is_found(look, monkeypatch):
    """A tensor looked at row by row gives the same findings and digests as in one go."""
    monkeypatch.setattr(bits, "PIECE", 1)
    nan = struct.pack("<H", 0x7FC0)
    checks = look({W2: [(at(17, 31), nan), (at(7, 0), bytes(112))]})
    assert checks["no NaN"].detail == "layers.1 expert 3 w2 row 17 column 31"
    assert checks["no zero rows"].detail == "layers.1 expert 3 w2 row 7"


def test_each_byte_is_read_once(random_checkpoint, recognized, odd_args):
    class Counting(Damaged):
        nbytes = 0

        def read(self, name, start=0, stop=None):
            data = super().read(name, start, stop)
            self.nbytes += len(data)
            return data

    source = Counting(random_checkpoint(odd_args), {})
    seen = []
    bits.scan(Subject(source, recognized(), None, None), lambda done, _note: seen.append(done))
    assert source.nbytes == seen[-1] == source.catalog.nbytes
