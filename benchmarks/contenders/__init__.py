"""The ways of running a blocking model from asyncio, one a file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Workload:
    """One model with one input, and the ways in.

    `run` is a blocking call, ready to be used on any thread. `inner` is the same
    without what a thread needs to do only once, which is entering `scope()`.
    `native` gives the same model as pyasyncml serves it; `close` is for the rest.
    """

    name: str
    instances: int
    x: Any
    run: Callable[[Any], Any]
    inner: Callable[[Any], Any]
    scope: Callable[[], AbstractContextManager[Any]]
    native: Callable[[], Awaitable[Any]]
    close: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Contender:
    """`infer(x)` gives an awaitable or, where `blocking`, the result itself."""

    name: str
    infer: Callable[[Any], Any]
    close: Callable[[], Awaitable[None]]
    blocking: bool = False


async def nothing_to_close() -> None:
    pass


def starters() -> dict[str, Callable[[Workload], Awaitable[Contender]]]:
    """The contenders by name, in the order in which they take turns."""
    from . import bridge, direct, executor, native, to_thread

    return {
        "native": native.start,
        "bridge": bridge.start,
        "executor": executor.start,
        "executor (default)": executor.start_default,
        "to_thread": to_thread.start,
        "direct": direct.start,
    }
