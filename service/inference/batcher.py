"""Shares runs of a model among requests.

Requests that are ready at the same time share one run. There is no timer: small runs happen on the event loop itself, one a
turn, once a turn has brought no further request, so nothing waits when the service is idle; larger ones in a thread, one at a
time, and whatever queues up meanwhile shares the next one. Requests are checked in full before they come here, so a shared run
can only fail as a whole; should it fail, its requests are run one by one.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artifact import Arrays
from service.errors import DeadlineError, OverloadedError
from service.metrics import ModelMetrics

logger = logging.getLogger("service")

TOO_LATE = "the request waited too long for its run (setting deadline_seconds, or its own timeout)"

Values = NDArray[np.float64]
Run = Callable[[Values, Values, Sequence[str]], Arrays]
"""`run(x [n, features], coverage [k], outputs)` -> output name -> array with n rows."""


class Part:
    """The rows of one call, among those of the run that they were in."""

    __slots__ = ("end", "run", "shared", "start")

    def __init__(self, run: Arrays, start: int, end: int, shared: dict[str, Any]):
        self.run = run
        """The outputs of all rows."""
        self.start = start
        self.end = end
        self.shared = shared
        """Cache shared by the calls of one run: what the first makes of all rows, the others reuse."""

    @property
    def arrays(self) -> Arrays:
        """The outputs of the call's own rows."""
        return {name: array[self.start : self.end] for name, array in self.run.items()}


Done = Callable[[Part | Exception], None]

_MOST_TURNS = 4
"""A run waits at most this many turns of the event loop, while each brings more requests."""
_LOOKED_AT = 1000
"""So many waiting calls are looked at for a run: where each asks for other coverages, time must not grow with their square."""
_THREAD_SECONDS = 0.05
"""How long a model keeps a thread before others get it."""


@dataclass(frozen=True)
class RunLimits:
    """The longest run on the event loop, the most rows of a run and of the queue, and the longest wait."""

    inline_seconds: float
    run_rows: int
    queued_rows: int
    deadline_seconds: float


class Call:
    """Rows that wait for their outputs."""

    __slots__ = ("came", "coverage", "deadline", "done", "outputs", "over", "small", "timer", "x")

    def __init__(
        self,
        x: Values,
        coverage: tuple[float, ...],
        outputs: tuple[str, ...],
        *,
        small: bool,
        came: float,
        deadline: float,
        done: Done,
    ):
        """small: run on the event loop. came, deadline: by time.perf_counter, as the event loop's clock counts milliseconds."""
        self.x = x
        self.small = small
        self.coverage = coverage
        self.outputs = outputs
        self.came = came
        self.deadline = deadline
        self.done = done
        self.over = False
        """Answered, refused or given up."""
        self.timer: asyncio.TimerHandle | None = None

    def joins(self, other: "Call") -> bool:
        """Whether both can be rows of one run."""
        return self.coverage == other.coverage and self.outputs == other.outputs


class Batcher:
    """The runs of one model on one event loop."""

    def __init__(self, run: Run, *, row_seconds: float, limits: RunLimits, metrics: ModelMetrics):
        """row_seconds: what a row takes in a run of many, at most."""
        self._run = run
        self._limits = limits
        self._inline_rows = int(limits.inline_seconds / row_seconds)
        self._metrics = metrics
        self._ran: list[tuple[Arrays, int, int, float]] = []  # runs that are not counted yet, whichever thread did them
        self._waited: list[float] = []  # seconds of calls before their runs, likewise
        self._ready: list[Call] = []  # came in these turns of the event loop
        self._seen = 0  # how many of them came before this turn
        self._turns = 0
        self._queue: list[Call] = []  # waits for the thread, which takes from it while the lock is held
        self._lock = threading.Lock()
        self._in_thread = False  # whether the thread takes from the queue
        self._rows = {True: 0, False: 0}  # of calls, small or not, that have neither been answered nor given up

    async def outputs(
        self,
        x: Values,
        *,
        coverage: tuple[float, ...],
        outputs: tuple[str, ...],
        timeout_seconds: float | None = None,
        since: float | None = None,
    ) -> Part:
        """The model's `outputs` on x [n, features]. Raises what `submit` gives or raises."""
        future: asyncio.Future[Part] = asyncio.get_running_loop().create_future()

        def done(result: Part | Exception) -> None:
            if future.cancelled():  # the caller has gone in this very turn
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        call = self.submit(x, coverage=coverage, outputs=outputs, done=done, timeout_seconds=timeout_seconds, since=since)
        try:
            return await future
        finally:
            self.give_up(call)  # where the caller has gone meanwhile

    def submit(
        self,
        x: Values,
        *,
        coverage: tuple[float, ...],
        outputs: tuple[str, ...],
        done: Done,
        timeout_seconds: float | None = None,
        since: float | None = None,
    ) -> Call:
        """Let `done` have the model's `outputs` on x [n, features], or a DeadlineError, or why the run failed.

        It is called once, on the event loop, in a later turn of it. timeout_seconds: a deadline before that of the limits.
        since: when the request came, by time.perf_counter, from which its deadline counts; None for now.
        Raises OverloadedError when too many rows wait.
        """
        small = len(x) <= self._inline_rows
        self._check_room(len(x), small=small)
        loop = asyncio.get_running_loop()
        longest = self._limits.deadline_seconds
        now = time.perf_counter()
        deadline = (now if since is None else since) + (longest if timeout_seconds is None else min(timeout_seconds, longest))
        call = Call(x, coverage, outputs, small=small, came=now, deadline=deadline, done=done)
        self._rows[small] += len(x)
        if not small:
            self._enqueue(call, loop)
            return call
        if not self._ready:
            self._seen = self._turns = 0
            loop.call_soon(self._flush)
        self._ready.append(call)
        return call

    def give_up(self, call: Call, why: Exception | None = None) -> None:
        """Forget a call: it is not run, unless its run has begun. Its caller gets `why`, if that is given. On the event loop.

        Does nothing where the call is answered already.
        """
        if not call.over:
            self._leave_queue(call)
            self._end(call, why)

    @property
    def queued_rows(self) -> int:
        """Rows that have neither been answered nor given up."""
        return sum(self._rows.values())

    def check_room(self) -> None:
        """Raise OverloadedError when even one row more of a large call would be too many."""
        self._check_room(1, small=False)

    def count(self) -> None:
        """Count the runs that are not counted yet. On the event loop."""
        while self._waited:
            self._metrics.queue.observe(self._waited.pop())
        while self._ran:
            arrays, rows, requests, seconds = self._ran.pop()
            if rows > self._inline_rows and seconds < self._limits.inline_seconds:
                self._inline_rows = rows  # row_seconds was an overestimate
            self._metrics.ran(arrays, rows=rows, requests=requests, seconds=seconds)

    def _check_room(self, rows: int, *, small: bool) -> None:
        """Small calls do not wait behind large ones, so these do not keep them out."""
        if self._rows[small] + rows > self._limits.queued_rows:
            raise OverloadedError(
                f"overloaded: {self._rows[small]} rows wait for this model, at most {self._limits.queued_rows} may "
                "(setting max_queued_rows); try again later"
            )

    def _flush(self) -> None:
        """Run the small calls, once a turn of the event loop; where it brought more and a run has room, look again."""
        loop = asyncio.get_running_loop()
        came, self._seen, self._turns = len(self._ready) - self._seen, len(self._ready), self._turns + 1
        ready_rows = self._rows[True]  # small calls wait nowhere else
        if came and self._turns <= _MOST_TURNS and ready_rows < self._inline_rows:
            loop.call_soon(self._flush)
            return
        calls, self._ready = _shared(self._ready, rows=self._inline_rows)
        if self._ready:
            loop.call_soon(self._flush)
        self._seen, self._turns = len(self._ready), _MOST_TURNS
        calls = self._starting(calls, loop)
        if calls:
            self._answer(calls, self._attempt(calls))

    def _enqueue(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        """Let a call wait for the thread. It is refused the moment its deadline passes, not when its turn would have come."""
        with self._lock:
            self._queue.append(call)
        call.timer = loop.call_later(call.deadline - call.came, self._expire, call)
        loop.call_soon(self._run_queue)  # not now: others of this turn may share its run

    def _expire(self, call: Call) -> None:
        if self._leave_queue(call):
            self._end(call, DeadlineError(TOO_LATE))

    def _leave_queue(self, call: Call) -> bool:
        """Take the call out of the thread's queue; whether it was there."""
        with self._lock:
            waits = call in self._queue
            if waits:
                self._queue.remove(call)
        return waits

    def _starting(self, calls: list[Call], loop: asyncio.AbstractEventLoop) -> list[Call]:
        """The calls whose caller waits; those past their deadline will hear of it. In any thread."""
        now = time.perf_counter()
        wanted = []
        for call in calls:
            if call.over:
                continue
            if now > call.deadline:
                loop.call_soon_threadsafe(self._end, call, DeadlineError(TOO_LATE))
            else:
                self._waited.append(now - call.came)
                wanted.append(call)
        return wanted

    def _end(self, call: Call, result: Part | Exception | None = None) -> None:
        """The end of a call. result: what its caller gets; None where the caller has gone."""
        if call.over:
            return
        call.over = True
        self._rows[call.small] -= len(call.x)
        if call.timer is not None:
            call.timer.cancel()
        if result is not None:
            try:
                call.done(result)
            except Exception:  # the others of its run wait
                logger.exception("handing over an answer failed: this is a bug")

    def _run_queue(self) -> None:
        """Let the thread run the queue, unless it already does."""
        if self._queue and not self._in_thread:
            self._in_thread = True
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, self._run_until_empty, loop).add_done_callback(self._thread_ended)

    def _run_until_empty(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: one run after the other, for a while. The event loop, busy with answers, holds up none of them."""
        end = time.perf_counter() + _THREAD_SECONDS
        while time.perf_counter() < end:
            with self._lock:
                if not self._queue:
                    return
                calls, self._queue = _shared(self._queue, rows=self._limits.run_rows)
            calls = self._starting(calls, loop)
            if calls:
                loop.call_soon_threadsafe(self._answer, calls, self._attempt(calls))

    def _thread_ended(self, ended: asyncio.Future[None]) -> None:
        self._in_thread = False
        self._run_queue()  # what has come since the thread looked last
        ended.result()

    def _attempt(self, calls: list[Call]) -> list[Part | Exception]:
        """The outputs of each call, or why there are none."""
        try:
            return self._outputs(calls)
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes to the callers
            if len(calls) == 1:
                return [error]
            return [result for call in calls for result in self._attempt([call])]

    def _outputs(self, calls: list[Call]) -> list[Part | Exception]:
        first = calls[0]
        coverage = np.array(first.coverage, dtype=np.float64)
        x = first.x if len(calls) == 1 else np.concatenate([call.x for call in calls])
        step = self._limits.run_rows
        if len(x) <= step:
            arrays = self._timed_run(x, coverage, first.outputs, requests=len(calls))
        else:
            parts = [
                self._timed_run(x[start : start + step], coverage, first.outputs, requests=len(calls))
                for start in range(0, len(x), step)
            ]
            arrays = {name: np.concatenate([part[name] for part in parts]) for name in first.outputs}
        ends = list(accumulate(len(call.x) for call in calls))
        shared: dict[str, Any] = {}
        return [Part(arrays, start, end, shared) for start, end in zip([0, *ends], ends, strict=False)]

    def _timed_run(self, x: Values, coverage: Values, outputs: Sequence[str], *, requests: int) -> Arrays:
        start = time.perf_counter()
        arrays = self._run(x, coverage, outputs)
        self._ran.append((arrays, len(x), requests, time.perf_counter() - start))
        return arrays

    def _answer(self, calls: Iterable[Call], results: Iterable[Part | Exception]) -> None:
        for call, result in zip(calls, results, strict=True):
            self._end(call, result)
        asyncio.get_running_loop().call_soon(self.count)  # once the answers are sent


def _shared(calls: list[Call], *, rows: int) -> tuple[list[Call], list[Call]]:
    """The first call with those that can share its run, up to `rows` rows in all; and the others, in order."""
    first = calls[0]
    if len(calls) == 1:
        return calls, []
    chosen, others, total = [first], [], len(first.x)
    for call in calls[1:_LOOKED_AT]:
        if total + len(call.x) <= rows and call.joins(first):
            chosen.append(call)
            total += len(call.x)
        else:
            others.append(call)
    return chosen, others + calls[_LOOKED_AT:]
