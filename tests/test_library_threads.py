"""The libraries' threads: what computes is our workers alone, several at once on one
session, and nothing spins while nothing is to be done."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import pyasyncml as ml

TICK = 1 / os.sysconf("SC_CLK_TCK")


class Loop(NamedTuple):
    """A model that runs as long as it is asked to."""

    path: Path
    entry: str | None
    long: dict[str, Any]  # inputs: of a run of seconds, or of one that must be stopped
    short: dict[str, Any]


@pytest.fixture(params=["onnx", "savedmodel"])
def loop(request, tmp_path) -> Loop:
    library = {"onnx": "onnxruntime", "savedmodel": "tensorflow"}[request.param]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if request.param == "onnx":
        pytest.importorskip("onnx")
        import onnx_models

        path = Path(onnx_models.loop(tmp_path / "loop.onnx"))
        x = np.ones((1, 96), np.float32)
        long, short = ({"x": x, "n": np.int64([n])} for n in (2**60, 1))
        return Loop(path, None, long, short)
    path = request.getfixturevalue("saved_model_folder") / "several"
    x = np.eye(64, dtype=np.float32)
    return Loop(path, "loop", {"x": x, "n": 20_000}, {"x": x, "n": 1})


class Thread(NamedTuple):
    id: str
    name: str


def seconds_of_threads() -> dict[Thread, float]:
    """How much of a processor each thread of the process has had, but for this one."""
    found = {}
    own = str(threading.get_native_id())
    for task in Path("/proc/self/task").iterdir():
        if task.name == own:
            continue
        try:
            before, _, after = (task / "stat").read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        user, system = after.split()[11:13]
        thread = Thread(task.name, before.partition("(")[2])
        found[thread] = (int(user) + int(system)) * TICK
    return found


def test_two_runs_on_one_session_compute_at_once_in_two_threads_and_no_others(loop):
    async def main():
        async with ml.load(loop.path, entry=loop.entry, instances=2) as model:
            if model.stats().cpu_total < 2:
                pytest.skip("runs take turns on one processor")
            # TensorFlow's first runs of a function also set others to work.
            for _ in range(4):
                await asyncio.gather(*(model.infer(**loop.short) for _ in range(2)))
            before = seconds_of_threads()
            futures = [model.infer(**loop.long) for _ in range(2)]
            worked: list[tuple[float, str]] = []
            while sum(seconds > 0.05 for seconds, _ in worked) < 2:
                await asyncio.sleep(0.005)
                assert not any(future.done() for future in futures), worked
                assert all(seconds < 20 for seconds, _ in worked), worked  # in turn
                worked = sorted(
                    (seconds - before.get(thread, 0), thread.name)
                    for thread, seconds in seconds_of_threads().items()
                )
            *others, (_, one), (_, two) = worked
            assert sum(seconds for seconds, _ in others) < 0.03
            assert (one, two) == ("pyasyncml", "pyasyncml")  # the workers' name
            for future in futures:
                future.cancel()

    asyncio.run(main())


@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_spins_between_requests(loop, threads):
    async def main():
        async with ml.load(
            loop.path, entry=loop.entry, instances=2, threads=threads
        ) as model:
            for _ in range(4):
                await model.infer(**loop.short)
            begun, used = time.perf_counter(), time.process_time()
            for _ in range(20):
                await model.infer(**loop.short)
                await asyncio.sleep(0.02)
            used = time.process_time() - used
            # Of one processor; a pool that spins takes half of it and more.
            assert used / (time.perf_counter() - begun) < 0.2

    asyncio.run(main())


def test_instances_start_no_threads_but_their_own(loop):
    """TensorFlow has a pool for each session, which is idle; nothing else comes."""

    def threads():
        return len(os.listdir("/proc/self/task"))

    async def main():
        counts = []
        async with ml.load(loop.path, entry=loop.entry):
            for instances in (1, 5):
                before = threads()
                async with ml.load(
                    loop.path, entry=loop.entry, instances=instances
                ) as model:
                    await asyncio.gather(
                        *(model.infer(**loop.short) for _ in range(20))
                    )
                    counts.append(threads() - before)
        one, five = counts
        assert five - one == 4

    asyncio.run(main())
