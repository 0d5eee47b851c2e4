"""Plans: every pair of layouts and back is the identity, and copies stay copies."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.arch.args import ModelArgs
from moetool.arch.mixtral import MISTRAL, MIXTRAL
from moetool.arch.schema import expand, slots
from moetool.convert.ops import Halve
from moetool.convert.plan import Part, Plan, Step, assign_shards, derive_steps, spread_shards
from moetool.convert.stream import stream
from moetool.convert.synthetic import GEOMETRIES, RandomCheckpoint, family
from moetool.tensors import Catalog, DType, TensorInfo

NAMES = [convention.name for convention in MIXTRAL.conventions]
FULL = GEOMETRIES["8x7b"]


def full_plan(source, target, max_nbytes=5 * 10**9, args=FULL):
    """The plan of the true geometry, from its shapes alone."""
    layout = expand(family(args).convention(source), args)
    infos = {n: TensorInfo(n, DType.BF16, s.shape) for n, s in layout.items()}
    wanted = expand(family(args).convention(target), args)
    steps = derive_steps(Catalog("", infos, {}), layout, wanted, args)
    return Plan(assign_shards(steps, "one", "{index}-of-{count}", max_nbytes))


@pytest.mark.parametrize("back", NAMES)
@pytest.mark.parametrize("there", NAMES)
def test_every_pair_keeps_every_value(there, back, in_layout, small_args):
    """There and on to a third layout equals going there directly, bit for bit."""
    source, layout = in_layout(there)
    expected, wanted = in_layout(back)
    for step in derive_steps(source.catalog, layout, wanted, small_args, restore=True):
        assert step.target == expected.catalog.tensors[step.target.name]
        assert b"".join(stream(source, step)) == expected.data[step.target.name], step.target.name


def test_without_restore_what_a_gguf_widened_stays(in_layout, small_args):
    """The runner takes norms and router as they are stored."""
    source, layout = in_layout("gguf")
    steps = derive_steps(source.catalog, layout, expand(MISTRAL, small_args), small_args)
    kinds = {step.target.name: step.target.dtype for step in steps}
    assert kinds["layers.0.ffn_norm.weight"] is DType.F32
    assert kinds["layers.0.feed_forward.gate.weight"] is DType.F32
    assert kinds["layers.0.attention.wq.weight"] is DType.BF16
    assert not any(part.cast for step in steps for part in step.parts)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_layout_is_a_plan_of_copies(name, in_layout, small_args):
    """Resharding needs no command of its own."""
    source, layout = in_layout(name)
    steps = derive_steps(source.catalog, layout, layout, small_args)
    assert all(step.is_copy and len(step.parts) == 1 for step in steps)


def test_raw_to_hf_touches_only_queries_and_keys():
    """1.44 % of 93.4 GB are reordered by rows, the rest is copied; no torch is needed."""
    plan = full_plan("mistral", "hf")
    changed = {step.target.name.split(".")[-2] for step in plan.steps if not step.is_copy}
    assert changed == {"q_proj", "k_proj"}
    assert plan.nbytes == 93_405_585_408
    assert round(1 - plan.copied_nbytes / plan.nbytes, 4) == 0.0144
    assert {op for step in plan.steps for part in step.parts for op in part.ops} == {
        Halve(32),
        Halve(8),
    }


def test_raw_to_gguf_does_not_permute():
    """llama.cpp keeps rotary pairs as the raw release has them."""
    plan = full_plan("mistral", "gguf")
    assert len(plan.steps) == 323
    queries = next(step for step in plan.steps if step.target.name == "blk.5.attn_q.weight")
    assert queries.is_copy
    experts = next(step for step in plan.steps if step.target.name == "blk.5.ffn_up_exps.weight")
    assert [part.source for part in experts.parts] == [
        f"layers.5.feed_forward.experts.{expert}.w3.weight" for expert in range(8)
    ]


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_memory_is_bounded_whatever_the_packing(source, target):
    """At the true geometry no step holds more than two experts' matrices."""
    assert full_plan(source, target).peak_nbytes <= 235_000_000


def test_shards_are_filled_in_order_and_never_overfull():
    """19 files at 5 GB, as the hub has them."""
    plan = full_plan("mistral", "hf")
    assert len(plan.shards) == 19
    assert all(shard.nbytes <= 5 * 10**9 for shard in plan.shards)
    assert [shard.file_name for shard in plan.shards][-1] == "19-of-19"


def test_a_tensor_above_the_limit_gets_its_own_file(small_args, random_checkpoint):
    """A limit below the largest tensor does not stop the conversion."""
    source = random_checkpoint()
    layout = expand(MISTRAL, small_args)
    steps = derive_steps(source.catalog, layout, layout, small_args)
    shards = assign_shards(steps, "one", "{index0:02d}", 1)
    assert len(shards) == len(steps)
    assert shards[0].file_name == "00"


def test_parts_that_lie_side_by_side_become_one():
    """hf-fused to hf cuts, hf-fused to hf-fused does not."""
    fused = full_plan("hf-fused", "hf-fused")
    assert all(len(step.parts) == 1 for step in fused.steps)
    part = full_plan("mistral-packed", "gguf").steps[9].parts
    assert all(isinstance(p, Part) for p in part)


@pytest.mark.parametrize("vocab_size", [32000, 32768])
def test_8x22b_in_its_own_form(vocab_size):
    """1,739 tensors of consolidated.safetensors to hf in 57 files, and back; GGUF has 563."""
    args = replace(GEOMETRIES["8x22b"], vocab_size=vocab_size)
    there, back = (full_plan(*pair, args=args) for pair in (("mistral", "hf"), ("hf", "mistral")))
    assert len(there.steps) == len(back.steps) == 1739
    assert there.nbytes == back.nbytes == 2 * args.n_params
    assert there.peak_nbytes == back.peak_nbytes <= 8 << 20
    rows = {op.n_heads for step in there.steps for part in step.parts for op in part.ops}
    assert rows == {48, 8}
    assert len(full_plan("mistral", "gguf", args=args).steps) == 563


def test_mistral_7b_by_the_same_code():
    """291 tensors both ways; only q and k are reordered, and nothing on the way to GGUF."""
    args = GEOMETRIES["7b"]
    for pair in (("mistral", "hf"), ("hf", "mistral")):
        plan = full_plan(*pair, args=args)
        changed = [step for step in plan.steps if not step.is_copy]
        assert (len(plan.steps), len(changed), plan.nbytes) == (291, 64, 2 * 7_241_732_096)
    kinds = {op for step in full_plan("mistral", "gguf", args=args).steps
             for part in step.parts for op in part.moves}  # fmt: skip
    assert kinds == set()


def test_packed_files_are_as_many_as_its_readers_open():
    """consolidated.00.pt to 07.pt, four layers in each."""
    steps = full_plan("mistral", "mistral-packed").steps
    shards = spread_shards(steps, "consolidated.{index0:02d}.pt", 8)
    assert [shard.file_name for shard in shards] == [f"consolidated.{n:02d}.pt" for n in range(8)]
    assert [step for shard in shards for step in shard.steps] == list(steps)
    sizes = [shard.nbytes for shard in shards]
    assert max(sizes) - min(sizes) < 10**9  # a stack of experts has 0.94 of it


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 12))
def test_files_spread_evenly_hold_every_tensor_in_order(sizes, count):
    """As many files as asked for, none empty, unless there are fewer tensors."""
    steps = [Step(TensorInfo(str(n), DType.I8, (size,)), ()) for n, size in enumerate(sizes)]
    shards = spread_shards(steps, "{index}-of-{count}", count)
    assert len(shards) == min(count, len(sizes))
    assert [step for shard in shards for step in shard.steps] == steps
    assert all(shard.steps for shard in shards)
    assert max(shard.nbytes for shard in shards) <= sum(sizes) / len(shards) + 2 * max(sizes)


geometries = st.builds(
    lambda heads, groups, n_experts, **rest: ModelArgs(
        n_heads=heads * groups, n_kv_heads=heads, n_experts=n_experts,
        n_experts_per_tok=min(1, n_experts), **rest,
    ),
    heads=st.integers(1, 3), groups=st.integers(1, 3), dim=st.integers(1, 9),
    n_layers=st.integers(1, 2), head_dim=st.integers(1, 4).map(lambda half: 2 * half),
    hidden_dim=st.integers(1, 9), norm_eps=st.just(1e-5), vocab_size=st.integers(1, 9),
    n_experts=st.integers(0, 4),
)  # fmt: skip


def layouts(args):
    """Two layouts of a geometry: of a mixture any, of a dense model those that it has."""
    names = st.sampled_from([convention.name for convention in family(args).conventions])
    return st.tuples(st.just(args), names, names)


journeys = geometries.flatmap(layouts)


@given(journeys, st.integers(1, 4000))
def test_any_plan_reads_every_source_byte_once(journey, limit):
    """Whatever the geometry: parts tile the source, steps the target, and no shard overflows."""
    args, there, back = journey
    layout, wanted = (expand(family(args).convention(name), args) for name in (there, back))
    infos = {n: TensorInfo(n, DType.BF16, s.shape) for n, s in layout.items()}
    steps = derive_steps(Catalog("", infos, {}), layout, wanted, args)
    assert [step.target.name for step in steps] == list(wanted)
    read = {name: [] for name in infos}
    for step in steps:
        assert sum(part.rows_out for part in step.parts) * wanted[step.target.name].columns == (
            step.target.numel
        )
        for part in step.parts:
            read[part.source].append(part.byte_range)
    for name, ranges in read.items():
        edges = [0, *(stop for _, stop in sorted(ranges))]
        assert [start for start, _ in sorted(ranges)] == edges[:-1]
        assert edges[-1] == infos[name].nbytes
    shards = assign_shards(steps, "one", "{index}-of-{count}", limit)
    assert [step for shard in shards for step in shard.steps] == list(steps)
    assert all(shard.nbytes <= limit or len(shard.steps) == 1 for shard in shards)
    plan = Plan(shards)
    assert plan.copied_nbytes + plan.transformed_nbytes == plan.nbytes
    assert plan.read_nbytes == sum(info.nbytes for info in infos.values())


@given(journeys)
def test_any_plan_brings_each_weight_to_its_own_place(journey):
    """Every cell of the target is filled from the cell that holds the same weight."""
    args, there, back = journey
    layout, wanted = (expand(family(args).convention(name), args) for name in (there, back))
    infos = {n: TensorInfo(n, DType.BF16, s.shape) for n, s in layout.items()}
    held = {(stored.name, cell.start): cell.slot for stored in layout.values()
            for cell in stored.cells}  # fmt: skip
    filled = []
    for step in derive_steps(Catalog("", infos, {}), layout, wanted, args):
        cells = iter(wanted[step.target.name].cells)
        for part in step.parts:
            start = part.start
            while start < part.stop:  # copies side by side were joined
                slot = held[part.source, start]
                assert next(cells).slot == slot
                filled.append(slot)
                stored = next(c for c in layout[part.source].cells if c.start == start)
                start = stored.stop
        assert next(cells, None) is None
    assert sorted(map(str, filled)) == sorted(map(str, slots(args)))


@given(journeys)
def test_any_geometry_goes_there_and_back(journey):
    """Odd and tiny shapes, one head or several: the bits come back through any two layouts."""
    args, there, back = journey
    source = RandomCheckpoint(args, 1)
    held, data = source.catalog, source
    layout = source.layout
    for name in (there, back, there, "mistral"):
        target = expand(family(args).convention(name), args)
        steps = derive_steps(held, layout, target, args, restore=True)
        made = {step.target.name: b"".join(stream(data, step)) for step in steps}
        held = Catalog("", {step.target.name: step.target for step in steps}, {})
        data, layout = Made(made), target
    expected = {name: bytes(source.read(name)) for name in source.catalog.tensors}
    assert data.made == expected


class Made:
    """Tensors in memory."""

    def __init__(self, made):
        self.made = made

    def read(self, name, start=0, stop=None):
        return self.made[name][start:stop]
