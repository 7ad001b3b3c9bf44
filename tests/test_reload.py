"""`Model.reload`: another program under load, and nothing is refused or lost."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml import _core
from pyasyncml.testing import echo


def constant(n):
    """A live model that tells its version."""
    return lambda *inputs: n


async def turns(n=20):
    for _ in range(n):
        await asyncio.sleep(0)


def test_requests_see_the_old_program_before_the_change_and_the_new_after(run):
    async def main():
        gate, begun = threading.Event(), threading.Event()

        def old(x):
            begun.set()
            gate.wait()
            return ("old", x)

        async with ml.load(old, name="versions") as model:
            futures = [model.infer(n) for n in range(3)]
            await asyncio.to_thread(begun.wait)
            reload = asyncio.ensure_future(model.reload(lambda x: ("new", x)))
            while model.health().longest_run > 0:  # health is of the present one
                await asyncio.sleep(0)
            assert await model.infer(5) == ("new", 5)
            assert not reload.done()
            assert not any(future.done() for future in futures)
            gate.set()
            await reload
            assert all(future.done() for future in futures)
            outcomes = await asyncio.gather(*futures)
            assert outcomes == [("old", n) for n in range(3)]
            assert model.name == "versions"

    run(main)


def test_nothing_is_refused_and_everything_is_answered_under_load(run, quick_switches):
    """From several loops in several threads, with cancels and deadlines."""

    async def main():
        async with await echo(instances=2) as model:
            stop = threading.Event()
            counts = []

            async def use(seed):
                rng = random.Random(seed)
                served = given_up = 0
                while not stop.is_set():
                    futures = [
                        model.infer(n, timeout=rng.choice((None, None, 0.0005)))
                        for n in range(rng.randrange(1, 40))
                    ]
                    await asyncio.sleep(0)
                    for future in futures:
                        if rng.random() < 0.2:
                            future.cancel()
                    outcomes = await asyncio.gather(*futures, return_exceptions=True)
                    for n, outcome in enumerate(outcomes):
                        if isinstance(
                            outcome, (asyncio.CancelledError, ml.DeadlineExceeded)
                        ):
                            given_up += 1
                        else:
                            assert outcome == n
                            served += 1
                counts.append((served, given_up))

            others = [
                threading.Thread(target=asyncio.run, args=(use(seed),))
                for seed in range(2)
            ]
            for other in others:
                other.start()
            mine = asyncio.ensure_future(use(2))
            for _ in range(40):
                await model.reload()
            stop.set()
            await mine
            await asyncio.to_thread(lambda: [other.join() for other in others])
            assert len(counts) == 3
            await model.close()
            stats = model.stats()
            assert stats.rejected == 0
            assert stats.completed + stats.failed >= sum(n for n, _ in counts)
            assert stats.submitted <= stats.completed + stats.cancelled + stats.expired
            assert (stats.waiting, stats.waiting_bytes, stats.running) == (0, 0, 0)

    run(main)


def test_waiting_requests_are_cancelled_and_expire_in_the_queue_they_are_in(run):
    async def main():
        async with await echo(queue=ml.Queue(max_rows=4)) as model:
            model.hold()
            old = [model.infer(n) for n in range(7)]
            await model.begun(1)
            late = model.infer(7, timeout=0.5)
            reload = asyncio.ensure_future(model.reload())
            while model.runs:  # of the new script: none
                await asyncio.sleep(0)
            model.hold()
            new = [model.infer(n) for n in range(3)]
            await model.begun(1)
            assert model.stats().waiting == 9
            for future in (old[2], old[6], new[2]):
                assert future.cancel()
            assert model.stats().waiting <= 6
            with pytest.raises(ml.DeadlineExceeded):
                await late
            assert model.stats().waiting == 5
            assert (model.stats().cancelled, model.stats().expired) == (3, 1)
            assert not reload.done()
            model.release()
            await reload
            await asyncio.gather(*old, *new, return_exceptions=True)
            stats = model.stats()
            assert stats.completed == 7
            assert (stats.submitted, stats.cancelled, stats.expired) == (11, 3, 1)

    run(main)


def test_program_may_reload_itself_from_a_callback(run):
    """The queue that a burst is held for goes away meanwhile."""

    async def main():
        async with await echo() as model:
            await asyncio.gather(*(model.infer(n) for n in range(10)))
            for n in range(20):
                assert await model.infer(n) == n
                await model.reload()
                assert model.runs == 0

    run(main)


def test_old_program_is_freed_once_it_has_ended(run):
    async def main():
        class Program:
            def __call__(self, x):
                return x

        async with ml.load(Program()) as model:
            programs = [weakref.ref(model)]
            for _ in range(3):
                program = Program()
                programs.append(weakref.ref(program))
                await model.reload(program)
                del program
                assert await model.infer(1) == 1
            await model.reload(Program())
            gc.collect()
            assert [program() is None for program in programs] == [False] + [True] * 3

    run(main)


# --- what is refused ---


def test_source_that_does_not_load_leaves_the_model_as_it_was(run, tmp_path):
    async def main():
        async with ml.load(constant(1)) as model:
            with pytest.raises(ml.LoadError, match="no such file"):
                await model.reload(tmp_path / "absent.pt")
            with pytest.raises(TypeError, match="source: expected a path"):
                await model.reload(5)
            assert await model.infer() == 1
            assert model.health().ok
            await model.reload(constant(2))
            assert await model.infer() == 2

    run(main)


def test_source_that_fails_in_the_warm_up_is_refused(run):
    async def main():
        def broken(x):
            raise ZeroDivisionError("as it happens")

        async with ml.load(lambda x: x + 1, inputs=1, instances=2) as model:
            with pytest.raises(ml.LoadError, match=r"warm-up.*as it happens"):
                await model.reload(broken)
            assert await model.infer(1) == 2
            assert model.health().instances_alive == 2

    run(main)


def test_options_of_the_load_are_those_of_the_reload(run):
    async def main():
        seen = []

        class Versions:
            def serve(self, x):
                seen.append(x)
                return threading.get_ident()

            def __call__(self):
                raise AssertionError

        async with ml.load(
            Versions(), entry="serve", inputs=(7,), instances=3, name="many"
        ) as model:
            assert seen == [7] * 9
            await model.reload(Versions())
            assert seen == [7] * 18
            assert len(model.stats().busy) == 3
            assert model.health().instances == 3
            with pytest.raises(ValueError, match="has no method 'serve'"):
                await model.reload(constant(1))
            await model.reload(Versions())
            assert seen == [7] * 27

    run(main)


def test_model_without_a_source_says_so(run):
    async def main():
        with pytest.raises(ml.Error, match="has no source"):
            await ml._call._the_pool().reload(constant(1))

    run(main)


def test_second_reload_at_once_is_refused(run):
    async def main():
        begun, go_on = threading.Event(), threading.Event()

        def slow(x):
            begun.set()
            go_on.wait()
            return x

        async def reload(outcomes):
            try:
                await model.reload(constant(3))
            except ml.ReloadUnderWay as error:
                outcomes.append(str(error))

        async with ml.load(constant(1), inputs=(0,)) as model:
            first = asyncio.ensure_future(model.reload(slow))
            await asyncio.to_thread(begun.wait)
            outcomes = []
            await reload(outcomes)
            await asyncio.to_thread(lambda: asyncio.run(reload(outcomes)))
            assert len(outcomes) == 2
            assert all("is being reloaded already" in said for said in outcomes)
            assert await model.infer() == 1
            go_on.set()
            await first
            assert await model.infer(5) == 5
            await model.reload(constant(4))
            assert await model.infer() == 4

    run(main)


def test_reload_may_begin_while_older_versions_are_drained(run):
    async def main():
        async with await echo() as model:
            reloads, futures = [], []
            for n in range(4):
                model.hold()
                futures.append(model.infer(n))
                await model.begun(1)
                if n < 3:
                    reloads.append(asyncio.ensure_future(model.reload()))
                    while model.runs:
                        await asyncio.sleep(0)
            assert model.stats().running == 4
            assert not any(reload.done() for reload in reloads)
            model.release()
            await asyncio.gather(*reloads)
            assert await asyncio.gather(*futures) == [0, 1, 2, 3]
            assert model.stats().completed == 4

    run(main)


# --- closing ---


def test_reload_after_close_is_refused(run):
    async def main():
        model = await echo()
        await model.close()
        with pytest.raises(ml.ModelClosed, match="model 'echo' is closed"):
            await model.reload()

    run(main)


@pytest.mark.parametrize("drain", [True, False])
def test_model_closed_while_it_reloads_stays_closed(run, drain):
    async def main():
        begun, go_on = threading.Event(), threading.Event()

        def slow(x):
            begun.set()
            go_on.wait()

        model = await ml.load(constant(1), inputs=(0,))
        reload = asyncio.ensure_future(model.reload(slow))
        await asyncio.to_thread(begun.wait)
        await model.close(drain=drain)
        go_on.set()
        with pytest.raises(ml.ModelClosed, match="is closed"):
            await reload
        with pytest.raises(ml.ModelClosed):
            model.infer(1)

    run(main)


@pytest.mark.parametrize("drain", [True, False])
def test_close_awaits_the_old_versions_too(run, drain):
    async def main():
        model = await echo()
        futures, reloads = [], []
        for _ in range(2):
            model.hold()
            futures += [model.infer(1), model.infer(2)]
            await model.begun(1)
            reloads.append(asyncio.ensure_future(model.reload()))
            while model.runs:
                await asyncio.sleep(0)
        closing = model.close(drain=drain)
        again = model.close()
        await turns()
        assert not closing.done()
        model.release()
        await closing
        assert model.stats().running == 0
        await again
        await asyncio.gather(*reloads)
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert outcomes[0] == outcomes[2] == 1
        for outcome in (outcomes[1], outcomes[3]):
            assert outcome == 2 if drain else isinstance(outcome, ml.ModelClosed)

    run(main)


def test_cancelled_while_it_loads_the_model_is_as_it_was(run):
    async def main():
        begun, go_on = threading.Event(), threading.Event()

        def slow(x):
            begun.set()
            go_on.wait()

        async with ml.load(constant(1), inputs=(0,)) as model:
            reload = asyncio.ensure_future(model.reload(slow))
            await asyncio.to_thread(begun.wait)
            reload.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reload
            go_on.set()
            assert await model.infer() == 1
            await model.reload(constant(2))
            assert await model.infer() == 2

    run(main)


def test_cancelled_while_the_old_program_ends_the_new_one_serves(run):
    async def main():
        async with await echo() as model:
            model.hold()
            futures = [model.infer(n) for n in range(5)]
            await model.begun(1)
            reload = asyncio.ensure_future(model.reload())
            while model.runs:
                await asyncio.sleep(0)
            reload.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reload
            assert await model.infer(9) == 9
            assert model.runs == 1
            model.release()
            assert await asyncio.gather(*futures) == [0, 1, 2, 3, 4]
            await model.reload()

    run(main)


def test_cancelled_at_every_moment_it_is_one_or_the_other(run):
    async def main():
        model = await ml.load(constant(0), inputs=(0,))
        version = 0
        for n in range(1, 60):
            reload = asyncio.ensure_future(model.reload(constant(n)))
            await turns(n)
            reload.cancel()
            done = not isinstance(
                (await asyncio.gather(reload, return_exceptions=True))[0],
                asyncio.CancelledError,
            )
            served = await model.infer()
            assert served in ((n,) if done else (version, n))
            version = served
        await model.close()

    run(main)


def test_loop_that_ends_while_an_old_version_is_drained_leaves_nothing(make_loop):
    kept = []

    async def begin():
        model = await echo()
        model.hold()
        kept.append(model)
        future = model.infer(1)
        await model.begun(1)
        kept.append(asyncio.ensure_future(model.reload()))
        while model.runs:
            await asyncio.sleep(0)
        assert not future.done()

    async def end():
        model = kept[0]
        assert await model.infer(5) == 5
        model.release()
        await model.close()
        assert model.stats().completed == 2

    async def forget():
        task = kept.pop()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    loop = make_loop()
    loop.run_until_complete(begin())
    loop.run_until_complete(forget())
    loop.close()
    del loop
    gc.collect()
    loop = make_loop()
    loop.run_until_complete(end())
    loop.close()
    kept.clear()


def test_reloaded_model_collected_unclosed_warns_once(run):
    async def main():
        model = await echo(name="forgotten")
        await model.reload()
        assert await model.infer(1) == 1

    with pytest.warns(ResourceWarning, match="unclosed model 'forgotten'") as told:
        run(main)
        gc.collect()
    assert len(told) == 1


# --- numbers ---


def test_counters_never_go_down(run):
    async def main():
        async with await echo(instances=2) as model:
            counters = [
                *("submitted", "completed", "failed", "cancelled", "expired"),
                *("rejected", "waited", "runs", "rows", "requests", "busy"),
            ]
            before = model.stats()
            stop = threading.Event()

            def watch():
                last = before
                while not stop.is_set():
                    now = model.stats()
                    for name in counters:
                        assert getattr(now, name) >= getattr(last, name), name
                    assert now.releases["alone"] >= last.releases["alone"]
                    last = now
                    time.sleep(0)

            watching = asyncio.ensure_future(asyncio.to_thread(watch))
            for n in range(30):
                model.fail(1)
                futures = [model.infer(n) for _ in range(10)]
                reload = asyncio.ensure_future(model.reload())
                futures += [model.infer(n) for _ in range(10)]
                futures[15].cancel()
                await asyncio.gather(*futures, reload, return_exceptions=True)
            stop.set()
            await watching
            stats = model.stats()
            assert stats.submitted == 600
            assert 570 <= stats.completed + stats.failed <= 600
            assert stats.cancelled == 30
            assert model.health() == ml.Health("ready", "", 2, 2, 0.0, 0.0, 0)

    run(main)


def test_counts_of_versions_that_have_ended_are_kept(run):
    async def main():
        async with await echo() as model:
            futures = []
            for n in range(50):
                futures.append(model.infer(n))
                await model.reload()
            assert await asyncio.gather(*futures) == list(range(50))
            assert model.stats().completed == 50

    run(main)


def test_swap_refuses_what_is_no_like(run):
    async def main():
        async with await echo() as model, await echo(instances=2) as other:
            for wrong in (model, other):
                with pytest.raises(ValueError, match="expected a model of its like"):
                    model._swap(wrong)
            with pytest.raises(TypeError, match="expected a Model, got int"):
                model._swap(5)
            with pytest.raises(ValueError, match="expected a model of its like"):
                model._swap(_core.Model.__new__(_core.Model))

    run(main)


# --- files ---


@pytest.fixture
def archive(tmp_path):
    """Writes a TorchScript archive whose outputs tell its version: its path."""
    torch = pytest.importorskip("torch")

    def write(version, *, many=False):
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.w = torch.nn.Parameter(torch.full((4, 4), float(version)))

            def forward(self, x):
                return x @ self.w

        class Two(Net):
            def forward(self, x, y):
                return x @ self.w + y

        path = tmp_path / f"{version}-{many}.pt"
        torch.jit.script((Two if many else Net)().eval()).save(str(path))
        return path

    return write


@pytest.mark.torch
def test_batches_see_one_version_of_the_weights(run, archive):
    async def main():
        paths = [archive(n) for n in (1, 2)]
        x = np.ones((3, 4), np.float32)
        batching = ml.Batching(max_rows=16)
        async with ml.load(paths[0], inputs=x, batching=batching, instances=2) as model:
            versions, stop = [], asyncio.Event()

            def source():
                while not stop.is_set():
                    yield x

            async def use():
                async for y in model.map(source(), in_flight=64):
                    assert y.shape == (3, 4)
                    assert y.min() == y.max()
                    versions.append(y[0, 0] / 4)

            using = asyncio.ensure_future(use())
            for n in range(1, 7):
                await model.reload(paths[n % 2])
                expected = n % 2 + 1
                assert (await model.infer(x))[0, 0] == 4 * expected
            stop.set()
            await using
            assert set(versions) == {1.0, 2.0}
            assert model.stats().requests == len(versions) + 6

    run(main)


@pytest.mark.torch
def test_file_of_another_signature_is_refused_and_says_what_differs(run, archive):
    async def main():
        async with ml.load(archive(1)) as model:
            x = np.ones((1, 4), np.float32)
            with pytest.raises(ml.LoadError, match="2 inputs instead of 1"):
                await model.reload(archive(2, many=True))
            with pytest.raises(ml.LoadError, match="entry 'call' instead of 'forward'"):
                await model.reload(lambda x: x)
            assert (await model.infer(x))[0, 0] == 4
            assert model.signature.inputs[0].name == "x"

    run(main)


@pytest.mark.torch
def test_broken_file_is_refused_and_the_old_program_goes_on(run, archive, tmp_path):
    async def main():
        path = archive(1)
        broken = tmp_path / "broken.pt"
        broken.write_bytes(path.read_bytes()[:-100])
        tampered = tmp_path / "tampered.pt"
        tampered.write_bytes(path.read_bytes())
        tampered.with_name("tampered.pt.sha256").write_text("0" * 64)
        x = np.ones((1, 4), np.float32)
        async with ml.load(path) as model:
            with pytest.raises(ml.LoadError, match=r"broken\.pt"):
                await model.reload(broken)
            with pytest.raises(ml.LoadError, match="checksum"):
                await model.reload(tampered)
            assert (await model.infer(x))[0, 0] == 4

    run(main)


@pytest.mark.torch
def test_file_that_was_replaced_in_place_is_read_again(run, archive):
    async def main():
        path = archive(1)
        x = np.ones((1, 4), np.float32)
        async with ml.load(path) as model:
            new = archive(2)
            new.replace(path)
            assert (await model.infer(x))[0, 0] == 4
            await model.reload(path)
            assert (await model.infer(x))[0, 0] == 8

    run(main)


def test_differences_of_signatures_are_all_told():
    from pyasyncml.model import Signature, TensorSpec, _check_same

    x = TensorSpec("x", None, ("tensor",), "float32", (None, 4), False)
    y = TensorSpec(None, "Tensor", ("tensor",), None, None, False)
    old = Signature("forward", (x,), (y,), False, False)
    _check_same(old, old)
    _check_same(old, Signature("forward", (x,), (y,), False, False))
    new_x = TensorSpec("z", None, ("tensor", "int"), "float64", (None, 5), True)
    new_y = TensorSpec(None, "another word", ("tensor",), "int8", None, False)
    with pytest.raises(ml.LoadError) as told:
        _check_same(old, Signature("serve", (new_x,), (new_y,), True, False))
    for said in (
        "entry 'serve' instead of 'forward'",
        "variadic True instead of False",
        "input 'x': name 'z' instead of 'x'",
        "input 'x': kinds ('tensor', 'int') instead of ('tensor',)",
        "input 'x': dtype 'float64' instead of 'float32'",
        "input 'x': shape (None, 5) instead of (None, 4)",
        "input 'x': optional True instead of False",
        "output 0: dtype 'int8' instead of None",
    ):
        assert said in str(told.value)
    assert "another word" not in str(told.value)
