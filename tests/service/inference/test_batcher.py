"""The model here is arithmetic: output `sum` is the rows' sums, `bound` [n, k] the sums times each coverage."""

import asyncio
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from models.manifest import Target
from service.errors import DeadlineError, UnavailableError
from service.inference.batcher import Batcher, Call, RunLimits, _shared
from service.metrics import ModelMetrics

pytestmark = pytest.mark.anyio

ROW_SECONDS = 2.0**-30
"""So short that no run shows that rows take less."""


class Model:
    """Notes the sizes of its runs, which in other threads wait for `may_run`; a row of NaN makes a run fail."""

    def __init__(self):
        self.home = threading.current_thread()
        self.runs = []
        self.threads = set()
        self.may_run = threading.Event()
        self.may_run.set()
        self.started = threading.Event()

    def __call__(self, x, coverage, outputs):
        self.started.set()
        if threading.current_thread() is not self.home:
            assert self.may_run.wait(timeout=10)
        self.runs.append(len(x))
        self.threads.add(threading.current_thread())
        if np.isnan(x).any():
            raise RuntimeError("poisoned")
        sums = x.sum(axis=1)
        answers = {"sum": sums, "bound": sums[:, None] * coverage}
        return {name: answers[name] for name in outputs}


def batcher(model, row_seconds=ROW_SECONDS, **limits):
    defaults = {"inline_seconds": 8 * ROW_SECONDS, "run_rows": 16, "queued_rows": 1000, "deadline_seconds": 60.0}
    return Batcher(
        model,
        row_seconds=row_seconds,
        limits=RunLimits(**(defaults | limits)),
        metrics=ModelMetrics([Target(name="y", minimum=0.0, maximum=1.0)]),
    )


def rows(n, start=0.0):
    return np.arange(start, start + 2.0 * n).reshape(n, 2)


async def ask(shared, x, coverage=(0.5,), outputs=("sum", "bound")):
    return (await shared.outputs(x, coverage=coverage, outputs=outputs)).arrays


def submit(shared, x, done, coverage=(0.5,)):
    return shared.submit(x, coverage=coverage, outputs=("sum",), done=done)


async def reach_the_thread(model):
    assert await asyncio.to_thread(model.started.wait, 10)


async def test_requests_of_one_turn_share_a_run_and_get_their_own_rows():
    model = Model()
    shared = batcher(model)
    asked = [rows(1), rows(2, start=10), rows(3, start=20)]
    answers = await asyncio.gather(*(ask(shared, x) for x in asked))
    assert model.runs == [6]
    for x, answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer["sum"], x.sum(axis=1))
        np.testing.assert_array_equal(answer["bound"], x.sum(axis=1)[:, None] * 0.5)
    assert shared.queued_rows == 0


async def test_requests_with_other_coverages_or_outputs_run_apart():
    model = Model()
    shared = batcher(model)
    answers = await asyncio.gather(
        ask(shared, rows(1)),
        ask(shared, rows(1), coverage=(0.5, 0.9)),
        ask(shared, rows(1), outputs=("sum",)),
        ask(shared, rows(1)),
    )
    assert sorted(model.runs) == [1, 1, 2]
    assert answers[1]["bound"].shape == (1, 2)
    assert set(answers[2]) == {"sum"}


async def test_requests_that_fill_a_run_to_its_last_row_share_it():
    model = Model()
    shared = batcher(model, inline_seconds=8 * ROW_SECONDS)
    await asyncio.gather(ask(shared, rows(5)), ask(shared, rows(3)))
    assert model.runs == [8]


async def test_a_run_waits_while_turns_of_the_event_loop_bring_more():
    model, heard = Model(), []
    shared = batcher(model)
    for _ in range(3):
        submit(shared, rows(1), heard.append)
        await asyncio.sleep(0)
    assert model.runs == []
    await asyncio.sleep(0)
    assert model.runs == [3]


async def test_a_run_does_not_wait_for_ever_while_each_turn_brings_more():
    model, heard = Model(), []
    shared = batcher(model, inline_seconds=1000 * ROW_SECONDS)
    for _ in range(20):
        submit(shared, rows(1), heard.append)
        await asyncio.sleep(0)
    assert len(heard) > 10


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (1, 7)])
async def test_requests_that_fill_a_run_wait_for_no_further_turn(sizes):
    model, heard = Model(), []
    shared = batcher(model, inline_seconds=8 * ROW_SECONDS)
    for size in sizes:
        submit(shared, rows(size), heard.append)
    await asyncio.sleep(0)
    assert model.runs == [8]


async def test_small_runs_stay_on_the_event_loops_thread_and_within_their_size():
    model = Model()
    shared = batcher(model, inline_seconds=8 * ROW_SECONDS)
    await asyncio.gather(*(ask(shared, rows(3)) for _ in range(5)))
    assert model.runs == [6, 6, 3]
    assert model.threads == {threading.current_thread()}


async def test_others_have_their_turn_between_runs_on_the_event_loop():
    model = Model()
    shared = batcher(model, inline_seconds=8 * ROW_SECONDS)
    asked = asyncio.gather(*(ask(shared, rows(6)) for _ in range(3)))
    runs_seen = set()
    while not asked.done():
        await asyncio.sleep(0)
        runs_seen.add(len(model.runs))
    assert {1, 2} < runs_seen


async def test_a_large_request_runs_in_a_thread_in_pieces():
    model = Model()
    answer = await ask(batcher(model, run_rows=16), rows(40))
    assert model.runs == [16, 16, 8]
    assert threading.current_thread() not in model.threads
    np.testing.assert_array_equal(answer["sum"], rows(40).sum(axis=1))


async def test_rows_that_a_run_shows_to_be_fast_run_on_the_event_loop_from_then_on():
    model = Model()
    shared = batcher(model, row_seconds=1, inline_seconds=10)  # the model takes far less than it was thought to
    on_the_loop = []
    for size in (12, 12, 13, 12):
        model.threads.clear()
        await ask(shared, rows(size))
        await asyncio.sleep(0)  # runs are counted after their answers
        on_the_loop.append(model.threads == {threading.current_thread()})
    assert on_the_loop == [False, True, False, True]


async def test_rows_that_a_run_shows_to_be_slow_stay_with_the_thread():
    model = Model()
    shared = batcher(model, row_seconds=1, inline_seconds=1e-9)  # which no run is short of
    for _ in range(2):
        await ask(shared, rows(12))
        await asyncio.sleep(0)  # runs are counted after their answers
    assert threading.current_thread() not in model.threads


async def test_large_requests_of_one_turn_share_a_run():
    model, heard = Model(), []
    shared = batcher(model, run_rows=64)
    submit(shared, rows(20), heard.append)
    model.started.wait(timeout=0.05)  # this turn lasts so long that the thread would have begun
    submit(shared, rows(20), heard.append)
    await reach_the_thread(model)
    while len(heard) < 2:
        await asyncio.sleep(0)
    assert model.runs == [40]


async def test_the_thread_goes_on_while_the_event_loop_is_busy():
    model = Model()
    model.may_run.clear()
    shared = batcher(model)
    calls = [asyncio.create_task(ask(shared, rows(20), coverage=(c,))) for c in (0.5, 0.6, 0.7)]
    await reach_the_thread(model)
    model.may_run.set()
    end = time.monotonic() + 10
    while len(model.runs) < 6:  # of 16 and 4 rows; nothing else happens on the event loop
        assert time.monotonic() < end
    assert [answer["sum"].shape for answer in await asyncio.gather(*calls)] == [(20,)] * 3
    assert shared.queued_rows == 0


async def test_a_busy_model_gives_its_thread_to_others():
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    model, stop = Model(), asyncio.Event()

    def slow(*arguments):
        time.sleep(0.005)
        return model(*arguments)

    busy, other = batcher(slow), batcher(Model())

    async def ask_on():
        while not stop.is_set():
            await ask(busy, rows(20))

    callers = [asyncio.create_task(ask_on()) for _ in range(4)]
    await asyncio.sleep(0.1)
    await asyncio.wait_for(ask(other, rows(20)), 10)
    stop.set()
    await asyncio.gather(*callers)


async def test_a_busy_model_takes_a_thread_again_for_what_is_left():
    model = Model()

    def slow(*arguments):
        time.sleep(0.03)
        return model(*arguments)

    shared = batcher(slow, run_rows=20)
    calls = [ask(shared, rows(20), coverage=(c,)) for c in (0.5, 0.6, 0.7)]  # no thread is kept for so long
    assert len(await asyncio.wait_for(asyncio.gather(*calls), 10)) == 3


async def test_what_queues_up_during_a_run_shares_the_next():
    model = Model()
    model.may_run.clear()
    shared = batcher(model, inline_seconds=0)
    first = asyncio.create_task(ask(shared, rows(1)))
    await reach_the_thread(model)
    later = [asyncio.create_task(ask(shared, rows(n, start=n))) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    model.may_run.set()
    answers = await asyncio.gather(first, *later)
    assert model.runs == [1, 6]
    np.testing.assert_array_equal(answers[3]["sum"], rows(3, start=3).sum(axis=1))


async def test_a_small_request_does_not_wait_behind_a_large_one():
    model = Model()
    model.may_run.clear()
    shared = batcher(model)
    large = asyncio.create_task(ask(shared, rows(40)))
    await reach_the_thread(model)
    await ask(shared, rows(1))
    assert not large.done()
    model.may_run.set()
    await large


@pytest.mark.parametrize("inline_rows", [0, 8])
async def test_a_cancelled_caller_leaves_the_others_of_its_run_intact(inline_rows):
    model = Model()
    model.may_run.clear()
    shared = batcher(model, inline_seconds=inline_rows * ROW_SECONDS)
    first = asyncio.create_task(ask(shared, rows(10)))
    await reach_the_thread(model)
    calls = [asyncio.create_task(ask(shared, rows(1, start=i))) for i in range(4)]
    await asyncio.sleep(0)
    calls[1].cancel()
    await asyncio.wait([calls[1]])
    model.may_run.set()
    await first
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert [answers[i]["sum"].tolist() for i in (0, 2, 3)] == [[1.0], [5.0], [7.0]]
    assert sum(model.runs) == 10 + 3
    assert shared.queued_rows == 0


async def test_a_caller_cancelled_during_the_run_leaves_the_others_intact():
    model = Model()
    model.may_run.clear()
    shared = batcher(model, inline_seconds=0)
    calls = [asyncio.create_task(ask(shared, rows(1, start=i))) for i in range(3)]
    await reach_the_thread(model)
    calls[0].cancel()
    model.may_run.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [answer["sum"].tolist() for answer in answers[1:]] == [[3.0], [5.0]]
    await ask(shared, rows(1))


async def test_a_caller_cancelled_in_the_turn_of_its_answer_is_no_bug(caplog):
    model = Model()
    call = asyncio.create_task(ask(batcher(model), rows(8)))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert model.runs == [8]
    assert call.cancelled()
    assert caplog.messages == []


@pytest.mark.parametrize("inline_rows", [0, 8])
async def test_a_call_that_is_given_up_hears_why_and_is_not_run(inline_rows):
    model = Model()
    model.may_run.clear()
    shared = batcher(model, inline_seconds=inline_rows * ROW_SECONDS, run_rows=1)
    heard = {}
    calls = [
        shared.submit(rows(1, start=i), coverage=(0.5,), outputs=("sum",), done=partial(heard.__setitem__, i)) for i in range(4)
    ]
    if not inline_rows:
        await reach_the_thread(model)
    shared.give_up(calls[2], ConnectionError("gone"))
    shared.give_up(calls[2], ConnectionError("once more"))
    assert str(heard[2]) == "gone"
    assert shared.queued_rows == 3
    model.may_run.set()
    while len(heard) < 4:
        await asyncio.sleep(0)
    shared.give_up(calls[0], ConnectionError("too late"))
    assert [heard[i].arrays["sum"].tolist() for i in (0, 1, 3)] == [[1.0], [3.0], [7.0]]
    assert sum(model.runs) == 3
    assert shared.queued_rows == 0


@pytest.mark.parametrize("inline_rows", [0, 8])
async def test_a_failing_run_fails_only_the_request_that_makes_it_fail(inline_rows):
    shared = batcher(Model(), inline_seconds=inline_rows * ROW_SECONDS)
    answers = await asyncio.gather(
        ask(shared, rows(1)), ask(shared, np.full((1, 2), np.nan)), ask(shared, rows(2)), return_exceptions=True
    )
    assert str(answers[1]) == "poisoned"
    assert answers[0]["sum"].tolist() == [1.0]
    assert answers[2]["sum"].tolist() == [1.0, 5.0]


@pytest.mark.parametrize("inline_rows", [0, 8])
async def test_an_answer_that_cannot_be_handed_over_keeps_none_from_the_others(inline_rows):
    shared, heard = batcher(Model(), inline_seconds=inline_rows * ROW_SECONDS), []
    submit(shared, rows(1), lambda _: 1 / 0)
    submit(shared, rows(1), heard.append)
    end = time.monotonic() + 10
    while not heard:
        assert time.monotonic() < end
        await asyncio.sleep(0)
    assert heard[0].arrays["sum"].tolist() == [1.0]
    assert shared.queued_rows == 0


async def test_an_answered_call_is_kept_no_longer():
    shared, x = batcher(Model(), deadline_seconds=60.0), rows(20)
    kept = weakref.ref(x)
    await ask(shared, x)
    del x
    end = time.monotonic() + 2
    while kept() is not None:  # the thread lets go of it a moment later
        assert time.monotonic() < end
        await asyncio.sleep(0)


async def test_a_full_queue_refuses_at_once_and_takes_in_again_later():
    model = Model()
    model.may_run.clear()
    shared = batcher(model, queued_rows=50)
    waiting = asyncio.create_task(ask(shared, rows(40)))
    await reach_the_thread(model)
    with pytest.raises(UnavailableError, match=r"40 rows wait .* at most 50 .*max_queued_rows") as caught:
        await ask(shared, rows(11))
    assert caught.value.headers == {"Retry-After": "1"}
    model.may_run.set()
    await waiting
    await ask(shared, rows(50))


async def test_a_request_past_its_deadline_is_refused_and_not_run():
    model = Model()
    with pytest.raises(DeadlineError, match="deadline_seconds"):
        await ask(batcher(model, deadline_seconds=-1.0), rows(1))
    assert model.runs == []


async def test_the_timeout_of_a_request_is_no_way_around_the_deadline_of_all():
    with pytest.raises(DeadlineError):
        await batcher(Model(), deadline_seconds=-1.0).outputs(rows(1), coverage=(0.5,), outputs=("sum",), timeout_seconds=60.0)


async def test_the_seconds_of_a_run_count_for_each_of_its_requests():
    shared = batcher(Model())
    await asyncio.gather(*(ask(shared, rows(1)) for _ in range(3)))
    shared.count()
    assert shared._metrics.run.count == 1
    assert shared._metrics.seconds["run"] == pytest.approx(3 * shared._metrics.run.total)


async def test_waits_are_measured_where_the_event_loops_clock_stands_still(monkeypatch):
    model = Model()
    shared = batcher(model)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 1.0)  # uvloop's ticks once in a millisecond
    await ask(shared, rows(1))
    shared.count()
    assert 0 < shared._metrics.queue.total < 10
    with pytest.raises(DeadlineError):
        await shared.outputs(rows(1), coverage=(0.9,), outputs=("sum",), timeout_seconds=1e-9)


async def test_no_rows_are_answered():
    answer = await ask(batcher(Model()), rows(0))
    assert answer["bound"].shape == (0, 1)


async def test_nobodys_answer_hangs_on_a_count(monkeypatch):
    shared, told = batcher(Model()), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    monkeypatch.setattr(shared._metrics, "ran", lambda *_, **__: 1 / 0)
    answers = await asyncio.wait_for(asyncio.gather(ask(shared, rows(1)), ask(shared, rows(20))), timeout=10)
    assert [len(answer["sum"]) for answer in answers] == [1, 20]
    until_then = asyncio.get_running_loop().time() + 10
    while len(told) < 2 and asyncio.get_running_loop().time() < until_then:
        await asyncio.sleep(0.01)
    assert [type(error) for error in told] == [ZeroDivisionError] * 2


@pytest.mark.parametrize("calls", [1000, 3000])
def test_calls_that_share_no_run_are_told_apart_in_time_that_does_not_grow_squared(calls):
    class Coverage(float):
        compared = 0

        def __eq__(self, other):
            Coverage.compared += 1
            return float(self) == float(other)

        __hash__ = float.__hash__

    def call(number):
        coverage = (Coverage(number % 2999),)
        return Call(np.zeros((1, 2)), coverage, ("mean",), small=True, came=0.0, deadline=1.0, done=lambda _: None)

    waiting = [call(number) for number in range(calls)]
    chosen, others = _shared(waiting, rows=64)
    assert chosen == waiting[:1]
    assert others == waiting[1:]
    assert Coverage.compared < 1000
