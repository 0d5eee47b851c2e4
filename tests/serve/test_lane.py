"""One at a time: the line, who leaves it, and work that ends when nobody waits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from moetool.serve import lane as lanes
from moetool.serve.faults import Fault
from moetool.serve.lane import Lane
from moetool.serve.writing import Gone, Watch


@pytest.fixture
def lane():
    made = Lane()
    yield made
    made.close()


def within(coroutine, seconds=20):
    return asyncio.run(asyncio.wait_for(coroutine, seconds))


async def collect(flow):
    return [item async for item in flow]


def test_the_second_waits_for_the_first_and_sees_it(lane):
    released = threading.Event()

    def slow(_gone):
        yield ["a"]
        assert released.wait(10)
        yield ["b", "c"]

    async def run():
        first, second, third = (lane.enter(name) for name in "xyz")
        doing = asyncio.create_task(collect(lane.flow(first, slow)))
        places = []

        async def wait(ticket):
            async for place in lane.wait(ticket):
                places.append((ticket.model, place))  # noqa: PERF401  # seen while it goes on

        waiting = [asyncio.create_task(wait(second)), asyncio.create_task(wait(third))]
        while len(places) < 2 or first.n_tokens < 1:  # noqa: ASYNC110  # a thread counts
            await asyncio.sleep(0.005)
        state = lane.state
        released.set()
        assert await doing == ["a", "b", "c"]
        await waiting[0]
        lane.leave(second)
        await waiting[1]
        return places, state

    places, state = within(run())
    assert places[:2] == [("y", 1), ("z", 2)]
    assert places[2:] == [("z", 1)]
    assert (state["running"]["model"], state["waiting"]) == ("x", 2)


def test_who_waits_hears_of_it_now_and_then(lane, monkeypatch):
    monkeypatch.setattr(lanes, "NEWS_SECONDS", 0.01)

    async def run():
        lane.enter("x")
        places = lane.wait(lane.enter("y"))
        return [await anext(places) for _ in range(3)]

    assert within(run()) == [1, 1, 1]


def test_work_ends_at_most_one_step_after_its_reader_left(lane):
    steps, at_two, left = [], threading.Event(), threading.Event()

    def work(gone):
        for step in range(1000):
            if gone():
                return
            steps.append(step)
            yield [step]
            if step == 2:
                at_two.set()
                assert left.wait(10)

    async def run():
        ticket = lane.enter("x")
        flow = lane.flow(ticket, work)
        assert await anext(flow) == 0
        await asyncio.to_thread(at_two.wait, 10)
        await flow.aclose()
        left.set()
        while lane.state["running"]:  # noqa: ASYNC110  # a thread ends it
            await asyncio.sleep(0.005)

    within(run())
    assert steps == [0, 1, 2]


def test_a_slow_reader_holds_nobody_up(lane):
    """The work is done and its ticket has left, though nothing was read."""

    async def run():
        first = lane.enter("x")
        flow = lane.flow(first, lambda _gone: iter([[1], [2]]))
        assert await anext(flow) == 1
        second = lane.enter("y")
        assert await collect(lane.wait(second)) in ([], [1])
        assert await collect(lane.flow(second, lambda _gone: iter([[3]]))) == [3]
        assert await collect(flow) == [2]

    within(run())


def test_an_error_of_the_work_is_raised_where_it_is_read(lane):
    def work(_gone):
        yield [1]
        raise ValueError("a")

    async def run():
        with pytest.raises(ValueError, match="a"):
            await collect(lane.flow(lane.enter("x"), work))
        assert lane.state["running"] is None

    within(run())


def test_a_full_line_takes_nobody(lane):
    for _ in range(lanes.MOST_WAITING + 1):
        lane.enter("x")
    with pytest.raises(Fault) as caught:
        lane.enter("x")
    assert (caught.value.status, caught.value.code) == (429, "queue_full")


def test_the_end_of_the_server_ends_all(lane):
    def endless(gone):
        while not gone():
            yield [1]

    async def run():
        first, second = lane.enter("x"), lane.enter("y")
        flow, waiting = lane.flow(first, endless), lane.wait(second)
        assert await anext(flow) == 1
        assert await anext(waiting) == 1
        lane.stop()
        with pytest.raises(Fault, match="stopping"):
            await collect(waiting)
        with pytest.raises(Fault, match="stopping"):  # not an end as any other
            await collect(flow)
        with pytest.raises(Fault, match="stopping"):
            lane.enter("z")

    within(run())


def test_a_pass_stops_at_the_next_layer_when_nobody_waits(subject):
    """A prompt of minutes is not read to its end for nobody."""
    import torch

    seen = []

    class Noted(Watch):
        def hidden(self, layer, part, h_TD):
            seen.append((layer, part))
            super().hidden(layer, part, h_TD)

    watch = Noted(None, lambda: len(seen) == 3)
    with pytest.raises(Gone):
        subject.model.hidden(torch.tensor([1, 2, 3]), subject.model.new_cache(3), watch)
    assert seen == [(0, "attention"), (0, "experts"), (1, "attention")]
