"""Code that comes back into a future while the future is busy, and what must hold then:
no crash, no lost or doubled callback, no reference kept or dropped once too often.

CPython's own Future had these holes: cpython#125966 and #125984 (`__eq__` and
`call_soon` that change the callbacks meanwhile), #126033 (re-entering through
`__getattribute__`), #126083 (`__init__` again, from inside), #126138 (fields that are
cleared while something still walks over them).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyasyncml._core import Future

pytestmark = pytest.mark.timeout(120)


class Boom(Exception):
    pass


class Loop:
    """Keeps what it is given to call, and calls it when told."""

    def __init__(self) -> None:
        self.scheduled: list[tuple[Any, Any, Any]] = []
        self.reports: list[dict[str, Any]] = []

    def get_debug(self) -> bool:
        return False

    def call_soon(self, function: Any, *args: Any, context: Any = None) -> None:
        self.scheduled.append((function, args, context))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.reports.append(context)

    def functions(self) -> list[Any]:
        return [function for function, _, _ in self.scheduled]


class Equal:
    """A callback that does something when it is compared."""

    def __init__(self, act: Callable[[], object], answer: bool = True) -> None:
        self.act, self.answer = act, answer

    def __eq__(self, other: object) -> bool:
        self.act()
        return self.answer

    __hash__ = None

    def __call__(self, future: Any) -> None:
        raise AssertionError("nobody calls it")


class Dying:
    """Does something when it goes."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __call__(self, future: Any) -> None:
        pass

    def __del__(self) -> None:
        self.act()


def noop(future: Any) -> None:
    pass


def callbacks(future: Any) -> list[Any]:
    return [function for function, _ in future._callbacks or ()]


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture(autouse=True)
def nothing_is_unraisable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    caught: list[Any] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda info: caught.append(info.exc_value)
    )
    yield
    gc.collect()
    assert caught == []


# --- __eq__ ---


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize(
    "what",
    ["remove", "remove_all", "cancel", "set_result", "init", "add", "collect", "fail"],
)
def test_eq_that_changes_the_callbacks(
    loop: Loop, before: int, after: int, answer: bool, what: str
) -> None:
    future = Future(loop=loop)
    once = [None]

    def added(future: Any) -> None:
        pass

    def act() -> None:
        if not once:
            return
        once.clear()
        if what == "remove":
            future.remove_done_callback(evil)
        elif what == "remove_all":
            for function in callbacks(future):
                future.remove_done_callback(function)
        elif what == "cancel":
            future.cancel()
        elif what == "set_result":
            future.set_result(1)
        elif what == "init":
            future.__init__(loop=loop)
        elif what == "add":
            for _ in range(20):
                future.add_done_callback(added)
        elif what == "collect":
            gc.collect()
        else:
            raise Boom("from __eq__")

    def target(future: Any) -> None:
        pass

    others = [lambda f, i=i: None for i in range(before + after)]
    evil = Equal(act, answer)
    for function in [*others[:before], evil, target, *others[before:]]:
        future.add_done_callback(function)
    if what == "fail":
        with pytest.raises(Boom):
            future.remove_done_callback(target)
        assert len(callbacks(future)) == before + after + 2
        return
    removed = future.remove_done_callback(target)
    left = callbacks(future)
    if what == "add":
        assert left.count(added) == 20, "a callback added meanwhile was lost"
    if what in ("add", "collect"):
        assert removed == 1 + answer
        assert [f for f in left if f is not added and f is not evil] == others
    if what in ("cancel", "set_result", "init", "remove_all"):
        assert left == [], "a callback came back"
    if what in ("cancel", "set_result"):
        # Scheduled once each, save one that was removed before it began.
        assert len(loop.scheduled) == before + after + 2
        assert removed == 0
    if what == "init":
        future.add_done_callback(noop)
        future.set_result(2)
        assert loop.functions() == [noop]


def test_eq_that_removes_recursively(loop: Loop) -> None:
    future = Future(loop=loop)
    depth = [0]

    def act() -> None:
        if depth[0] < 30:
            depth[0] += 1
            future.remove_done_callback(noop)

    for _ in range(10):
        future.add_done_callback(Equal(act))
        future.add_done_callback(noop)
    assert future.remove_done_callback(noop) >= 0
    assert callbacks(future) == []


def test_eq_that_adds_for_ever_ends(loop: Loop) -> None:
    future = Future(loop=loop)

    def add() -> None:
        future.add_done_callback(Equal(add))

    for _ in range(3):
        future.add_done_callback(Equal(add, answer=False))
    assert future.remove_done_callback(noop) == 0
    assert len(callbacks(future)) == 6


def test_callback_that_dies_when_it_is_removed(loop: Loop) -> None:
    future = Future(loop=loop)
    seen: list[Any] = []

    class Comparing(Dying):
        def __eq__(self, other: object) -> bool:
            return other == "dying"

        __hash__ = None

    for _ in range(5):
        future.add_done_callback(Comparing(lambda: seen.append(len(callbacks(future)))))
        future.add_done_callback(noop)
    assert future.remove_done_callback("dying") == 5
    # The first stands apart and goes first; the others go when all are out.
    assert seen == [9, 5, 5, 5, 5]
    assert callbacks(future) == [noop] * 5


# --- the loop ---


class Evil(Loop):
    """Does something whenever its call_soon is looked up, and whenever it is called."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act, self.busy = act, False

    def __getattribute__(self, name: str) -> Any:
        if name == "call_soon" and not self.busy:
            self.busy = True
            try:
                self.act()
            finally:
                self.busy = False
        return super().__getattribute__(name)


@pytest.mark.parametrize("settle", ["set_result", "set_exception", "cancel"])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(
    "what", ["init", "other loop", "remove", "add", "settle", "collect", "callbacks"]
)
def test_loop_that_comes_back_while_callbacks_are_scheduled(
    settle: str, count: int, what: str
) -> None:
    other = Loop()

    def act() -> None:
        if what == "init":
            future.__init__(loop=loop)
        elif what == "other loop":
            future.__init__(loop=other)
        elif what == "remove":
            assert future.remove_done_callback(noop) == 0
        elif what == "add":
            future.add_done_callback(noop)
        elif what == "settle" and future.done():
            assert not future.cancel()
            with pytest.raises(asyncio.InvalidStateError):
                future.set_result(2)
        elif what == "callbacks":
            assert future._callbacks is None
        gc.collect()

    loop = Evil(act)
    future = Future(loop=loop)
    functions = [lambda f, i=i: None for i in range(count)]
    for function in functions:
        future.add_done_callback(function)
    getattr(future, settle)(*() if settle == "cancel" else (Boom("x"),))
    scheduled = loop.functions() + other.functions()
    assert [f for f in scheduled if f is not noop] == functions
    if what == "add":
        assert scheduled.count(noop) == count
    if future.done() and not future.cancelled():
        future.exception()


def test_loop_that_fails_half_way(loop: Loop) -> None:
    class Failing(Loop):
        def call_soon(self, function: Any, *args: Any, context: Any = None) -> None:
            if len(self.scheduled) == 2:
                raise Boom("no more")
            super().call_soon(function, *args, context=context)

    failing = Failing()
    future = Future(loop=failing)
    references = []
    for _ in range(5):
        function = Dying(lambda: None)
        references.append(weakref.ref(function))
        future.add_done_callback(function)
    del function
    with pytest.raises(Boom):
        future.set_exception(ValueError("v"))
    assert future.done()
    assert not future._log_traceback
    assert len(failing.scheduled) == 2
    failing.scheduled.clear()
    assert [reference() for reference in references] == [None] * 5


def test_get_debug_that_comes_back(loop: Loop) -> None:
    class Debug(Loop):
        def get_debug(self) -> bool:
            if not self.scheduled:
                self.scheduled.append((None, None, None))
                for future in gc.get_objects():
                    if type(future) is Future and future._loop is self:
                        future.__init__(loop=self)
                        future.set_result(1)
            return True

    future = Future(loop=Debug())
    assert future.done()

    class Refusing(Loop):
        def get_debug(self) -> bool:
            raise Boom("refused")

    with pytest.raises(Boom):
        Future(loop=Refusing())

    class Unclear(Loop):
        def get_debug(self) -> Any:
            class Neither:
                def __bool__(self) -> bool:
                    raise Boom("neither")

            return Neither()

    with pytest.raises(Boom):
        Future(loop=Unclear())


# --- destructors ---


@pytest.mark.parametrize(
    "where", ["result", "exception", "cancel_message", "callback", "context"]
)
@pytest.mark.parametrize("what", ["init", "settle", "look", "add", "remove"])
def test_init_again_drops_something_that_comes_back(
    loop: Loop, where: str, what: str
) -> None:
    future = Future(loop=loop)
    ran = []

    def act() -> None:
        ran.append(what)
        if what == "init":
            future.__init__(loop=loop)
        elif what == "settle":
            with pytest.raises(RuntimeError):
                future.set_result(1)  # no loop at that moment
        elif what == "look":
            for name in ("result", "exception", "__repr__"):
                with pytest.raises((asyncio.InvalidStateError, RuntimeError)):
                    getattr(future, name)()
            assert not future.done()
        elif what == "add":
            with pytest.raises(RuntimeError):
                future.add_done_callback(noop)
        else:
            with pytest.raises(RuntimeError):
                future.remove_done_callback(noop)

    if where == "result":
        future.set_result(Dying(act))
    elif where == "exception":
        error = Boom("e")
        error.dying = Dying(act)
        future.set_exception(error)
        del error
    elif where == "cancel_message":
        future.cancel(Dying(act))
    elif where == "callback":
        future.add_done_callback(Dying(act))
    else:
        variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
        context = contextvars.Context()
        context.run(variable.set, Dying(act))
        future.add_done_callback(noop, context=context)
        del context
    future.__init__(loop=loop)
    gc.collect()
    assert ran == [what]
    assert not future.done()
    future.set_result("usable")
    assert future.result() == "usable"


def test_callback_that_drops_the_last_reference() -> None:
    loop = asyncio.new_event_loop()
    holder = []
    gone: list[str] = []

    def drop(future: Any) -> None:
        holder.clear()

    future = Future(loop=loop)
    weakref.finalize(future, gone.append, "gone")
    future.add_done_callback(drop)
    future.add_done_callback(lambda f: gone.append("called"))
    holder.append(future)
    future.set_result(1)
    del future
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert gone == ["called", "gone"]


def test_exception_class_that_settles_the_future_when_called(loop: Loop) -> None:
    future = Future(loop=loop)

    class Settling(Exception):
        def __init__(self) -> None:
            future.set_result("first")

    with pytest.raises(asyncio.InvalidStateError):
        future.set_exception(Settling)
    assert future.result() == "first"


def test_long_chains_are_freed_without_recursion(loop: Loop) -> None:
    for link in ("result", "callback", "iterator"):
        future = Future(loop=loop)
        for _ in range(100_000):
            after = Future(loop=loop)
            if link == "result":
                after.set_result(future)
            elif link == "callback":
                after.add_done_callback(future)
            else:
                after.set_result(iter(future))
            future = after
        del future, after


def test_everything_under_a_collector_that_always_runs() -> None:
    async def main() -> None:
        for _ in range(20):
            futures = [Future() for _ in range(3)]
            for future in futures:
                for _ in range(6):
                    future.add_done_callback(noop)
                future.add_done_callback(future.remove_done_callback)
                future.cycle = future
            repr(futures)
            loop.call_soon(futures[0].set_result, futures[1])
            loop.call_soon(futures[1].set_exception, Boom("b"))
            loop.call_soon(futures[2].cancel)
            await asyncio.gather(*futures, return_exceptions=True)

    loop = asyncio.new_event_loop()
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        loop.run_until_complete(main())
    finally:
        gc.set_threshold(*threshold)
        loop.close()


# --- references ---


def allocated_blocks() -> int:
    """Without the names in the interpreter's cache of method lookups: those that
    nothing else holds go when new types take their places."""
    if hasattr(sys, "_clear_internal_caches"):
        sys._clear_internal_caches()
    else:
        sys._clear_type_cache()
    return sys.getallocatedblocks()


def assert_steady(counts: list[tuple[int, ...]], rounds: int) -> None:
    """What is leaked grows in every measure by `rounds` at least; the interpreter's own
    caches grow now and then."""
    for series in zip(*counts, strict=True):
        changes = [b - a for a, b in itertools.pairwise(series)]
        assert min(changes) < rounds // 2, counts
        assert max(changes) > -rounds // 2, counts


def lives() -> dict[str, Callable[[Any], object]]:
    def settle_and_look(loop: Any) -> None:
        future = Future(loop=loop)
        future.set_result([])
        future.result(), future.exception(), repr(future), future._callbacks

    def fail_and_look(loop: Any) -> None:
        future = Future(loop=loop)
        future.set_exception(Boom("x"))
        for _ in range(2):
            with pytest.raises(Boom):
                future.result()
        future.exception(), repr(future)

    def cancel_and_look(loop: Any) -> None:
        future = Future(loop=loop)
        future.cancel(object())
        with pytest.raises(asyncio.CancelledError):
            future.result()
        future._make_cancelled_error()
        future._cancel_message = object()

    def callbacks_come_and_go(loop: Any) -> None:
        future = Future(loop=loop)
        for _ in range(12):
            future.add_done_callback(noop)
            future.add_done_callback(print, context=contextvars.Context())
        future._callbacks, future.remove_done_callback(print)
        future.set_result(None)
        future.add_done_callback(noop)
        loop.scheduled.clear()

    def iterate(loop: Any) -> None:
        future = Future(loop=loop)
        iterator = iter(future)
        next(iterator)
        with pytest.raises(RuntimeError):
            next(iterator)
        future.set_result((1, object()))
        with pytest.raises(StopIteration):
            next(iterator)
        with pytest.raises(Boom):
            iter(Future(loop=loop)).throw(Boom)
        iter(Future(loop=loop)).close()

    def wrong_calls(loop: Any) -> None:
        future = Future(loop=loop)
        for call in (
            lambda: Future(1),
            lambda: future.cancel(1, 2),
            lambda: future.add_done_callback(1, x=object()),
            lambda: future.add_done_callback(),
            lambda: future.set_exception(object()),
            lambda: iter(future).throw(object()),
            lambda: setattr(future, "_log_traceback", True),
        ):
            with pytest.raises((TypeError, ValueError)):
                call()
        with contextlib.suppress(TypeError):  # only some versions refuse it
            future.set_exception(StopIteration(object()))
            future.exception()
        with pytest.raises(RuntimeError):
            Future.__new__(Future).set_result(1)

    def lost_exception(loop: Any) -> None:
        Future(loop=loop).set_exception(Boom("lost"))
        loop.reports.clear()

    def again(loop: Any) -> None:
        future = Future(loop=loop)
        for _ in range(3):
            future.add_done_callback(noop)
            future.own = object()
            future.set_exception(Boom("again"))
            future.exception()
            future.__init__(loop=loop)
        loop.scheduled.clear()

    def cycle(loop: Any) -> None:
        future = Future(loop=loop)
        future.own = future
        future.add_done_callback(future.add_done_callback)
        future.set_result(iter(future))
        loop.scheduled.clear()

    def subclass(loop: Any) -> None:
        class Sub(Future):
            pass

        Sub(loop=loop).set_result(Sub[int])

    return {function.__name__: function for name, function in locals().items()}


@pytest.mark.parametrize("life", list(lives()))
def test_a_thousand_lives_leave_nothing_behind(loop: Loop, life: str) -> None:
    live = lives()[life]

    def measure(rounds: int) -> tuple[int, int, int, int, int]:
        for _ in range(rounds):
            live(loop)
        gc.collect()
        return (
            allocated_blocks(),
            len(gc.get_objects()),
            sys.getrefcount(Future),
            sys.getrefcount(loop),
            sys.getrefcount(noop),
        )

    rounds = 50 if life == "subclass" else 500
    assert_steady([measure(rounds) for _ in range(5)], rounds)


@pytest.mark.parametrize("kind", ["c", "python"])
def test_awaiting_leaves_nothing_behind(kind: str) -> None:
    cls = asyncio.Task if kind == "c" else asyncio.tasks._PyTask
    loop = asyncio.new_event_loop()
    loop.set_task_factory(lambda loop, coro, **kwargs: cls(coro, loop=loop, **kwargs))

    async def wait(future: Any) -> object:
        return await future

    async def rounds(count: int) -> None:
        for _ in range(count):
            futures = [Future(loop=loop) for _ in range(4)]
            tasks = [loop.create_task(wait(future)) for future in futures]
            await asyncio.sleep(0)
            futures[0].set_result(object())
            futures[1].set_exception(Boom("x"))
            futures[2].cancel()
            tasks[3].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def measure() -> tuple[int, int, int]:
        loop.run_until_complete(rounds(300))
        gc.collect()
        return allocated_blocks(), len(gc.get_objects()), sys.getrefcount(Future)

    try:
        assert_steady([measure() for _ in range(5)], 300)
    finally:
        loop.close()
