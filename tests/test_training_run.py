"""`fit` and its run, on a step that gives back the row it was given."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random

import numpy as np
import pytest
from runs import runs
from training_program import echo_trainer

from pyasyncml import BackendError, Error, InputError, ModelClosed


def run(main):
    return asyncio.run(main())


def test_every_epoch_has_every_row_once_in_an_order_of_its_own():
    async def main():
        trainer, _ = await echo_trainer()
        async with trainer:
            history = await trainer.fit((np.arange(50.0),), epochs=3, batch_size=1)
            assert history.steps == 150
            epochs = [history.losses[i : i + 50] for i in (0, 50, 100)]
            assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
            assert len({tuple(epoch) for epoch in epochs}) == 3
            assert [epoch.epoch for epoch in history.epochs] == [0, 1, 2]
            assert [epoch.loss for epoch in history.epochs] == [24.5] * 3
            assert (trainer._program.steps, trainer._program.epochs) == (150, 3)

    run(main)


def test_the_seed_decides_the_order_and_without_shuffling_it_is_the_arrays():
    async def losses(seed, **options):
        trainer, _ = await echo_trainer(seed=seed)
        async with trainer:
            history = await trainer.fit((np.arange(20.0),), batch_size=1, **options)
            return history.losses

    async def main():
        assert await losses(1) == await losses(1) != await losses(2)
        assert await losses(1, shuffle=False) == list(range(20))

    run(main)


@pytest.mark.parametrize("kind", ["list", "iterable", "async"])
def test_batches_are_taken_from_whatever_can_be_iterated(kind):
    class Batches:
        def __iter__(self):
            return (np.array([float(i)]) for i in range(7))

    class Async:
        async def __aiter__(self):
            for i in range(7):
                await asyncio.sleep(0)
                yield (np.array([float(i)]),)

    data = {
        "list": [(np.array([float(i)]),) for i in range(7)],
        "iterable": Batches(),
        "async": Async(),
    }[kind]

    async def main():
        trainer, _ = await echo_trainer(rates=lambda step: step / 8)
        async with trainer:
            history = await trainer.fit(data, epochs=2)
            assert history.losses == [step / 8 for step in range(14)]
            assert [epoch.steps for epoch in history.epochs] == [7, 7]

    run(main)


def test_rates_come_step_by_step_over_arrays_too():
    async def main():
        trainer, _ = await echo_trainer(rates=lambda step: step / 8)
        async with trainer:
            data = (np.zeros(10), np.zeros((10, 2)))
            history = await trainer.fit(data, epochs=2, batch_size=4)
            assert history.losses == [step / 8 for step in range(6)]
            assert await trainer.step(np.zeros(1)) == {"loss": 6 / 8}

    run(main)


def test_a_pause_ends_between_two_steps_and_a_resume_goes_on():
    async def main():
        trainer, model = await echo_trainer()
        async with trainer:
            model.hold()
            fit = trainer.fit((np.arange(5.0),), batch_size=1, shuffle=False)
            await model.begun(1)
            still = fit.pause()
            model.release()
            await still
            assert (fit.paused, fit.done(), model.runs) == (True, False, 1)
            fit.resume()
            assert (await fit).losses == [0, 1, 2, 3, 4]

    run(main)


def test_cancelling_whoever_awaits_ends_after_the_step_under_way():
    async def main():
        trainer, model = await echo_trainer()
        async with trainer:
            model.hold()
            fit = trainer.fit((np.arange(5.0),), batch_size=1)

            async def wait():
                return await fit

            waiter = asyncio.create_task(wait())
            await model.begun(2 - 1)
            waiter.cancel()
            await asyncio.sleep(0)
            assert not fit.done()
            model.release()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            assert fit.done()
            assert (trainer._program.steps, model.runs) == (1, 1)
            assert len((await trainer.fit((np.arange(5.0),), batch_size=1)).losses) == 5

    run(main)


def test_cancelling_a_run_over_batches_counts_the_step_under_way_and_no_other():
    async def main():
        trainer, model = await echo_trainer()
        async with trainer:
            model.hold()
            fit = trainer.fit([np.array([float(i)]) for i in range(9)])
            await model.begun(1)
            while model.stats().submitted < 4:
                await asyncio.sleep(0)
            fit.cancel()
            await asyncio.sleep(0)
            model.release()
            with pytest.raises(asyncio.CancelledError):
                await fit
            assert (trainer._program.steps, model.runs) == (1, 1)

    run(main)


def test_reports_merge_and_the_last_one_always_comes():
    async def main():
        trainer, _ = await echo_trainer()
        async with trainer:
            fit = trainer.fit((np.arange(1000.0),), epochs=5, batch_size=1)
            seen = [progress async for progress in fit]
            assert seen[-1].step == seen[-1].steps == 5000
            assert seen[-1].epoch == 4
            assert [p.step for p in seen] == sorted({p.step for p in seen})
            assert len(seen) < 5000
            again = [progress.step async for progress in fit]
            assert again == [5000]
            assert (await fit).losses[-1] == seen[-1].loss

    run(main)


def test_what_steps_give_is_taken_over_as_they_end_also_where_nobody_reads():
    async def main():
        trainer, model = await echo_trainer()
        async with trainer:
            model.hold()
            fit = trainer.fit((np.arange(9.0),), batch_size=1, shuffle=False)
            model.release(1)
            await model.begun(2)
            for _ in range(1000):
                if fit.losses:
                    break
                await asyncio.sleep(0.01)
            seen = list(fit.losses)
            model.release()
            assert seen == [0.0]
            assert (await fit).losses == [*range(9)]

    run(main)


def test_thousands_of_epochs_of_a_step_each_are_told_apart():
    async def main():
        trainer, _ = await echo_trainer()
        async with trainer:
            history = await trainer.fit((np.arange(1.0),), epochs=2500)
            assert [epoch.epoch for epoch in history.epochs] == [*range(2500)]
            assert {epoch.steps for epoch in history.epochs} == {1}

    run(main)


def test_a_failure_is_raised_by_the_run_and_by_its_iteration():
    async def main():
        trainer, model = await echo_trainer()
        async with trainer:
            model.poison(3.0)
            for data in ((np.arange(9.0),), [np.array([float(i)]) for i in range(9)]):
                fit = trainer.fit(
                    data,
                    batch_size=1 if isinstance(data, tuple) else None,
                    shuffle=False,
                )
                with pytest.raises(BackendError):
                    async for _ in fit:
                        pass
                with pytest.raises(BackendError):
                    await fit
            model.poison(None)
            assert await trainer.step(np.array([3.0])) == {"loss": 3.0}

    run(main)


def test_a_loss_that_is_not_finite_ends_the_run_if_asked():
    async def main():
        trainer, _ = await echo_trainer()
        async with trainer:
            x = np.array([1.0, 2.0, np.nan, 4.0])
            for data in ((x,), [x[i : i + 1] for i in range(4)]):
                with pytest.raises(BackendError, match="loss is nan after step 3"):
                    await trainer.fit(
                        data,
                        batch_size=1 if isinstance(data, tuple) else None,
                        shuffle=False,
                        stop_on_nan=True,
                    )
            assert (await trainer.fit((x,), batch_size=1)).steps == 4

    run(main)


def test_validation_and_on_epoch_come_after_each_epoch_and_can_end_the_run():
    async def main():
        trainer, _ = await echo_trainer()
        seen = []

        async def on_epoch(epoch):
            await asyncio.sleep(0)
            seen.append(epoch)
            return len(seen) == 2

        async with trainer:
            trainer._program.follows = True
            fit = trainer.fit(
                (np.arange(4.0),),
                epochs=9,
                batch_size=1,
                validation=(np.arange(3.0),),
                on_epoch=on_epoch,
                shuffle=False,
            )
            history = await fit
            assert history.stopped
            assert [e.validation for e in seen] == [{"loss": 101.0}, {"loss": 102.0}]
            assert [e.loss for e in history.epochs] == [1.5, 1.5]
            assert trainer._program.metrics == [101.0, 102.0]
            assert [p.validation async for p in fit] == [{"loss": 102.0}]

    run(main)


def test_a_save_during_a_run_falls_between_two_steps_and_the_run_goes_on(tmp_path):
    async def main():
        trainer, model = await echo_trainer()
        async with trainer:
            fit = trainer.fit((np.arange(5000.0),), batch_size=1)
            await model.begun(10)
            for i in range(5):
                await trainer.save(tmp_path / str(i))
            assert (await fit).steps == 5000
            for i in range(5):
                await trainer.restore(tmp_path / str(i))
                position = trainer._position
                assert position.epoch * 5000 + position.step == trainer._program.steps

    run(main)


@pytest.mark.parametrize("arrays", [True, False], ids=["arrays", "batches"])
def test_no_step_is_lost_or_doubled_by_cancelling_and_restoring(tmp_path, arrays):
    """Pauses, cancels, saves and restores at random moments, and the whole order."""
    rows, epochs, seed = 40, 3, 7
    draw = random.Random(5)
    if arrays:
        data, options = (np.arange(float(rows)),), {"batch_size": 1}
    else:
        data, options = [np.array([float(i)]) for i in range(rows)], {}

    async def whole():
        trainer, _ = await echo_trainer(seed=seed)
        async with trainer:
            return (await trainer.fit(data, epochs=epochs, **options)).losses

    async def pieces(path):
        done = []
        first = True
        while True:
            trainer, model = await echo_trainer(seed=seed)
            async with trainer:
                if not first:
                    await trainer.restore(path)
                    assert trainer._program.steps == len(done)
                first = False
                fit = trainer.fit(data, epochs=epochs, **options)
                model.hold()
                model.release(count := draw.randrange(50))
                begun = model.begun(count + 1)
                await asyncio.wait(
                    [begun, fit._task], return_when=asyncio.FIRST_COMPLETED
                )
                if fit.done():
                    begun.cancel()
                    return done + (await fit).losses
                if draw.random() < 0.5:
                    fit.pause()
                    fit.resume()
                fit.cancel()
                await asyncio.sleep(0)
                model.release()
                with pytest.raises(asyncio.CancelledError):
                    await fit
                done += fit._losses
                await trainer.save(path)
                if not trainer._position.interrupted:  # it was the last step
                    return done

    async def main():
        expected = await whole()
        for i in range(runs(10)):
            assert await pieces(tmp_path / str(i)) == expected

    run(main)


def test_what_cannot_be_data_is_refused_at_the_call():
    async def main():
        trainer, _ = await echo_trainer()
        async with trainer:
            for data, error, words in [
                ((np.zeros(3), np.zeros(4)), InputError, r"lengths: \[3, 4\]"),
                ((np.zeros(0),), InputError, "empty"),
                ((), InputError, "empty tuple"),
                ((np.zeros(3), [1, 2, 3]), InputError, r"data\[1\]"),
                ((np.float32(1),), InputError, "scalar"),
                (3, TypeError, "int"),
                ("text", TypeError, "str"),
            ]:
                with pytest.raises(error, match=words):
                    trainer.fit(data)
            x = (np.zeros(3),)
            for options in (
                {"epochs": 0},
                {"batch_size": 0},
                {"prefetch": 0},
                {"epochs": True},
            ):
                with pytest.raises(ValueError, match=next(iter(options))):
                    trainer.fit(x, **options)
            with pytest.raises(ValueError, match="batch_size"):
                trainer.fit([x], batch_size=2)
            with pytest.raises(ValueError, match="shuffle"):
                trainer.fit([x], shuffle=True)
            with pytest.raises(InputError, match="one epoch"):
                trainer.fit(iter([x]), epochs=2)
            with pytest.raises(InputError, match="no batches"):
                await trainer.fit([])
            with pytest.raises(InputError, match="dict"):
                await trainer.fit([{"x": 1}])

    run(main)


def test_one_run_at_a_time_and_none_after_close():
    async def main():
        trainer, model = await echo_trainer()
        model.hold()
        fit = trainer.fit((np.zeros(3),), batch_size=1)
        with pytest.raises(Error, match="under way"):
            trainer.fit((np.zeros(3),))
        with pytest.raises(Error, match="under way"):
            await trainer.restore("x")
        await model.begun(1)
        closing = asyncio.create_task(trainer.close())
        await asyncio.sleep(0)
        model.release()
        await closing
        assert fit.done()
        with pytest.raises(asyncio.CancelledError):
            await fit
        with pytest.raises(ModelClosed):
            trainer.fit((np.zeros(3),))
        with pytest.raises(ModelClosed):
            await trainer.step(np.zeros(1))
        await trainer.close()

    run(main)


def test_a_source_that_fails_fails_the_run_and_the_steps_before_it_count():
    def batches():
        yield np.array([1.0])
        yield np.array([2.0])
        raise OSError("the disk is gone")

    async def main():
        trainer, _ = await echo_trainer()
        async with trainer:
            with pytest.raises(OSError, match="disk is gone"):
                await trainer.fit(batches())
            assert trainer._program.steps <= 2
            assert trainer._program.steps == trainer._position.step

    run(main)


def test_a_bar_is_drawn_to_the_last_step(capsys, monkeypatch):
    # A thread of tqdm's own would outlive the test.
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)

    async def main():
        trainer, _ = await echo_trainer()
        async with trainer:
            fit = trainer.fit((np.zeros(30),), batch_size=1, progress=True)
            await fit
            await fit._bar

    run(main)
    assert "30/30" in capsys.readouterr().err


def test_those_who_begin_to_iterate_later_are_told_too_and_nothing_is_logged():
    logged = []

    async def watch(fit):
        return [progress.step async for progress in fit][-1]

    async def main():
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: logged.append(context)
        )
        trainer, model = await echo_trainer()
        model.hold()
        async with trainer:
            fit = trainer.fit((np.arange(3.0),), batch_size=1)
            await model.begun(1)
            watchers = []
            for _ in range(3):
                watchers.append(asyncio.create_task(watch(fit)))
                for _ in range(5):  # until it waits for news
                    await asyncio.sleep(0)
            model.release()
            await fit
            assert await asyncio.gather(*watchers) == [3, 3, 3]
        gc.collect()

    run(main)
    assert not logged


def test_the_loss_decides_whether_a_run_goes_on_wherever_it_is_among_the_values():
    async def main():
        trainer, _ = await echo_trainer()
        trainer._program.values = ("accuracy", "loss")
        async with trainer:
            nan, loss = np.full(4, np.nan), np.arange(4.0)
            options = {"batch_size": 1, "shuffle": False, "stop_on_nan": True}
            assert (await trainer.fit((nan, loss), **options)).losses == [0, 1, 2, 3]
            with pytest.raises(BackendError, match="loss is nan after step 1 "):
                await trainer.fit((loss, nan), **options)
            assert trainer._program.steps == 5

    run(main)


def test_a_source_may_save_between_its_batches(tmp_path):
    async def main():
        trainer, _ = await echo_trainer()

        async def batches():
            for i in range(6):
                yield np.array([float(i)])
                if i % 3 == 2:
                    await trainer.save(tmp_path / "saved")
                    assert trainer._position.step == i + 1

        async with trainer:
            assert (await trainer.fit(batches())).steps == 6

    run(main)


def test_steps_over_batches_are_reported_while_the_source_takes_its_time():
    async def main():
        trainer, _ = await echo_trainer()
        go_on = asyncio.Event()

        async def batches():
            yield np.array([1.0])
            await go_on.wait()
            yield np.array([2.0])

        async with trainer:
            fit = trainer.fit(batches())
            seen = []
            async for progress in fit:
                seen.append((progress.step, progress.loss))
                go_on.set()
            assert seen == [(1, 1.0), (2, 2.0)]

    run(main)


def test_a_cancelled_run_ends_its_source():
    async def main():
        trainer, _ = await echo_trainer()
        ended = []

        async def batches():
            try:
                yield np.array([1.0])
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        async with trainer:
            fit = trainer.fit(batches())
            async for _ in fit:
                fit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fit
            assert ended
            assert trainer._program.steps == 1

    run(main)


def test_a_trainer_whose_loop_is_gone_can_be_closed():
    async def begin():
        trainer, model = await echo_trainer()
        trainer.fit((np.zeros(3),), epochs=10**6, batch_size=1)
        await model.begun(3)
        return trainer, model

    loop = asyncio.new_event_loop()
    trainer, model = loop.run_until_complete(begin())
    task = trainer._run._task
    task._log_destroy_pending = False
    loop.close()
    run(trainer.close)
    assert model.health().status == "closed"
    with contextlib.suppress(RuntimeError):  # there is no loop to wait on
        task.get_coro().close()
