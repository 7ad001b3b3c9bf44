"""The ways of running a blocking model from asyncio, one a file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pyasyncml import Batching, Model


@dataclass(frozen=True)
class Batch:
    """How requests share a run: `native` is what `load` is asked for.

    The rest is for those who batch by hand: at most `most` requests a run, `join` makes
    one input of theirs, `split` gives each its part of the output; `size` is given
    where inputs of similar size should share a batch.
    """

    native: Batching
    most: int
    join: Callable[[list[Any]], Any]
    split: Callable[[Any], Sequence[Any]]
    size: Callable[[Any], int] | None = None


@dataclass(frozen=True)
class Workload:
    """One model with one input, and the ways in.

    `run` is a blocking call, ready to be used on any thread. `inner` is the same
    without what a thread needs to do only once, which is entering `scope()`.
    `native` gives the same model as pyasyncml serves it, and takes `load`'s options;
    `close` is for the rest. `batch` is for those who batch by hand, `path`, a
    TorchScript file, for those who load it in a process of their own.
    """

    name: str
    instances: int
    x: Any
    run: Callable[[Any], Any]
    inner: Callable[[Any], Any]
    scope: Callable[[], AbstractContextManager[Any]]
    native: Callable[..., Awaitable[Any]]
    close: Callable[[], Awaitable[None]]
    batch: Batch | None = None
    path: str | None = None


@dataclass(frozen=True)
class Contender:
    """`infer(x)` gives an awaitable or, where `blocking`, the result itself.

    `model`: of a native one, for its counters.
    """

    name: str
    infer: Callable[..., Any]
    close: Callable[[], Awaitable[None]]
    blocking: bool = False
    model: Model | None = None


async def nothing_to_close() -> None:
    pass


Starter = Callable[[Workload], Awaitable[Contender]]


def starters() -> dict[str, Starter]:
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


def batchers() -> dict[str, Starter]:
    """Those who put requests together, and native without, as `starters` does.

    With the packages that do it, where they are installed.
    """
    from . import async_batcher, batched_package, greedy, native

    everyone: dict[str, Starter] = {
        "native, batched": native.start_batched,
        "greedy": greedy.start,
        "native": native.start,
    }
    if find_spec("async_batcher"):
        everyone["async-batcher"] = async_batcher.start
    if find_spec("batched"):
        everyone["batched"] = batched_package.start
    return everyone


def servers(say: Callable[[str], None]) -> dict[str, Starter]:
    """Those who batch in a server's process, where they are installed: what they cost
    includes their transport. `say` is told of those who aren't."""
    from . import litserve_http, ray_serve

    everyone: dict[str, Starter] = {}
    for name, module, package, start in (
        ("LitServe", "litserve", "litserve", litserve_http.start),
        ("Ray Serve", "ray", "ray[serve]", ray_serve.start),
    ):
        if find_spec(module):
            everyone[f"{name} (with transport)"] = start
        else:
            say(f"text: without {name}, which isn't installed (pip install {package})")
    return everyone


def no_ops() -> dict[str, Starter]:
    """What is left where the model costs nothing."""
    from . import direct, native, nothing

    return {"native": native.start, "direct": direct.start, "nothing": nothing.start}
