"""`pyasyncml._core.Future` as an object: its states, attributes, arguments, iterator
and reports, all as those of `asyncio.Future`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import pickle
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from future_oracle import (
    Boom,
    Env,
    Scenario,
    assert_same_trace,
    error,
    everywhere,
    scenario_list,
)

from pyasyncml._core import Future

pytestmark = pytest.mark.timeout(60)

scenarios, scenario = scenario_list()


@everywhere(scenarios)
def test_is_what_asyncio_future_is(
    run: Scenario, kind: str, tasks: str, debug: bool
) -> None:
    assert_same_trace(run, kind, tasks, debug)


# --- states and errors ---


@scenario()
def every_state_answers_every_question(env: Env) -> None:
    def states() -> Iterator[Any]:
        yield env.cls.__new__(env.cls)
        yield env.future()
        for settle in ("set_result", "set_exception", "cancel"):
            future = env.future()
            getattr(future, settle)(Boom("x"))
            yield future
        for _ in range(2):
            waited = env.future()
            iter(waited).__next__()
            yield waited

    questions: list[Callable[[Any], object]] = [
        *(
            lambda f, n=n: getattr(f, n)()
            for n in (
                "result",
                "exception",
                "done",
                "cancelled",
                "get_loop",
                "cancel",
                "__iter__",
                "__await__",
                "__repr__",
                "_make_cancelled_error",
                "__del__",
            )
        ),
        *(
            lambda f, n=n: getattr(f, n)
            for n in (
                "_state",
                "_loop",
                "_callbacks",
                "_result",
                "_exception",
                "_log_traceback",
                "_source_traceback",
                "_cancel_message",
                "_asyncio_future_blocking",
                "__dict__",
                "__weakref__",
                "no_such_thing",
            )
        ),
        *(
            lambda f, n=n, v=v: setattr(f, n, v)
            for n in (
                "_state",
                "_loop",
                "_log_traceback",
                "_asyncio_future_blocking",
                "_cancel_message",
                "_result",
                "own",
            )
            for v in (False, True, None, "text")
        ),
        *(
            lambda f, n=n: delattr(f, n)
            for n in (
                "_state",
                "_log_traceback",
                "_asyncio_future_blocking",
                "_cancel_message",
                "own",
            )
        ),
        lambda f: f.set_result(1),
        lambda f: f.set_exception(Boom),
        lambda f: f.add_done_callback(print),
        lambda f: f.remove_done_callback(print),
        lambda f: setattr(f, "own", 1) or f.own,
        lambda f: next(iter(f)),
        lambda f: copy.copy(f),
        lambda f: copy.deepcopy(f),
        lambda f: pickle.dumps(f),
        lambda f: vars(f),
        lambda f: f == f,
        lambda f: f < f,
        lambda f: isinstance(hash(f), int),
        lambda f: bool(f),
        lambda f: f(),
        lambda f: len(f),
    ]
    count = len(list(states()))
    for index in range(count):
        for question in questions:
            future = list(states())[index]
            env.attempt(question, future)
            if future.done() and not future.cancelled():
                env.log(future._log_traceback)


@scenario()
def exceptions_that_can_and_cannot_be_set(env: Env) -> None:
    class Picky(Exception):
        def __init__(self, needed: int) -> None:
            super().__init__(needed)

    class NotOne(Exception):
        def __new__(cls) -> Any:
            return 7

    class Stop(StopIteration):
        pass

    for value in (
        Boom, Boom("i"), BaseException, KeyboardInterrupt(), StopIteration,
        StopIteration(3), Stop(4), Stop, StopAsyncIteration(), Picky, NotOne,
        3, None, int, "text",
        GeneratorExit,
        asyncio.CancelledError("as an exception"), asyncio.InvalidStateError,
    ):  # fmt: skip
        future = env.future()
        future.add_done_callback(env.callback("cb"))
        env.attempt(future.set_exception, value)
        env.log(future._state, future._log_traceback)
        env.attempt(future.exception)
        env.attempt(future.result)
        env.log(future)
    env.loop.call_soon(env.loop.stop)
    env.loop.run_forever()


@scenario()
def constructors_and_arguments(env: Env) -> None:
    future = env.future()
    for call in (
        lambda: env.cls(1), lambda: env.cls(x=1), lambda: env.cls(loop=3),
        lambda: env.cls(loop=env.loop, x=1), lambda: env.cls(loop=env.loop),
        lambda: future.cancel(1, 2), lambda: future.cancel(x=1),
        lambda: future.add_done_callback(), lambda: future.add_done_callback(fn=1),
        lambda: future.add_done_callback(1, 2),
        lambda: future.add_done_callback(1, x=2),
        lambda: future.result(1), lambda: future.__init__(1),
        lambda: env.cls.result(3), lambda: env.cls[int], lambda: env.cls[int, str],
        lambda: setattr(env.cls, "x", 1), lambda: future.cancel(msg="m"),
    ):  # fmt: skip
        env.attempt(call)
    env.log(future._cancel_message)


@scenario()
def without_a_loop_the_current_one_is_taken(env: Env) -> None:
    async def inside() -> None:
        env.log(
            env.cls().get_loop() is env.loop, env.cls(loop=None).get_loop() is env.loop
        )

    env.loop.run_until_complete(inside())
    asyncio.set_event_loop(env.loop)
    try:
        env.log(env.cls().get_loop() is env.loop)
    finally:
        asyncio.set_event_loop(None)
    env.attempt(env.cls)


@scenario()
def cancel_messages(env: Env) -> None:
    for message in ((), ("text",), (None,), (3,), (ValueError("v"),), (("a", "b"),)):
        future = env.future()
        env.log(future.cancel(*message), future._cancel_message)
        env.attempt(future.result)
        env.attempt(future.exception)
        env.log(error(future._make_cancelled_error()))
        env.log(future._make_cancelled_error() is future._make_cancelled_error())
        env.log(future.cancel("again"), future._cancel_message)
        future._cancel_message = "set by hand"
        env.attempt(future.result)
        try:
            raise KeyError("handled meanwhile")
        except KeyError:
            env.attempt(future.result)


@scenario()
def a_second_init_makes_a_new_future(env: Env) -> None:
    for settle in ("set_result", "set_exception", "cancel", ""):
        future = env.future()
        future.add_done_callback(env.callback("first life"))
        future.own = "kept"
        if settle:
            getattr(future, settle)(Boom("x"))
        future._asyncio_future_blocking = True
        future.__init__(loop=env.loop)
        env.log(future, future.own, future._callbacks, future._log_traceback)
        env.log(future._asyncio_future_blocking, future._cancel_message)
        future.add_done_callback(env.callback("second life"))
        future.set_result(2)
        env.log(future.result())
        env.loop.call_soon(env.loop.stop)
        env.loop.run_forever()


@scenario()
def reprs(env: Env) -> None:
    class Sub(env.cls):
        pass

    for cls in (env.cls, Sub, type("dotted.name", (env.cls,), {})):
        future = cls(loop=env.loop)
        env.log(future)
        for count in range(5):
            env.log(future)
            future.add_done_callback(print if count % 2 else env.log)
        future.set_result(future)
        env.log(future)
        long = cls(loop=env.loop)
        long.set_result("x" * 1000)
        env.log(long)
        failed = cls(loop=env.loop)
        failed.set_exception(Boom("r"))
        env.log(failed)
        failed.exception()
        cancelled = cls(loop=env.loop)
        cancelled.cancel("m")
        env.log(cancelled)


# --- the iterator ---


@scenario()
def iterators_by_hand(env: Env) -> None:
    future = env.future()
    iterator = iter(future)
    env.log(next(iterator) is future, future._asyncio_future_blocking)
    env.attempt(next, iterator)
    future._asyncio_future_blocking = False
    env.log(iterator.send("ignored") is future)
    future.set_result((1, 2))
    env.attempt(next, iterator)
    env.attempt(next, iterator, "exhausted")
    env.log(iter(iterator) is iterator)
    for value in (None, 3, (), (1,), ValueError("v"), StopIteration(5)):
        future = env.future()
        future.set_result(value)
        env.attempt(next, iter(future))
        env.attempt(future.__await__().send, None)
    for args in (
        (Boom,), (Boom, 3), (Boom("i"),), (Boom("i"), 4), (Boom, (1, 2)), (3,),
        (Boom, None, 4), (Boom, KeyError()), (Boom, Boom("same"), None),
        (StopIteration,), (int,), (Boom, None, None),
        (), (Boom, 1, None, 4),
    ):  # fmt: skip
        iterator = iter(env.future())
        if not 1 <= len(args) <= 3:
            with pytest.raises(TypeError):
                iterator.throw(*args)
        elif len(args) > 1 and sys.version_info >= (3, 12):
            with pytest.warns(DeprecationWarning, match="signature of throw"):
                env.attempt(iterator.throw, *args)
        else:
            env.attempt(iterator.throw, *args)
        env.attempt(next, iterator, "end")
    iterator = iter(env.future())
    env.log(iterator.close(), iterator.close())
    env.attempt(next, iterator, "closed")
    try:
        raise Boom("with a traceback")
    except Boom as exc:
        try:
            iter(env.future()).throw(exc)
        except Boom as again:
            env.log(
                again is exc,
                len(traceback.extract_tb(again.__traceback__)),
                again.__context__,
            )


@scenario()
def a_coroutine_driven_by_hand(env: Env) -> None:
    async def wait(future: Any) -> object:
        try:
            return await future
        finally:
            env.log("finally", future)

    for end in ("send", "throw", "close"):
        future = env.future()
        coro = wait(future)
        env.log(coro.send(None) is future)
        if end == "send":
            env.attempt(coro.send, None)
            continue
        env.attempt(getattr(coro, end), *((Boom("thrown"),) if end == "throw" else ()))
    future = env.future()
    future.set_result("done")
    env.attempt(wait(future).send, None)


# --- never retrieved ---


@scenario()
def an_exception_nobody_looked_at_is_reported(env: Env) -> None:
    class Sub(env.cls):
        pass

    looks: list[Callable[[Any], object]] = [
        lambda f: None,
        lambda f: repr(f),
        lambda f: f.done(),
        lambda f: f._exception,
        lambda f: f.exception(),
        lambda f: f.cancel(),
        lambda f: setattr(f, "_log_traceback", False),
        lambda f: f.__del__(),
        lambda f: f.__init__(loop=env.loop),
        lambda f: setattr(f, "cycle", f),
    ]
    for cls in (env.cls, Sub):
        for look in looks:
            future = cls(loop=env.loop)
            future.set_exception(Boom("lost"))
            look(future)
            env.log("dropped", future._log_traceback)
            del future
            gc.collect()
        future = cls(loop=env.loop)
        future.set_exception(Boom("raised"))
        env.attempt(future.result)
        del future
        gc.collect()


@scenario()
def the_report_names_the_future_and_where_it_was_made(env: Env) -> None:
    def handler(loop: object, context: dict[str, Any]) -> None:
        env.log(list(context), context["future"]._state, error(context["exception"]))
        if "source_traceback" in context:
            env.log(context["source_traceback"][-1].name)

    env.loop.set_exception_handler(handler)
    future = env.future()
    future.set_exception(Boom("lost"))
    del future
    gc.collect()

    def failing(loop: object, context: dict[str, Any]) -> None:
        raise Boom("in the handler")

    env.loop.set_exception_handler(failing)
    env.loop.default_exception_handler = lambda context: env.log(context["message"])
    with contextlib.suppress(AttributeError):  # uvloop's can't be replaced
        future = env.future()
        future.set_exception(Boom("lost"))
        del future
        gc.collect()
    env.loop.set_exception_handler(None)


@scenario()
def the_report_may_keep_the_future_alive(env: Env) -> None:
    kept: list[Any] = []
    env.loop.set_exception_handler(lambda loop, context: kept.append(context["future"]))
    future = env.future()
    future.set_exception(Boom("back again"))
    del future
    gc.collect()
    env.log(len(kept), kept[0]._log_traceback)
    env.attempt(kept[0].result)
    kept.clear()
    gc.collect()
    env.log(len(kept))


# --- being an object ---


@scenario()
def weak_references_and_cycles(env: Env) -> None:
    future = env.future()
    reference = weakref.ref(future, lambda _: env.log("gone"))
    env.log(reference() is future)
    del future
    env.log(reference())
    future = env.future()
    future.set_result(future)
    future.own = future
    future.add_done_callback(print)
    reference = weakref.ref(future, lambda _: env.log("collected"))
    env.loop.call_soon(env.loop.stop)
    with contextlib.redirect_stdout(None):
        env.loop.run_forever()
    del future
    gc.collect()
    env.log(reference())
    future = env.future()
    future.add_done_callback(lambda f, g=future: None)
    reference = weakref.ref(future)
    del future
    gc.collect()
    env.log(reference())


@scenario()
def subclasses_override_what_they_like(env: Env) -> None:
    class Sub(env.cls):
        kind = "sub"

        def __init__(self, extra: object, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.extra = extra

        def result(self) -> object:
            env.log("own result")
            return super().result()

        def cancel(self, msg: object = None) -> bool:
            env.log("own cancel", msg)
            return bool(super().cancel(msg))

        def add_done_callback(self, fn: Any, **kwargs: Any) -> None:
            env.log("own add", sorted(kwargs))
            super().add_done_callback(fn, **kwargs)

        def __del__(self) -> None:
            env.log("own del")
            super().__del__()

    class Slotted(env.cls):
        __slots__ = ("slot",)

    async def main() -> None:
        future = Sub("e", loop=env.loop)
        env.log(future.extra, future.kind, isinstance(future, env.cls))
        env.loop.call_soon(future.set_result, 1)
        env.log(await future)
        waited = Sub("e", loop=env.loop)
        task = env.loop.create_task(asyncio.wait_for(waited, 10))
        await env.turns()
        task.cancel()
        await env.outcome(task)

    env.loop.run_until_complete(main())
    slotted = Slotted(loop=env.loop)
    slotted.slot = slotted.other = 1
    env.log(slotted.slot, slotted.other)
    env.attempt(type, "Two", (env.cls, dict), {})

    class NoInit(env.cls):
        def __init__(self) -> None:
            pass

    env.attempt(NoInit().result)
    env.attempt(NoInit().set_result, 1)
    env.log(NoInit().done(), env.cls.__subclasses__().count(NoInit))


# --- the type itself ---


def test_has_the_attributes_of_asyncio_future() -> None:
    # On 3.14 asyncio's type also has the records of who awaits what.
    theirs = {name for name in dir(asyncio.Future) if name != "__module__"}
    ours = {name for name in dir(Future) if name != "__module__"}
    assert ours == theirs
    iterators = [iter(cls(loop=LoopWithoutDebug())) for cls in (asyncio.Future, Future)]
    names = [{name for name in dir(i) if name != "__module__"} for i in iterators]
    assert names[0] == names[1]


class LoopWithoutDebug:
    """All that a future asks its loop when it is made."""

    def get_debug(self) -> bool:
        return False


@pytest.mark.parametrize(
    "name",
    [
        "cancel",
        "result",
        "exception",
        "set_result",
        "set_exception",
        "remove_done_callback",
    ],
)
def test_has_the_signatures_of_asyncio_future(name: str) -> None:
    ours, theirs = (
        inspect.signature(getattr(cls, name)) for cls in (Future, asyncio.Future)
    )
    assert ours == theirs
    assert getattr(Future, name).__doc__


def test_is_not_a_subclass_but_counts_as_a_future() -> None:
    assert not issubclass(Future, asyncio.Future)
    assert asyncio.isfuture(Future(loop=LoopWithoutDebug()))


def test_add_done_callback_shows_its_keyword() -> None:
    # CPython's own is broken here: "builtin has invalid signature".
    assert (
        str(inspect.signature(Future.add_done_callback))
        == "(self, fn, /, *, context=None)"
    )


def test_the_iterator_class_is_not_for_making() -> None:
    cls = type(iter(Future(loop=LoopWithoutDebug())))
    with pytest.raises(TypeError, match="cannot create"):
        cls()
    with pytest.raises(TypeError):
        type("Sub", (cls,), {})


def test_an_exhausted_iterator_stays_exhausted() -> None:
    # asyncio's raises SystemError from send(): "returned NULL without an exception".
    future = Future(loop=LoopWithoutDebug())
    future.set_result(1)
    iterator = iter(future)
    assert list(iterator) == []
    with pytest.raises(StopIteration):
        iterator.send(None)

    def delegate() -> Any:
        return (yield from iterator)

    with pytest.raises(StopIteration) as stop:
        delegate().send(None)
    assert stop.value.value is None
