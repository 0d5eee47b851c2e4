"""Importance matrices go round in both forms, and mean what llama-quantize makes of them."""

from __future__ import annotations

import struct
from array import array

import pytest

from moetool.errors import OutputExists, Refused, UsageFault
from moetool.formats import open_checkpoint
from moetool.formats.imatrix import Entry, Imatrix, check_imatrix, read_imatrix, write_imatrix

DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"
# Seven tokens of a chunk of 4: two calls, rounded up. No token came to expert 1.
GOOD = Imatrix(
    {
        EXPERTS: Entry(array("f", [3.0, 0.1, 0.0, 0.0, 7.0, 1e-9]), (3, 0, 4)),
        DENSE: Entry(array("f", [7.0, 0.7]), (7,)),
    },
    ("a text.txt",),
    chunk_count=1,
    chunk_size=4,
)


def f32(*values):
    return list(array("f", values))


def product(quotient, n_calls):
    """As C has it with floats: rounded after the division and after the product."""
    return f32(f32(quotient)[0] * n_calls)[0]


@pytest.fixture
def written(tmp_path):
    """Write in a form, and give the path."""

    def write(suffix, imatrix=GOOD):
        write_imatrix(tmp_path / f"imatrix{suffix}", imatrix)
        return tmp_path / f"imatrix{suffix}"

    return write


def test_gguf_goes_round(written):
    assert read_imatrix(written(".gguf")) == GOOD


def test_gguf_is_laid_out_as_llama_cpp_does_it(written):
    """Names in order, one matrix as a vector; the metadata are those that llama-quantize wants."""
    with open_checkpoint(written(".gguf")) as checkpoint:
        shapes = {name: info.shape for name, info in checkpoint.catalog.tensors.items()}
        metadata = checkpoint.catalog.metadata
    assert list(shapes.items()) == [
        (f"{DENSE}.in_sum2", (2,)), (f"{DENSE}.counts", (1,)),
        (f"{EXPERTS}.in_sum2", (3, 2)), (f"{EXPERTS}.counts", (3, 1)),
    ]  # fmt: skip
    assert list(metadata.items()) == [
        ("general.type", "imatrix"), ("imatrix.datasets", ["a text.txt"]),
        ("imatrix.chunk_count", 1), ("imatrix.chunk_size", 4),
    ]  # fmt: skip


def test_dat_is_laid_out_as_llama_cpp_does_it(written):
    """Means times calls; 1 times calls for the expert that no token came to."""

    def text(value):
        return struct.pack("<i", len(value)) + value.encode()

    experts = [1.0, product(f32(0.1)[0] / 3, 1), 1.0, 1.0, 1.75, product(f32(1e-9)[0] / 4, 1)]
    assert written(".dat").read_bytes() == b"".join([
        struct.pack("<i", 2),
        text(DENSE), struct.pack("<ii2f", 2, 2, 2.0, product(f32(0.7)[0] / 7, 2)),
        text(EXPERTS), struct.pack("<ii6f", 1, 6, *experts),
        struct.pack("<i", 1), text("a text.txt"),
    ])  # fmt: skip


def test_dat_goes_round(written, tmp_path):
    """What was read is written again byte for byte; it knows no counts, so not as .gguf."""
    path = written(".dat")
    found = read_imatrix(path)
    assert (found.legacy, found.datasets, found.chunk_count) == (True, ("a text.txt",), 1)
    write_imatrix(tmp_path / "again.dat", found)
    assert (tmp_path / "again.dat").read_bytes() == path.read_bytes()
    with pytest.raises(UsageFault):
        write_imatrix(tmp_path / "again.gguf", found)


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_importance_is_the_mean_of_squares(written, suffix):
    """Each expert by its own count; 1 where there is none; nothing for an unknown tensor."""
    found = read_imatrix(written(suffix))
    assert list(found.importance(DENSE)) == f32(1, f32(0.7)[0] / 7)
    expected = f32(1, f32(0.1)[0] / 3, 1, 1, 1.75, f32(1e-9)[0] / 4)
    assert list(found.importance(EXPERTS)) == expected
    assert found.importance("blk.0.attn_v.weight") is None


def test_who_was_never_activated_is_told_by_gguf_only(written):
    assert read_imatrix(written(".gguf")).never_activated(EXPERTS) == (1,)
    assert read_imatrix(written(".dat")).never_activated(EXPERTS) == ()


def test_a_tensor_without_any_token(written):
    """.gguf stores it as it is, .dat leaves it out."""
    idle = Imatrix(
        {**GOOD.entries, "idle": Entry(array("f", bytes(16)), (0, 0))}, GOOD.datasets, 1, 4
    )
    assert list(read_imatrix(written(".gguf", idle)).importance("idle")) == [1.0] * 4
    assert sorted(read_imatrix(written(".dat", idle)).entries) == [DENSE, EXPERTS]


def test_old_files_end_with_the_entries(written, tmp_path):
    """Before March 2024 there were neither chunks nor dataset."""
    raw = written(".dat").read_bytes()
    path = tmp_path / "old.dat"
    path.write_bytes(raw[: -4 - 4 - len("a text.txt")])
    found = read_imatrix(path)
    assert (found.datasets, found.chunk_count) == ((), 0)
    assert found.entries == read_imatrix(tmp_path / "imatrix.dat").entries


def test_nothing_is_replaced_and_other_suffixes_are_refused(written, tmp_path):
    path = written(".gguf")
    with pytest.raises(OutputExists):
        write_imatrix(path, GOOD)
    with pytest.raises(UsageFault):
        write_imatrix(tmp_path / "imatrix.bin", GOOD)
    assert [file.name for file in tmp_path.iterdir()] == ["imatrix.gguf"]


def test_what_fits_gives_notes(written):
    """A stranger, a tensor without an entry, an expert without a token."""
    found = read_imatrix(written(".gguf"))
    fits = {DENSE: (1, 2), EXPERTS: (3, 2)}
    assert check_imatrix(found, fits, "it") == (
        f"{EXPERTS}: no token came to 1, so every column counts the same",
    )
    notes = check_imatrix(found, {DENSE: (1, 2), "blk.0.attn_v.weight": (1, 2)}, "it")
    assert notes == (
        f"{EXPERTS}: in the importance matrix and not in the model",
        "blk.0.attn_v.weight: without an entry, so every column counts the same",
    )


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_what_does_not_fit_is_refused_with_both_sizes(written, suffix):
    found = read_imatrix(written(suffix))
    with pytest.raises(Refused) as refused:
        check_imatrix(found, {DENSE: (1, 3), EXPERTS: (2, 2)}, "it")
    entry = {".gguf": ["1 x 2", "3 x 2"], ".dat": ["2 values", "6 values"]}[suffix]
    assert refused.value.findings == (
        f"{DENSE}: the tensor has 1 x 3, the entry {entry[0]}",
        f"{EXPERTS}: the tensor has 2 x 2, the entry {entry[1]}",
    )


def test_another_cut_of_as_many_values_does_not_fit(written):
    """Two experts of three columns are not three experts of two."""
    found = read_imatrix(written(".gguf"))
    with pytest.raises(Refused):
        check_imatrix(found, {EXPERTS: (2, 3)}, "it")


def test_the_embeddings_entry_may_have_any_size():
    """llama.cpp's quantiser leaves it out, so it is no reason to stop."""
    odd = Imatrix({"token_embd.weight": Entry(array("f", [1.0]), (1,))}, (), 1, 4)
    assert check_imatrix(odd, {"token_embd.weight": (1, 9)}, "it") == ()
