"""Casts: every change is counted, what may not change is refused, memory stays bounded."""

import math
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moetool.arch.mixtral import GGUF, HF, MISTRAL, MISTRAL_PACKED, MIXTRAL
from moetool.arch.recognize import Recognized
from moetool.arch.schema import expand
from moetool.convert import stream as streaming
from moetool.convert.casts import CastAccount, CastCount
from moetool.convert.job import Source, prepare
from moetool.convert.ops import Cast
from moetool.convert.plan import Part, Plan, Step, assign_shards, derive_steps
from moetool.convert.stream import stream, to_bytes, to_torch, torch_dtype
from moetool.convert.synthetic import GEOMETRIES, RandomCheckpoint
from moetool.convert.targets import find_dtype, find_target
from moetool.errors import LossyCast, ReadFailed, Refused, UsageFault
from moetool.formats import open_checkpoint
from moetool.tensors import Catalog, DType, TensorInfo

NAN, INF = math.nan, math.inf


class Held:
    """One matrix in memory, as the source of a step."""

    def __init__(self, values, dtype):
        self.tensor = torch.as_tensor(values, dtype=torch.float64).to(torch_dtype(dtype))
        self.dtype, self.data = dtype, bytes(to_bytes(self.tensor))

    def read(self, _name, start=0, stop=None):
        return self.data[start:stop]

    def cast(self, target, *, exact=False, allow_overflow=True):
        """Cast to ``target``; give the tensor and the count."""
        rows, columns = self.tensor.shape
        op = Cast(self.dtype, target, exact)
        part = Part("source", 0, rows, columns, self.dtype, (op,))
        step = Step(TensorInfo("target", target, (rows, columns)), (part,))
        account = CastAccount(allow_overflow)
        made = b"".join(stream(self, step, account))
        return to_torch(made, target, (rows, columns)), account.report().total


def test_each_kind_of_change_is_told_apart():
    """Exact, rounded, underflowed, overflowed, NaN, and an infinity that was there before."""
    values = [[1.0, 1 + 2**-7, 65504.0, -0.0], [2.0**-30, -(2.0**-25), 70000.0, -(2.0**20)],
              [NAN, INF, -INF, 2.0**-24 * 1.5]]  # fmt: skip
    made, count = Held(values, DType.BF16).cast(DType.F16)
    assert count == CastCount(numel=12, rounded=1, overflowed=3, underflowed=2, nan=1)
    assert made[1].tolist() == [0.0, 0.0, INF, -INF]
    assert count.changed == 6


def half_of(value):
    """What IEEE half makes of a double, by the standard library."""
    try:
        return struct.unpack("<e", struct.pack("<e", value))[0]
    except OverflowError:
        return math.copysign(INF, value)


bits = st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=40)


@given(bits)
def test_counts_are_those_of_another_implementation(patterns):
    """Any bf16 bits, NaNs and subnormals among them, against struct's half floats."""
    words = torch.tensor(patterns, dtype=torch.int32).to(torch.int16)
    held = Held([[0.0] * len(patterns)], DType.BF16)
    held.tensor = words.view(torch.bfloat16)[None]
    held.data = bytes(to_bytes(held.tensor))
    made, count = held.cast(DType.F16)
    before = held.tensor[0].double().tolist()
    after = [value if math.isnan(value) else half_of(value) for value in before]
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if not math.isnan(a)]
    assert count.nan == len(before) - len(pairs)
    assert count.overflowed == sum(math.isinf(b) and math.isfinite(a) for a, b in pairs)
    assert count.underflowed == sum(b == 0 != a for a, b in pairs)
    assert count.changed == sum(a != b for a, b in pairs)
    found = made[0].double().tolist()
    assert [b for _, b in pairs] == [b for b in found if not math.isnan(b)]


@given(bits)
def test_widening_changes_nothing_and_comes_back(patterns):
    """16 bits to f32 and back are the same bits, and the account says so."""
    held = Held([[0.0] * len(patterns)], DType.F16)
    held.tensor = (
        torch.tensor(patterns, dtype=torch.int32).to(torch.int16).view(torch.float16)[None]
    )
    held.data = bytes(to_bytes(held.tensor))
    wide, count = held.cast(DType.F32, exact=True)
    assert count.changed == 0
    back, count = Held(wide.double(), DType.F32).cast(DType.F16, exact=True)
    assert count.changed == 0
    same = back.isnan() | (back == held.tensor)
    assert same.all()


@given(bits)
def test_a_norm_is_widened_as_torch_widens(patterns):
    """bf16 to f32 on bytes: the same bits but for those of a NaN, and the NaNs are counted."""
    words = torch.tensor(patterns, dtype=torch.int32).to(torch.int16)
    held = Held([[0.0] * len(patterns)], DType.BF16)
    held.tensor = words.view(torch.bfloat16)[None]
    held.data = bytes(to_bytes(held.tensor))
    wide, count = held.cast(DType.F32, exact=True)
    expected = held.tensor.float()
    assert count == CastCount(numel=len(patterns), nan=int(expected.isnan().sum()))
    assert torch.equal(wide.isnan(), expected.isnan())
    whole = ~expected.isnan()
    assert torch.equal(wide[whole].view(torch.int32), expected[whole].view(torch.int32))


def test_a_gguf_of_bf16_needs_no_torch(source, tmp_path):
    """Norms and routers are widened on bytes: 0.2 GB and a second that nobody needs to spend."""
    plan = prepare(source(), find_target("gguf", None), tmp_path / "out").plan
    assert {step.target.dtype for step in plan.steps} == {DType.BF16, DType.F32}
    assert not any(part.needs_torch for step in plan.steps for part in step.parts)


@pytest.mark.parametrize("chunk", [1 << 20, 32], ids=["one block", "read ahead"])
def test_a_cast_in_slabs_is_the_cast_of_the_whole(chunk, monkeypatch):
    """The count goes on over the edges of slabs, and the first row is that of the tensor."""
    monkeypatch.setattr(streaming, "CAST_NUMEL", 5)
    monkeypatch.setattr(streaming, "COPY_CHUNK", chunk)
    values = torch.linspace(-7e4, 7e4, 52).reshape(13, 4)
    held = Held(values, DType.F32)
    made, count = held.cast(DType.F16)
    assert torch.equal(made, held.tensor.half())
    assert count.overflowed == int(held.tensor.half().isinf().sum()) > 0
    values[:7] = 0
    with pytest.raises(LossyCast, match=r"2 of 52 .*first in row 12"):
        Held(values, DType.F32).cast(DType.F16, allow_overflow=False)


def test_what_fails_while_reading_ahead_is_that_failure(monkeypatch):
    """The thread that reads ahead ends, and what it met is met here."""
    monkeypatch.setattr(streaming, "COPY_CHUNK", 32)
    held = Held(torch.ones(13, 4), DType.F32)
    read = held.read

    def failing(name, start=0, stop=None):
        if start >= 96:
            raise ReadFailed("EIO")
        return read(name, start, stop)

    held.read = failing
    with pytest.raises(ReadFailed, match="EIO"):
        held.cast(DType.F16)


def test_a_cast_that_nobody_asked_for_changes_no_value():
    """f32 values that are no bf16 values are refused with their number."""
    with pytest.raises(LossyCast, match=r"2 of 4 values of source") as caught:
        Held([[1.0, 1 + 2**-12, 3.0, 1e-45]], DType.F32).cast(DType.BF16, exact=True)
    assert "--dtype" in caught.value.hint


@pytest.fixture
def source(small_args, tmp_path):
    """A random checkpoint; ``changes`` puts values at the start of tensors."""

    def make(changes=(), dtype=DType.BF16, convention=MISTRAL, args=small_args):
        held = RandomCheckpoint(args, 3)
        steps = derive_steps(held.catalog, held.layout, expand(convention, args), args,
                             dtype=dtype)  # fmt: skip
        data = {step.target.name: bytearray(b"".join(stream(held, step))) for step in steps}
        infos = {step.target.name: step.target for step in steps}
        for name, values in dict(changes).items():
            raw = to_bytes(torch.tensor(values).to(torch_dtype(infos[name].dtype)))
            data[name][: len(raw)] = raw

        class Memory:
            catalog = Catalog("memory", infos, {})

            def read(self, name, start=0, stop=None):
                return bytes(data[name][start:stop])

        layout = expand(convention, args)
        recognized = Recognized(MIXTRAL, convention, args, layout)
        return Source(Memory(), recognized, tmp_path / "memory", None)

    return make


W2 = "layers.1.feed_forward.experts.2.w2.weight"


def test_overflow_is_refused_unless_allowed(source, tmp_path):
    """The tensor, the count and the first row are said; allowed, inf is written and counted."""
    changed = source({W2: [0.0] * 81 + [1e30, -1e30]})
    job = prepare(changed, find_target("gguf", None), tmp_path / "no", dtype=DType.F16)
    with pytest.raises(LossyCast) as caught:
        job.run()
    assert "2 of 960 values of " + W2 in str(caught.value)
    # Expert 2 begins at row 48 of the stack; element 81 lies in its row 2 of 40 columns.
    assert "first in row 50" in str(caught.value)
    assert caught.value.where == "blk.1.ffn_down_exps.weight"
    assert caught.value.exit_code == 4
    assert not (tmp_path / "no").exists()
    job = prepare(changed, find_target("gguf", None), tmp_path / "yes", dtype=DType.F16,
                  allow_overflow=True)  # fmt: skip
    report = job.run().casts
    assert report.total.overflowed == 2
    assert report.worst[0].name == "blk.1.ffn_down_exps.weight"
    assert (report.worst[0].source, report.worst[0].target) == ("bf16", "f16")


def test_a_refused_conversion_goes_on_when_overflow_is_allowed(source, tmp_path):
    """The files that were finished are kept: nothing in them would be different."""
    changed = source({W2: [1e30]})
    words = (changed, find_target("safetensors", "hf"), tmp_path / "out", 9_000)
    with pytest.raises(LossyCast):
        prepare(*words, dtype=DType.F16).run()
    report = prepare(*words, dtype=DType.F16, allow_overflow=True).run()
    assert report.resumed_nbytes > 0
    assert report.casts.total.overflowed == 1


def test_what_was_allowed_once_is_not_passed_on_unasked(source, tmp_path, monkeypatch):
    """A file with inf in it, finished by an earlier run, is not made a part of this output."""
    from moetool.convert.execute import run

    changed = source({"tok_embeddings.weight": [1e30]})
    words = (changed, find_target("safetensors", "hf"), tmp_path / "out", 9_000)
    with monkeypatch.context() as patch:
        patch.setattr(run, "check_written", lambda *_: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            prepare(*words, dtype=DType.F16, allow_overflow=True).run()
    with pytest.raises(LossyCast, match="1 values as inf") as caught:
        prepare(*words, dtype=DType.F16).run()
    assert caught.value.where == "model.embed_tokens.weight"
    assert not (tmp_path / "out").exists()
    assert prepare(*words, dtype=DType.F16, allow_overflow=True).run().casts.total.overflowed == 1


def test_a_tensor_with_nan_is_named(source, tmp_path):
    """NaN stays NaN, is no change, and is among what needs a look first."""
    changed = source({W2: [NAN, NAN]})
    report = prepare(changed, find_target("safetensors", "hf"), tmp_path / "out",
                     dtype=DType.F32).run().casts  # fmt: skip
    assert (report.total.nan, report.total.changed) == (2, 0)
    assert [tensor.count.nan for tensor in report.worst] == [2]


def test_keep_casts_nothing(source, tmp_path):
    """Without --dtype every type stays, mixed as it may be, and there is no account."""
    report = prepare(source(), find_target("safetensors", "hf"), tmp_path / "out").run()
    assert report.casts is None


@pytest.mark.parametrize("kept", [DType.BF16, DType.F16])
def test_what_a_gguf_widened_goes_back(kept, source, tmp_path):
    """Norms and router of a GGUF are f32 by its rule, and return to the type of the rest."""
    held = source(dtype=kept, convention=GGUF)
    assert held.checkpoint.catalog.tensors["blk.0.attn_norm.weight"].dtype is DType.F32
    report = prepare(held, find_target("safetensors", "hf"), tmp_path / "out").run()
    with open_checkpoint(tmp_path / "out") as made:
        assert {info.dtype for info in made.catalog.tensors.values()} == {kept}
    assert (report.casts.n_tensors, report.casts.total.changed) == (7, 0)


def test_what_a_gguf_has_in_more_detail_is_not_rounded_unasked(source, tmp_path):
    """A router made from f32 weights does not become bf16 without a word."""
    held = source({"blk.1.ffn_gate_inp.weight": [1.2345678]}, convention=GGUF)
    with pytest.raises(LossyCast, match=r"1 of 72 values of blk\.1\.ffn_gate_inp\.weight"):
        prepare(held, find_target("safetensors", "hf"), tmp_path / "keep").run()
    asked = prepare(held, find_target("safetensors", "hf"), tmp_path / "asked", dtype=DType.BF16)
    assert asked.run().casts.total.rounded == 1


def test_the_asked_type_is_what_is_written(source, tmp_path):
    """--dtype f32 to GGUF: everything f32, file_type 0; f16: norms and router stay f32."""
    for asked, kinds, file_type in ((DType.F32, {DType.F32}, 0), (DType.F16, None, 1)):
        out = tmp_path / asked.label
        prepare(source(), find_target("gguf", None), out, dtype=asked).run()
        with open_checkpoint(out) as made:
            tensors = made.catalog.tensors
            found = {info.dtype for info in tensors.values()}
            assert found == (kinds or {DType.F16, DType.F32})
            assert tensors["blk.0.ffn_gate_inp.weight"].dtype is DType.F32
            assert made.catalog.metadata["general.file_type"] == file_type


@pytest.mark.parametrize("convention", [HF, GGUF], ids=lambda c: c.name)
def test_a_cast_alone_holds_no_matrix(convention):
    """At the true geometry a cast needs less than 64 MiB, whatever the tensor."""
    args = GEOMETRIES["8x22b"]
    layout = expand(MISTRAL, args)
    catalog = Catalog("", {n: TensorInfo(n, DType.BF16, s.shape) for n, s in layout.items()}, {})
    for dtype in (DType.F16, DType.F32, None):
        steps = derive_steps(catalog, layout, expand(convention, args), args, dtype=dtype)
        plan = Plan(assign_shards(steps, "one", "", None))
        assert plan.peak_nbytes <= 64 << 20


def test_a_transpose_with_a_cast_holds_one_matrix(source, small_args):
    """The packed layout in another type gives the same values as torch."""
    packed = expand(MISTRAL_PACKED, small_args)
    held = source()
    steps = derive_steps(held.checkpoint.catalog, expand(MISTRAL, small_args), packed, small_args,
                         dtype=DType.F16)  # fmt: skip
    step = next(s for s in steps if s.target.name == "layers.1.block_sparse_moe.w2")
    made = to_torch(b"".join(stream(held.checkpoint, step)), DType.F16, step.target.shape)
    w2 = [held.checkpoint.read(W2.replace("experts.2", f"experts.{e}")) for e in range(3)]
    expected = torch.cat([to_torch(raw, DType.BF16, (24, 40)).T.half() for raw in w2])
    assert torch.equal(made, expected)


def test_blocks_of_quantised_weights_are_not_rearranged(small_args):
    """A type that only its codec understands is refused before anything is written."""
    args = replace(small_args, dim=64, hidden_dim=64)
    layout = expand(GGUF, args)
    infos = {n: TensorInfo(n, DType.Q8_0, s.shape) for n, s in layout.items()}
    with pytest.raises(Refused, match="q8_0, which cannot be transposed or cast"):
        derive_steps(Catalog("gguf", infos, {}), layout, expand(MISTRAL_PACKED, args), args)
    infos = {n: TensorInfo(n, DType.IQ4_NL, s.shape) for n, s in layout.items()}
    with pytest.raises(Refused, match="iq4_nl, which cannot be transposed or cast"):
        derive_steps(Catalog("gguf", infos, {}), layout, layout, args, dtype=DType.F16)


def test_blocks_that_are_decoded_become_any_type(small_args):
    """By ``dtype`` all, by ``decoded`` what is quantised and nothing else."""
    args = replace(small_args, dim=64, hidden_dim=64)
    layout = expand(GGUF, args)
    infos = {n: TensorInfo(n, DType.Q8_0, s.shape) for n, s in layout.items()}
    infos["output_norm.weight"] = TensorInfo("output_norm.weight", DType.F32, (64,))
    catalog, raw = Catalog("gguf", infos, {}), expand(MISTRAL, args)
    for options, norm in ({"dtype": DType.F16}, DType.F16), ({"decoded": DType.F16}, DType.F32):
        made = {
            s.target.name: s.target.dtype
            for s in derive_steps(catalog, layout, raw, args, **options)
        }
        assert made.pop("norm.weight") is norm
        assert set(made.values()) == {DType.F16}


@pytest.mark.parametrize("words", [("safetensors", "hf"), ("pth", "mistral")])
def test_blocks_that_a_format_has_no_name_for_are_refused(words, small_args, tmp_path):
    """Moved as they are they could be; written into such a file they cannot."""
    args = replace(small_args, dim=64, hidden_dim=64)
    layout = expand(GGUF, args)
    infos = {n: TensorInfo(n, DType.F32 if s.full_precision else DType.Q8_0, s.shape)
             for n, s in layout.items()}  # fmt: skip

    class Held:
        catalog = Catalog("gguf", infos, {})

    recognized = Recognized(MIXTRAL, GGUF, args, layout)
    held = Source(Held(), recognized, tmp_path / "held", None)
    with pytest.raises(Refused, match=f"a {words[0]} file has no such types: 28 of q8_0") as caught:
        prepare(held, find_target(*words), tmp_path / "out")
    assert caught.value.exit_code == 4
    assert prepare(held, find_target("gguf", "gguf-split"), tmp_path / "out").plan.nbytes


def test_a_type_that_cannot_be_asked_for_is_a_usage_fault():
    """The message lists those that can."""
    assert (find_dtype("keep"), find_dtype("bf16")) == (None, DType.BF16)
    with pytest.raises(UsageFault, match="fp8") as caught:
        find_dtype("fp8")
    assert "keep, bf16, f16, f32" in caught.value.hint
