"""Any history of requests, against a model of the scheduler that fits on a page.

A machine makes up histories: requests of several rows, shapes, priorities, deadlines,
cancelled, failed, poisoned, short of memory, past the queue's bound. The only instance
is held inside each run until the history lets it go, so what runs next, and together,
is known exactly: the rows of every run, every answer and every counter must be what
`Scheduler` says. Nothing depends on time. It has one run at a time, or several in
flight, of which the oldest is held.

PYASYNCML_HISTORIES=5000 tries that many instead of the few hundred that always are the
same.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import brief
import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.testing import echo

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

PATIENCE = 10.0  # seconds, for what must come
WIDE = 10**9

# --- the scheduler, once more: simple and slow ---


@dataclass(eq=False)
class Request:
    number: int  # what its rows are filled with
    group: int | None  # its width; None: runs alone
    rows: int
    priority: int
    deadline: float
    seen_before: int = 0  # runs that had begun when it was admitted
    state: str = "waiting"  # or "running", "done"
    given_up: bool = False
    outcome: str | None = None
    rows_done: int = 0

    @property
    def urgency(self) -> tuple[float, ...]:
        return -self.priority, self.deadline, self.number


Slice = tuple[Request, int, int]


def rows_of(slices: list[Slice]) -> int:
    return sum(to - at for _, at, to in slices)


@dataclass(eq=False)
class Flight:
    slices: list[Slice]
    company: bool  # another was up with it
    error: str | None = None

    @property
    def rows(self) -> int:
        return rows_of(self.slices)


#: What is held (None: nothing), and whether what is submitted now begins at once. Sent
#: back: whether the run was let go.
Work = Generator[tuple[list[Slice] | None, bool], bool, None]


@dataclass
class Cap:
    """How many rows fit into memory, as far as is known."""

    rows: float = math.inf
    did_not_fit: float = math.inf
    good: int = 0

    def failed(self, rows: int) -> None:
        if rows // 2 < self.rows:
            self.rows, self.did_not_fit = rows // 2, rows
        self.good = 0

    def served(self, rows: int) -> None:
        if self.rows == math.inf or rows < self.rows - self.rows // 4:
            return
        self.good += 1
        if self.good == 64:
            self.good = 0
            self.rows += 1 if self.rows < 4 else self.rows // 4
            if self.rows >= self.did_not_fit:
                self.rows = math.inf


@dataclass
class Scheduler:
    max_rows: int  # of a run
    bound: int  # of the queue
    when_full: str
    admitted: list[Request] = field(default_factory=list)
    parked: list[Request] = field(default_factory=list)
    taken: int = 0
    closed: bool = False
    seen: list[int] = field(default_factory=list)  # the rows of each run
    caps: dict[int | None, Cap] = field(default_factory=dict)
    verdicts: int = 0  # runs that have got through the gate
    count: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    # What goes wrong.
    failures: int = 0
    memory: bool = False
    poison: int | None = None
    most: int = WIDE

    # The queue.

    def rows(self) -> int:
        return sum(r.rows for r in self.admitted + self.parked)

    def submit(self, request: Request) -> None:
        fits = self.rows() + request.rows <= self.bound
        if self.when_full == "wait":
            self.parked.append(request)
            self.admit()
        elif fits or (self.when_full == "drop_lowest" and request.rows <= self.bound):
            self.admitted.append(request)
            request.seen_before = self.taken
        else:
            self.count["rejected"] += 1
            self.answer(request, "full")
            return
        self.count["submitted"] += 1
        while self.when_full == "drop_lowest" and self.rows() > self.bound:
            least = min(self.admitted, key=lambda r: (r.priority, -r.number))
            self.admitted.remove(least)
            self.count["rejected"] += 1
            self.answer(least, "dropped")

    def admit(self) -> None:
        while self.parked:
            rows = sum(r.rows for r in self.admitted)
            if self.admitted and rows + self.parked[0].rows > self.bound:
                break
            self.admitted.append(self.parked.pop(0))
            self.admitted[-1].seen_before = self.taken

    def cancel(self, request: Request) -> None:
        self.count["cancelled"] += 1
        if request.state == "running":
            request.given_up = True
            request.outcome = "cancelled"
            return
        where = self.admitted if request in self.admitted else self.parked
        where.remove(request)
        self.answer(request, "cancelled")
        self.admit()

    def answer(self, request: Request, outcome: str) -> None:
        request.state = "done"
        request.outcome = request.outcome or outcome

    # What runs next.

    def leaders(self, busy: bool) -> list[Request]:
        """Those that may lead a run now: beside another (`busy`) where one is full."""
        if not busy or self.closed:
            return self.admitted
        rows: Counter[int | None] = Counter()
        for r in self.admitted:
            rows[r.group] += r.rows
        full = (g is None or n >= self.rows_of_a_run(g) for g, n in rows.items())
        return self.admitted if any(full) else []

    def leader(self, busy: bool) -> Request:
        oldest = self.admitted[0]
        if self.taken % 8 == 7 and self.taken - oldest.seen_before >= 64:
            return oldest
        return min(self.leaders(busy), key=lambda r: r.urgency)

    def rows_of_a_run(self, group: int | None) -> int:
        cap = self.caps.setdefault(group, Cap())
        return int(min(self.max_rows, cap.rows))

    def take(self, busy: bool = False) -> list[Request]:
        leader = self.leader(busy)
        batch = [leader]
        why = "alone"
        if leader.group is not None:
            most = self.rows_of_a_run(leader.group)
            rows = leader.rows
            why = "drained" if rows < most else "full"
            others = [r for r in self.admitted if r.group == leader.group]
            others.remove(leader)
            for other in sorted(others, key=lambda r: r.urgency):
                if rows + other.rows > most or rows >= most:
                    why = "full"
                    break
                batch.append(other)
                rows += other.rows
                why = "drained" if rows < most else "full"
        for request in batch:
            self.admitted.remove(request)
            request.state = "running"
        self.taken += 1
        self.releases[why] += 1
        self.admit()
        return batch

    # The worker: it stops at each run, and goes on when that is let go.

    def work(self) -> Work:
        while True:
            if not self.admitted:
                yield None, True
                continue
            yield from self.serve(self.slices(self.take()))

    def slices(self, batch: list[Request]) -> list[Slice]:
        return [(request, 0, request.rows) for request in batch]

    def serve(self, slices: list[Slice]) -> Work:
        first = slices[0][0]
        if len(slices) == 1 and first.rows > self.rows_of_a_run(first.group):
            at = 0
            while at < first.rows:
                to = min(at + self.rows_of_a_run(first.group), first.rows)
                yield from self.run([(first, at, to)])
                at = to
        else:
            yield from self.run(slices)

    # The same with runs in flight.

    def fly(self, depth: int) -> Work:
        up: deque[Flight] = deque()
        depth = min(depth, 2) if self.max_rows > 1 else depth
        while True:
            while len(up) < depth and self.leaders(bool(up)):
                flight = Flight(self.slices(self.take(bool(up))), bool(up))
                if flight.rows > self.rows_of_a_run(flight.slices[0][0].group):
                    yield from self.land_all(up)
                    yield from self.serve(flight.slices)
                    continue
                if up:
                    up[0].company = True
                up.append(flight)
                self.seen.append(flight.rows)
            if (yield (up[0].slices if up else None), len(up) < depth):
                flight = up.popleft()
                if self.land(flight):
                    yield from self.land_all(up, flight)

    def land_all(self, up: deque[Flight], *failed: Flight) -> Work:
        """They land in order; then what has failed is run again, in order."""
        again = list(failed)
        while up:
            yield up[0].slices, False
            flight = up.popleft()
            if self.land(flight):
                again.append(flight)
        for flight in again:
            if flight.rows == 1:
                yield from self.run(flight.slices)
            else:
                yield from self.run_again(flight.slices, flight.error)

    def land(self, flight: Flight) -> bool:
        """Whether it is to be run again."""
        flight.error = error = self.end_run(flight.slices)
        if error is None:
            return False
        lacks = error == "memory" and (flight.rows > 1 or flight.company)
        if lacks or len(flight.slices) > 1:
            return True
        self.fail(flight.slices[0][0], error)
        return False

    # One run.

    def run(self, slices: list[Slice]) -> Work:
        for request, _, _ in slices:
            if request.given_up and request.state == "running":
                self.answer(request, "cancelled")
        slices = [part for part in slices if part[0].state == "running"]
        if not slices:
            return
        rows = rows_of(slices)
        most = self.rows_of_a_run(slices[0][0].group)
        if rows > most:
            half = -(-rows // most) // 2 * most
            yield from self.halves(self.split(slices, half))
            return
        self.seen.append(rows)
        yield slices, False
        error = self.end_run(slices)
        if error is not None:
            yield from self.run_again(slices, error)

    def end_run(self, slices: list[Slice]) -> str | None:
        rows = rows_of(slices)
        self.count["runs"] += 1
        self.count["rows"] += rows
        self.count["requests"] += len(slices)
        error = self.verdict(slices, rows)
        if error is None:
            self.caps.setdefault(slices[0][0].group, Cap()).served(rows)
            for request, at, to in slices:
                request.rows_done += to - at
                if request.rows_done == request.rows:
                    self.count["completed"] += 1
                    self.answer(request, "served")
        return error

    def run_again(self, slices: list[Slice], error: str) -> Work:
        rows = rows_of(slices)
        if error == "memory" and rows > 1:
            self.caps.setdefault(slices[0][0].group, Cap()).failed(rows)
            yield from self.halves(self.split(slices, rows // 2))
        elif len(slices) > 1:
            middle = len(slices) // 2
            yield from self.halves((slices[:middle], slices[middle:]))
        else:
            self.fail(slices[0][0], error)

    def fail(self, request: Request, error: str) -> None:
        self.count["failed"] += 1
        self.answer(request, error)

    def halves(self, parts: tuple[list[Slice], list[Slice]]) -> Work:
        for part in parts:
            yield from self.run(part)

    def split(self, slices: list[Slice], half: int) -> tuple[list[Slice], list[Slice]]:
        first, second = [], []
        for request, at, to in slices:
            middle = min(to, at + half)
            half -= middle - at
            if middle > at:
                first.append((request, at, middle))
            if to > middle:
                second.append((request, middle, to))
        return first, second

    def verdict(self, slices: list[Slice], rows: int) -> str | None:
        self.verdicts += 1
        if self.failures > 0:
            self.failures -= 1
            return "memory" if self.memory else "scripted"
        if rows > self.most:
            return "memory"
        numbers = {r.number for r, _, _ in slices if r.group is not None}
        return "poisoned" if self.poison in numbers else None

    def close(self, *, drain: bool) -> None:
        self.closed = True
        for request in [] if drain else self.admitted + self.parked:
            self.answer(request, "closed")
        if not drain:
            self.admitted, self.parked = [], []


# --- histories ---

requests = st.tuples(
    st.sampled_from([2, 2, 3, None]),  # the group
    st.sampled_from([1, 1, 2, 3, 9]),  # rows
    st.integers(-1, 1),  # priority
    st.sampled_from([None, None, 3, 2, 1, 0]),  # the deadline: far away, but for 0
)

ERRORS: dict[str, tuple[type[BaseException], str]] = {
    "full": (ml.QueueFull, "the queue of model 'echo' is full"),
    "dropped": (ml.QueueFull, "dropped for a request of higher or equal priority"),
    "cancelled": (asyncio.CancelledError, ""),
    "expired": (ml.DeadlineExceeded, "timeout=0 leaves no time"),
    "scripted": (ml.BackendError, "scripted failure"),
    "memory": (ml.OutOfMemory, ""),
    "poisoned": (ml.BackendError, "the input holds"),
    "closed": (ml.ModelClosed, ""),
}


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model: Any = None
        self.sound = True  # nothing has failed

    def wait(self, main: Any) -> Any:
        self.sound = False
        result = self.loop.run_until_complete(asyncio.wait_for(main, PATIENCE))
        self.sound = True
        return result

    @initialize(
        max_rows=st.integers(1, 8),
        bound=st.sampled_from([6, 1, 20, WIDE]),
        when_full=st.sampled_from(["wait", "reject", "drop_lowest"]),
        drain=st.booleans(),
        in_flight=st.sampled_from([0, 0, 2, 3]),
        polled=st.booleans(),
    )
    def begin(
        self,
        max_rows: int,
        bound: int,
        when_full: Any,
        drain: bool,
        in_flight: int,
        polled: bool,
    ) -> None:
        self.drain = drain
        if in_flight and when_full == "drop_lowest":
            # Until it has dropped another, a request may fill a batch with it.
            when_full = "reject"
        self.expected = Scheduler(max_rows, bound, when_full)
        self.worker = (
            self.expected.fly(in_flight) if in_flight else self.expected.work()
        )
        self.running, self.takes = next(self.worker)
        self.in_step = True  # the worker is where `running` says
        # Each with its input and its future; `asked` has those still to be checked.
        self.asked: list[tuple[Request, Any, Any]] = []
        self.answered: list[tuple[Request, Any, Any]] = []
        self.streams = 0
        self.model = self.wait(
            echo(
                batching=ml.Batching(max_rows),
                queue=ml.Queue(bound, when_full=when_full),
                delay=25e-6,  # so that the cost of every run is noted
                in_flight=in_flight,
                polled=polled,
            )
        )
        self.model.hold()

    # What happens.

    @rule(wanted=st.lists(requests, min_size=4, max_size=12))
    def ask(self, wanted: list[tuple[Any, ...]]) -> None:
        async def main() -> None:
            for group, rows, priority, deadline in wanted:
                await self.ask_one(group, rows, priority, deadline)

        self.wait(main())
        self.check()

    async def ask_one(
        self, group: int | None, rows: int, priority: int, deadline: int | None
    ) -> None:
        number = len(self.answered) + len(self.asked) + 1
        x = np.full((rows, group), number, np.float32) if group else str(number)
        request = Request(
            number,
            group,
            rows if group else 1,
            priority,
            # Of two that have as much time, the one that came later is later.
            math.inf if deadline is None else deadline,
        )
        timeout = None if deadline is None else 1000.0 * deadline
        future = self.model.infer(x, priority=priority, timeout=timeout)
        self.asked.append((request, x, future))
        if deadline == 0:
            self.expected.count["expired"] += 1
            self.expected.answer(request, "expired")
            return
        self.expected.submit(request)
        if self.takes and request.state == "waiting":
            await self.go_on(released=False)

    @rule(which=st.lists(st.integers(0, 30), min_size=1, max_size=6))
    def cancel(self, which: list[int]) -> None:
        async def main() -> None:
            for number in which:
                open_ = [(r, f) for r, _, f in self.asked if r.outcome is None]
                if open_:
                    await self.cancel_one(*open_[number % len(open_)])

        self.wait(main())
        self.check()

    async def cancel_one(self, request: Request, future: Any) -> None:
        assert future.cancel()
        self.expected.cancel(request)
        if self.takes:
            await self.go_on(released=False)  # who was parked may fill a batch

    @precondition(lambda self: self.expected.parked)
    @rule()
    def cancel_the_first_that_is_parked(self) -> None:
        request = self.expected.parked[0]
        future = next(f for r, _, f in self.asked if r is request)
        self.wait(self.cancel_one(request, future))
        self.check()

    @precondition(lambda self: self.running)
    @rule(times=st.integers(1, 4))
    def release(self, times: int) -> None:
        async def main() -> None:
            for _ in range(times):
                if self.running:
                    await self.let_go()

        self.wait(main())
        self.check()

    @precondition(lambda self: self.expected.admitted and self.streams < 2)
    @rule()
    def many_more_urgent_ones_pass(self) -> None:
        """So many that who waits gets old."""
        self.streams += 1

        async def main() -> None:
            for _ in range(20):
                for _ in range(4):
                    await self.ask_one(None, 1, 5, None)
                for _ in range(4):
                    if self.running:
                        await self.let_go()

        self.wait(main())
        self.check()

    @rule(
        what=st.sampled_from(["fail", "memory", "poison", "limit"]),
        number=st.integers(0, 9),
    )
    def spoil(self, what: str, number: int) -> None:
        expected = self.expected
        if what == "poison":
            open_ = [r.number for r, _, _ in self.asked if r.outcome is None]
            expected.poison = open_[number % len(open_)] if open_ else None
            self.model.poison(expected.poison)
        elif what == "limit":
            expected.most = number or WIDE
            self.model.limit_rows(number)
        else:
            expected.failures, expected.memory = number, what == "memory"
            self.model.fail(number, memory=expected.memory)

    async def let_go(self) -> None:
        self.model.release(1)
        await self.go_on(released=True)

    async def go_on(self, *, released: bool) -> None:
        """The run that was let go ends, or there is room for another: what begins?"""
        before, begun = self.running, len(self.expected.seen)
        self.running, self.takes = self.worker.send(released)
        if len(self.expected.seen) > begun:
            # Answers of the last run are delivered before this.
            await self.model.begun(len(self.expected.seen))
            self.in_step = True
        elif released:
            assert before
            ran = {request for request, _, _ in before if request.state == "done"}
            futures = [f for r, _, f in self.asked if r in ran and not f.cancelled()]
            if futures:
                await asyncio.wait(futures)
            self.in_step = bool(futures)
            # Also where nobody waits for it: what is submitted next isn't beside it.
            while self.model.stats().runs < self.expected.count["runs"]:
                await asyncio.sleep(0)
        # What comes next isn't part of what was taken; what is spoilt next isn't for
        # this run.
        taken = sum(self.expected.releases.values())
        while sum(self.model.stats().releases.values()) < taken:
            await asyncio.sleep(0)
        while self.model._script.seen()[1] < self.expected.verdicts:
            await asyncio.sleep(0)

    # What must hold.

    def check(self) -> None:
        expected, model = self.expected, self.model
        done = [asked for asked in self.asked if asked[0].outcome is not None]
        if done:
            self.wait(asyncio.wait([future for _, _, future in done]))
        if not self.in_step:
            return
        self.sound = False
        assert model.seen == expected.seen
        for asked in done:
            self.check_outcome(*asked)
        self.answered += done
        self.asked = [asked for asked in self.asked if asked[0].outcome is None]
        for request, _, future in self.asked:
            assert not future.done(), request
        stats = model.stats()
        for name in (
            *("submitted", "completed", "failed", "cancelled", "expired", "rejected"),
            *("runs", "rows", "requests"),
        ):
            assert getattr(stats, name) == expected.count[name], name
        assert stats.waiting == expected.rows()
        assert stats.running == bool(self.running)
        reasons = {why: n for why, n in stats.releases.items() if n}
        assert reasons == expected.releases
        self.sound = True

    def check_outcome(self, request: Request, x: Any, future: Any) -> None:
        if request.outcome == "cancelled":
            assert future.cancelled(), request
            return
        if request.outcome == "served":
            assert np.array_equal(future.result(), x), request
            return
        kind, message = ERRORS[request.outcome or ""]
        error = future.exception()
        assert type(error) is kind, (request, error)
        assert message in str(error), (request, error)

    # The end.

    def end(self) -> None:
        async def main() -> None:
            self.expected.close(drain=self.drain)
            closing = asyncio.ensure_future(self.model.close(drain=self.drain))
            await asyncio.sleep(0)
            if self.takes:
                await self.go_on(released=False)  # no batch waits for more
            while self.running:
                await self.let_go()
            self.model.release()
            await closing
            with pytest.raises(ml.ModelClosed):
                self.model.infer(1)
            self.expected.count["rejected"] += 1

        self.wait(main())
        self.in_step = True
        self.check()
        assert not self.asked
        assert all(request.state == "done" for request, _, _ in self.answered)
        for asked in self.answered:
            self.check_outcome(*asked)  # still: nothing is answered twice

    def teardown(self) -> None:
        async def give_up() -> None:
            self.model.release()
            await self.model.close(drain=False)

        if self.model is not None and self.sound:
            self.end()
        elif self.model is not None:
            self.loop.run_until_complete(give_up())
            for _, _, future in self.asked:
                _ = future.cancelled() or future.exception()
        self.loop.close()


@pytest.mark.timeout(900)  # shrinking what fails takes long
def test_any_history_runs_as_the_model_of_the_scheduler_says() -> None:
    histories = int(os.environ.get("PYASYNCML_HISTORIES", "0"))
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=histories or brief.times(300, 100),
            stateful_step_count=20,
            derandomize=histories == 0,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
