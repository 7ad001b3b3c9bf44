"""CPython's own asyncio suite, run against `pyasyncml._core.Future`.

Two ways: the bases of `test_futures` and `test_tasks` take the future's class as an
attribute; the suites of what is built on futures (locks, queues, timeouts, task
groups) run with `loop.create_future()` giving ours.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import unittest
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from pyasyncml._core import Future

pytest.importorskip(
    "test.test_asyncio.test_futures", reason="CPython's tests are not installed"
)
pytestmark = pytest.mark.timeout(300)


class SubFuture(Future):
    """A class made in Python takes other paths in C than the type itself."""


#: Tests of what only asyncio's own type can be, and why.
OWN_TYPE = {
    "test_constructor_empty_sequence_use_global_loop": "asserts the type of a future",
    "test_constructor_empty_sequence_use_running_loop": "asserts the type of a future",
}


@pytest.fixture(scope="module", autouse=True)
def leaves_no_policy() -> Iterator[None]:
    yield
    if sys.version_info < (3, 14):
        asyncio.set_event_loop_policy(None)


def suite(module: str) -> Any:
    try:
        return importlib.import_module(f"test.test_asyncio.{module}")
    except ImportError:
        return None  # this version of CPython has no such file


def define(name: str, *bases: type, **attributes: Any) -> None:
    """Adds a test class to this module, without the tests that `OWN_TYPE` names."""
    for test, reason in OWN_TYPE.items():
        if any(hasattr(base, test) for base in bases):
            attributes[test] = unittest.skip(reason)(lambda self: None)
    attributes["__module__"] = __name__
    globals()[name] = type(name, bases, attributes)


futures = suite("test_futures")
tasks = suite("test_tasks")
utils = importlib.import_module("test.test_asyncio.utils")

for cls in (Future, SubFuture):

    def new_future(self: Any, cls: Any = cls) -> Any:
        return cls(loop=self.loop)

    def future_class(self: Any, cls: Any = cls) -> Any:
        return cls

    define(f"Test{cls.__name__}", futures.BaseFutureTests, utils.TestCase, cls=cls)
    define(
        f"Test{cls.__name__}DoneCallbacks",
        futures.BaseFutureDoneCallbackTests,
        utils.TestCase,
        _new_future=new_future,
    )
    if hasattr(futures, "BaseFutureInheritanceTests"):
        define(
            f"Test{cls.__name__}Inheritance",
            futures.BaseFutureInheritanceTests,
            utils.TestCase,
            _get_future_cls=future_class,
        )
    for task in ("_CTask", "_PyTask"):
        if hasattr(asyncio.tasks, task):
            define(
                f"Test{task[1:]}Awaiting{cls.__name__}",
                tasks.BaseTaskTests,
                utils.TestCase,
                Task=getattr(asyncio.tasks, task),
                Future=cls,
            )


class CreatesOurFutures:
    """`loop.create_future()` gives ours, also behind `run_in_executor`."""

    def setUp(self) -> None:
        patch = mock.patch.object(
            asyncio.base_events.BaseEventLoop,
            "create_future",
            lambda loop: Future(loop=loop),
        )
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()


#: Suites of the parts of asyncio that are built on futures.
BUILT_ON_FUTURES = (
    "test_futures2",
    "test_locks",
    "test_queues",
    "test_taskgroups",
    "test_timeouts",
    "test_waitfor",
    "test_pep492",
    "test_eager_task_factory",
    "test_threads",
    "test_staggered",
)

for module_name in BUILT_ON_FUTURES:
    module = suite(module_name)
    for name, value in list(vars(module).items()) if module is not None else []:
        if (
            isinstance(value, type)
            and issubclass(value, unittest.TestCase)
            and value.__module__ == module.__name__
        ):
            define(f"Test_{module_name}_{name}", CreatesOurFutures, value)

for name in (
    "FutureGatherTests",
    "RunCoroutineThreadsafeTests",
    "CoroutineGatherTests",
):
    define(f"Test_test_tasks_{name}", CreatesOurFutures, getattr(tasks, name))


def test_the_suites_were_found() -> None:
    found = [name for name in globals() if name.startswith(("Test_", "TestFuture"))]
    assert len(found) > 20
    loop = asyncio.new_event_loop()
    try:
        with mock.patch.object(
            asyncio.base_events.BaseEventLoop,
            "create_future",
            lambda loop: Future(loop=loop),
        ):
            assert type(loop.create_future()) is Future
    finally:
        loop.close()
