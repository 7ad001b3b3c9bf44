"""Python callables on native workers."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from . import _core
from .model import Model, make_model

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.Lock()
_pool: Model | None = None


def _the_pool() -> Model:
    """As many workers as asyncio's default executor has; started at first use."""
    global _pool
    with _lock:
        if _pool is None:
            workers = min(32, len(os.sched_getaffinity(0)) + 4)
            _pool = make_model(
                Model, "python", _core.python_backend, name="call", instances=workers
            )
            _pool._start_pool()
        return _pool


def call(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> _core.Future[T]:
    """Run ``fn(*args, **kwargs)`` on a worker: a `Future` of what it returns.

    What `asyncio.to_thread` does, with native completion: context variables are carried
    over, an exception arrives through the future, and cancelling before the call has
    begun means that it never begins. Enqueued at the call, not at the first await. The
    callable holds the GIL as any Python code does; several run at once only as far as
    they release it.

    Raises `TypeError` when `fn` isn't callable, or is a coroutine function, which has
    nothing to do on a worker, and `RuntimeError` without a running loop. A callable
    that turns out to return a coroutine fails with `TypeError` through the future.
    """
    if inspect.iscoroutinefunction(fn):
        name = getattr(fn, "__qualname__", None) or repr(fn)
        raise TypeError(
            f"fn: {name} is a coroutine function: await it directly, or give "
            "asyncio.run to call() where it needs a loop of its own"
        )
    return (_pool or _the_pool())._call(fn, *args, **kwargs)


def withdraw(future: _core.Future[T]) -> bool:
    """Takes back a `call` that has not begun; False: it goes on as it was."""
    return bool((_pool or _the_pool())._withdraw(future))
