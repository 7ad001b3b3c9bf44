"""Everything at once, at random, from a seed: threads with loops of their own that
share models; deadlines, cancelling, failures, loops closed with work in flight.

Each request settles exactly once, unless its loop was closed before. `PYASYNCML_STRESS`
says how many there are.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import gc
import importlib.util
import os
import random
import threading

import pytest

import pyasyncml as ml
from pyasyncml.testing import echo

REQUESTS = int(os.environ.get("PYASYNCML_STRESS", "100000"))
THREADS = 4
UVLOOP = importlib.util.find_spec("uvloop") is not None

#: What asyncio says of what a loop leaves undone that is closed early.
OF_CLOSED_LOOPS = ("was never retrieved", "Task was destroyed but it is pending!")


class Traffic:
    """What one thread submits: one loop after another, each for a while."""

    def __init__(self, seed, requests, models):
        self.random = random.Random(seed)
        self.left = requests
        self.models = models
        self.seen = collections.Counter()
        self.complaints = []

    def run(self):
        try:
            while self.left > 0:
                self.run_one_loop()
        except BaseException as error:
            self.complaints.append(repr(error))
            raise

    def run_one_loop(self):
        rng = self.random
        count = min(self.left, rng.choice((1, 10, 100, 1_000, 3_000)))
        self.left -= count
        early = rng.random() < 0.3
        loop = asyncio.new_event_loop()
        if UVLOOP and rng.random() < 0.5:
            loop.close()
            loop = importlib.import_module("uvloop").new_event_loop()
        loop.set_exception_handler(functools.partial(self.complain, early))
        settled = bytearray(count)
        try:
            loop.run_until_complete(self.submit(count, settled, early))
        finally:
            loop.close()
        if early:
            assert max(settled) <= 1
            self.seen["left to a closed loop"] += settled.count(0)
        else:
            assert settled.count(1) == count
        self.seen["settled"] += settled.count(1)

    def complain(self, early, loop, context):
        if not early or not context["message"].endswith(OF_CLOSED_LOOPS):
            self.complaints.append(context)

    async def submit(self, count, settled, early):
        rng = self.random
        loop = asyncio.get_running_loop()
        futures = {}
        tasks = []
        for n in range(count):
            model = rng.choice(self.models)
            future = model.infer(n, **self.options())
            future.add_done_callback(functools.partial(note, settled, n))
            futures[n] = future
            dice = rng.random()
            if dice < 0.10:
                future.cancel()
            elif dice < 0.20:
                loop.call_soon(future.cancel)
            elif dice < 0.25:
                loop.call_later(rng.random() * 0.002, future.cancel)
            elif dice < 0.35:
                tasks.append(loop.create_task(wait(future)))
                if dice < 0.30:
                    loop.call_later(rng.random() * 0.002, tasks[-1].cancel)
            elif dice < 0.355:
                model.fail(1, memory=dice < 0.3525)
            elif dice < 0.40:
                await asyncio.sleep(0)
            elif dice < 0.41:
                await asyncio.wait([future])
        if early:
            return
        await asyncio.wait([*futures.values(), *tasks])
        for n, future in futures.items():
            self.check(n, future)
        for task in tasks:
            assert task.cancelled() or task.exception() is None

    def options(self):
        rng = self.random
        options = {}
        if rng.random() < 0.2:
            options["timeout"] = rng.choice((0, 1e-5, 1e-4, 1e-3, 0.01, 10))
        if rng.random() < 0.2:
            options["priority"] = rng.randint(-2, 2)
        return options

    def check(self, n, future):
        if future.cancelled():
            self.seen["cancelled"] += 1
        elif (error := future.exception()) is None:
            assert future.result() == n
            self.seen["served"] += 1
        else:
            self.seen[type(error).__name__] += 1


def note(settled, n, future):
    settled[n] += 1


async def wait(future):
    try:
        await future
    except (ml.Error, asyncio.CancelledError):
        pass


def resident_megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def run_threads(models, requests, seed):
    traffic = [
        Traffic(f"{seed}-{n}", requests // THREADS, models) for n in range(THREADS)
    ]
    threads = [threading.Thread(target=one.run) for one in traffic]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.complaints for one in traffic] == [[]] * THREADS
    return sum((one.seen for one in traffic), collections.Counter())


@pytest.mark.timeout(60 + REQUESTS / 1000)
def test_every_request_settles_exactly_once_unless_its_loop_is_gone(capsys):
    models = []

    async def open_models():
        queue = ml.Queue(max_rows=200, when_full="reject")
        models.append(await echo(instances=2))
        models.append(await echo(queue=queue))
        models.append(await echo(instances=2, delay=1e-5, busy=True))
        models.append(await echo(instances=2, in_flight=4))

    async def close_models():
        for model in models:
            await model.close()

    asyncio.run(open_models())
    run_threads(models, REQUESTS // 5, "warm-up")  # allocators keep what they once had
    gc.collect()
    before = resident_megabytes()
    seen = run_threads(models, REQUESTS, "stress")
    gc.collect()
    growth = resident_megabytes() - before
    asyncio.run(close_models())

    assert seen["settled"] + seen["left to a closed loop"] == REQUESTS // THREADS * 4
    kinds = ["served", "cancelled", "DeadlineExceeded", "BackendError"]
    assert all(seen[kind] > 0 for kind in [*kinds, "OutOfMemory"]), seen
    assert growth < 50 or "asan" in os.environ.get("LD_PRELOAD", "")  # it frees late
    for model in models:
        stats = model.stats()
        assert (stats.waiting, stats.waiting_bytes, stats.running) == (0, 0, 0)
        if model is models[-1]:  # what lacked memory beside others ran again, alone
            assert model.runs >= stats.completed + stats.failed
        else:
            assert model.runs == stats.completed + stats.failed
    with capsys.disabled():
        if REQUESTS >= 1_000_000:
            print(f"\n{dict(seen)}, {growth:.1f} MB more at the end")
