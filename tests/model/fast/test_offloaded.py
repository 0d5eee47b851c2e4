"""Experts in slots, on their way, or left to the CPU: the reference's bits in any case."""

from __future__ import annotations

import random
import threading
from collections import Counter, deque

import pytest
import torch

from moetool.errors import NotEnoughMemory
from moetool.model.fast.copies import AtOnce
from moetool.model.fast.engine import engine_for, offloaded
from moetool.model.fast.feed import Feed
from moetool.model.fast.offloaded import Offloaded
from moetool.model.fast.rates import Rates, measure
from moetool.model.fast.resident import Resident
from moetool.model.fast.slots import PASSING, Slots
from moetool.model.load import open_weights
from moetool.model.mixtral import Probe, Transformer

CPU = torch.device("cpu")
NEVER_CPU, ALWAYS_CPU = Rates(1e12, 1.0, 1.0), Rates(1.0, 1e12, 1e15)
FEW_ON_CPU = Rates(1e6, 1e12, 2.5e6)  # up to two rows: an expert has 2 bytes for each number


class Lazy(AtOnce):
    """Copies that are done only when someone waits for them, in their order."""

    def __init__(self):
        self.queue, self.done, self.n = deque(), 0, 0
        self.lock = threading.RLock()

    def copy(self, target, source, after):
        del after  # the order of the queue is kept, and what computes here is done at once
        with self.lock:
            self.n += 1
            target.fill_(float("nan"))  # who reads it without waiting finds this
            self.queue.append((target, source))
            return LazyMark(self, self.n)


class LazyMark:
    def __init__(self, copies, n):
        self.copies, self.n = copies, n

    def wait(self):
        with self.copies.lock:
            while self.copies.done < self.n:
                target, source = self.copies.queue.popleft()
                target.copy_(source)
                self.copies.done += 1

    hold = wait


class Counting:
    """A store that counts what is asked for."""

    def __init__(self, weights):
        self.weights, self.asked, self.expect = weights, Counter(), weights.expect

    def __getitem__(self, name):
        self.asked[name] += 1
        return self.weights[name]


@pytest.fixture
def stores(in_layout, recognized, odd_args):
    """Make a device's store with room for so many experts beside the rest, and the host's."""

    def make(n_slots, dtype=torch.float32):
        checkpoint, _ = in_layout("mistral", odd_args)
        weights = open_weights(checkpoint, recognized(), CPU, dtype)
        expert = odd_args.n_params_expert_layer * dtype.itemsize
        n_experts = odd_args.n_layers * odd_args.n_experts
        weights.budget = weights.nbytes + (n_slots - n_experts) * expert
        return weights, open_weights(checkpoint, recognized(), CPU, dtype)

    return make


@pytest.mark.parametrize("rates", [NEVER_CPU, ALWAYS_CPU, FEW_ON_CPU])
@pytest.mark.parametrize("n_slots", [2, 5, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_gives_the_bits_of_the_reference(
    stores, load_model, some_tokens, odd_args, rates, n_slots, dtype
):
    reference, tokens = load_model(dtype=dtype), some_tokens(72)
    pieces = tokens.split([48, 5, *[1] * 19])
    weights, host = stores(n_slots, dtype)
    with offloaded(odd_args, weights, host, rates, Lazy()) as model:
        logits = []
        for each in (reference, model):
            cache = each.new_cache(72)
            logits.append(torch.cat([each.forward(piece, cache) for piece in pieces]))
        assert torch.equal(*logits)
        assert (model.n_cpu == 0) == (rates is NEVER_CPU)
        assert (model.n_copied == 0) == (rates is ALWAYS_CPU)


def test_a_prompt_sends_each_expert_once_and_decoding_finds_those_that_stayed(
    stores, some_tokens, odd_args
):
    weights, host = stores(2 + 3 * odd_args.n_experts)
    counting = Counting(host)
    with offloaded(odd_args, weights, counting, NEVER_CPU) as model:
        cache = model.new_cache(80)
        model.forward(some_tokens(64), cache)
        assert set(counting.asked.values()) == {1}
        assert model.n_copied == odd_args.n_layers * odd_args.n_experts
        for token in some_tokens(10, seed=2).split(1):
            model.forward(token, cache)
        assert model.n_copied == odd_args.n_layers * odd_args.n_experts


def test_the_busiest_experts_of_a_prompt_stay(stores, some_tokens, odd_args):
    """One slot for each layer: the expert that most tokens of the prompt went to is in it."""
    loads = {}

    class Loads(Probe):
        def routed(self, layer, routing):
            loads[layer] = routing.experts_TA.flatten().bincount(minlength=5)

    weights, host = stores(PASSING + odd_args.n_layers)
    with offloaded(odd_args, weights, host, NEVER_CPU) as model:
        model.forward(some_tokens(64), model.new_cache(64), Loads())
        for layer, load_E in loads.items():
            assert list(model._slots._held[layer]) == [int(load_E.argmax())]


@pytest.fixture
def slots():
    """Make slots of one number each; what is read is 10 · layer + expert."""
    feeds = []

    def make(n_slots, n_layers, copies):
        feeds.append(Feed(copies, torch.float32, 4))
        slab = torch.zeros(n_slots, 1)
        read = lambda key: [torch.tensor([10.0 * key[0] + key[1]])]  # noqa: E731
        return Slots(slab, n_layers, read, feeds[-1], copies)

    yield make
    for feed in feeds:
        feed.close()


def used(slots, key, *, keep=True):
    if not slots.holds(key):
        slots.fetch(key, keep=keep)
    with slots.use(key) as row:
        assert row.item() == 10 * key[0] + key[1]


def test_the_expert_used_longest_ago_leaves_its_layer(slots):
    s = slots(PASSING + 4, 2, AtOnce())
    for expert in (0, 1, 0, 2):
        used(s, (0, expert))
    for expert in (5, 6):
        used(s, (1, expert))
    assert list(s._held[0]) == [0, 2]
    assert list(s._held[1]) == [5, 6]  # what other layers do throws nothing out
    assert not s.holds((0, 1))


def test_what_passes_through_throws_nothing_out(slots):
    s = slots(PASSING + 2, 1, AtOnce())
    for expert in range(8):
        used(s, (0, expert), keep=False)
    assert list(s._held[0]) == [0, 1]
    assert s.holds((0, 6))
    assert s.holds((0, 7))
    assert not s.holds((0, 5))


def test_one_that_is_on_its_way_is_not_thrown_out(slots):
    s = slots(PASSING + 1, 1, Lazy())
    s.fetch((0, 1), keep=True)
    s.fetch((0, 2), keep=True)  # the only slot of the layer is being filled: it passes through
    for key in ((0, 1), (0, 2)):
        used(s, key)


def test_a_slot_is_not_written_to_before_its_last_use_is_over(slots):
    """Each copy into a slot stands behind a mark that was made after the slot's last use."""
    now, over = [0], {}

    class Watching(AtOnce):
        def mark(self):
            now[0] += 1
            mark = super().mark()
            mark.time = now[0]
            return mark

        def copy(self, target, source, after):
            if target.data_ptr() in over:
                assert after is not None
                assert after.time > over[target.data_ptr()]
                behind.append(after.time)
            return super().copy(target, source, after)

    behind = []
    s = slots(PASSING + 3, 2, Watching())
    pick = random.Random(0)
    for _ in range(300):
        key = (pick.randrange(2), pick.randrange(6))
        if not s.holds(key):
            s.fetch(key, keep=pick.random() < 0.7)
        with s.use(key) as row:
            now[0] += 1
            over[row.data_ptr()] = now[0]
    assert len(behind) > 100


def test_matrices_larger_than_the_buffers_arrive_whole():
    copies = Lazy()
    feed = Feed(copies, torch.float32, 40)
    parts = [torch.arange(float(n)) for n in (7, 25, 10, 64)]
    target = torch.zeros(sum(map(len, parts)))
    feed.send(lambda: parts, target, None).result().wait()
    feed.close()
    assert torch.equal(target, torch.cat(parts))
    assert copies.n == 1 + 3 + 1 + 7


def test_an_error_on_the_way_reaches_who_waits(slots):
    s = slots(PASSING, 1, AtOnce())

    def unreadable(_key):
        raise OSError("unreadable")

    s._read = unreadable
    s.fetch((0, 0), keep=False)
    with pytest.raises(OSError, match="unreadable"), s.use((0, 0)):
        pass


def test_the_cpu_wins_with_few_rows_and_a_slow_bus():
    nbytes, numel = 352_321_536, 176_160_768  # an expert of 8x7B in bf16
    pcie4, pcie5 = Rates(25e9, 80e9, 1.5e12), Rates(50e9, 80e9, 1.5e12)
    assert pcie4.cpu_wins(nbytes, numel, 1)
    assert pcie4.cpu_wins(nbytes, numel, 59)
    assert not pcie4.cpu_wins(nbytes, numel, 61)  # 14.1 ms on the bus, 14.3 of computing
    assert not pcie5.cpu_wins(nbytes, numel, 31)
    assert not Rates(25e9, 15e9, 1.5e12).cpu_wins(nbytes, numel, 1)  # a laptop's memory


def test_rates_are_measured():
    feed = Feed(AtOnce(), torch.bfloat16)
    rates = measure(feed, CPU, torch.bfloat16, side=512)
    feed.close()
    assert min(rates.moved, rates.multiplied, rates.cpu_flops) > 1e6
    assert max(rates.moved, rates.multiplied) < 1e13


def test_no_room_for_two_experts_is_refused(stores, odd_args):
    with (
        pytest.raises(NotEnoughMemory, match="no two experts fit"),
        offloaded(odd_args, *stores(1), NEVER_CPU),
    ):
        pass


def test_the_engine_is_chosen_by_what_fits(in_layout, recognized, odd_args, some_tokens):
    checkpoint, _ = in_layout("mistral", odd_args)
    known, tokens = recognized(), some_tokens(20)
    reference = Transformer(odd_args, open_weights(checkpoint, known, CPU))
    right = reference.forward(tokens, reference.new_cache(20))
    for budget, kind in ((None, Resident), (reference.weights.nbytes - 1, Offloaded)):
        weights = open_weights(checkpoint, known, CPU, budget=budget)
        with engine_for(checkpoint, known, weights) as model:
            assert type(model) is kind
            found = model.forward(tokens, model.new_cache(20))
            assert (found - right).abs().max() < 0.1 * right.std()
        assert not weights._held  # nothing is there twice
