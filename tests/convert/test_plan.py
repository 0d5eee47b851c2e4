"""Plans: every pair of layouts and back is the identity, and copies stay copies."""

import pytest

from moetool.arch.mixtral import MISTRAL, MIXTRAL
from moetool.arch.schema import expand
from moetool.convert.ops import Halve
from moetool.convert.plan import Part, Plan, assign_shards, derive_steps
from moetool.convert.stream import stream
from moetool.convert.synthetic import GEOMETRIES
from moetool.tensors import Catalog, DType, TensorInfo

NAMES = [convention.name for convention in MIXTRAL.conventions]
FULL = GEOMETRIES["8x7b"]


def full_plan(source, target, max_nbytes=5 * 10**9):
    """The plan of the true geometry, from its shapes alone."""
    layout = expand(MIXTRAL.convention(source), FULL)
    infos = {n: TensorInfo(n, DType.BF16, s.shape) for n, s in layout.items()}
    wanted = expand(MIXTRAL.convention(target), FULL)
    steps = derive_steps(Catalog("", infos, {}), layout, wanted, FULL)
    return Plan(assign_shards(steps, "one", "{index}-of-{count}", max_nbytes))


@pytest.mark.parametrize("back", NAMES)
@pytest.mark.parametrize("there", NAMES)
def test_every_pair_keeps_every_value(there, back, in_layout, small_args):
    """There and on to a third layout equals going there directly, bit for bit."""
    source, layout = in_layout(there)
    expected, wanted = in_layout(back)
    steps = derive_steps(source.catalog, layout, wanted, small_args, dtype=None)
    for step in steps:
        made = b"".join(stream(source, step))
        held = expected.catalog.tensors[step.target.name]
        if held.dtype is step.target.dtype:
            assert made == expected.data[step.target.name], step.target.name
        else:  # a gguf keeps norms and router in f32; going on keeps what it finds
            assert len(made) == step.target.nbytes


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
