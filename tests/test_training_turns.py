"""A run and those who come between its steps: pauses, single steps, other programs."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from training_program import EchoProgram, echo_trainer

from pyasyncml.testing import echo
from pyasyncml.training import Trainer


def data_of(kind, n):
    """Rows 0 to n - 1, a step each, and the options that `fit` takes them with."""
    if kind == "arrays":
        return (np.arange(float(n)),), {"batch_size": 1, "shuffle": False}
    return Batches(range(n)), {}


class Batches:
    """Async, since a worker that pulls waits for the GIL while steps take turns."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __len__(self):
        return len(self.numbers)

    async def __aiter__(self):
        for i in self.numbers:
            yield np.array([float(i)])


async def first_begun(trainer, model, kind, n):
    """A fit over `n` rows whose first step is held; of batches more are submitted."""
    data, options = data_of(kind, n)
    model.hold()
    fit = trainer.fit(data, **options)
    await model.begun(1)
    if kind == "batches":
        while model.stats().submitted < min(n, 4):
            await asyncio.sleep(0)
    return fit


both = pytest.mark.parametrize("kind", ["arrays", "batches"])


@both
def test_a_pause_takes_back_what_has_not_begun_and_a_resume_repeats_it(kind):
    async def main():
        trainer, model = await echo_trainer()
        async with trainer:
            fit = await first_begun(trainer, model, kind, 9)
            still = fit.pause()
            model.release()
            await still
            assert (model.runs, trainer._program.steps) == (1, 1)
            assert await trainer.step(np.array([50.0])) == {"loss": 50.0}
            fit.pause()
            await fit.pause()
            assert model.runs == 2
            fit.resume()
            assert (await fit).losses == [*range(9)]
            await fit.pause()  # there is nothing to wait for

    asyncio.run(main())


@both
def test_whoever_waits_for_a_pause_does_not_wait_past_its_end(kind):
    async def main():
        trainer, model = await echo_trainer()
        async with trainer:
            fit = await first_begun(trainer, model, kind, 3)

            async def wait():
                await fit.pause()

            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
            fit.resume()
            await waiting
            model.release()
            assert (await fit).losses == [0, 1, 2]

    asyncio.run(main())


@both
def test_a_run_and_those_who_ask_for_steps_take_turns(kind):
    async def main():
        trainer, _ = await echo_trainer(delay=0.002)  # time for who asks to come back
        async with trainer:
            data, options = data_of(kind, 40)
            fit = trainer.fit(data, epochs=2, **options)
            taken = [0, 0, 0]

            async def step(i):
                while not fit.done():
                    await trainer.step(np.array([50.0]))
                    taken[i] += 1
                    assert taken[i] < 1000, "the run makes no steps"

            await asyncio.gather(*map(step, range(3)))
            assert (await fit).losses == [*range(40)] * 2
            assert [epoch.steps for epoch in fit._epochs] == [40, 40]
            # One each, once all of them have begun.
            assert min(taken) > 40
            assert max(taken) - min(taken) < 10

    asyncio.run(main())


@both
def test_rates_go_on_from_the_steps_that_came_in_between(kind):
    async def main():
        trainer, model = await echo_trainer(rates=lambda step: float(step))
        async with trainer:
            fit = await first_begun(trainer, model, kind, 8)
            still = fit.pause()
            model.release()
            await still
            assert await trainer.step(np.zeros(1)) == {"loss": 1.0}
            fit.resume()
            assert (await fit).losses == [0, *range(2, 9)]

    asyncio.run(main())


@both
def test_a_pause_that_ends_at_once_leaves_no_rate_out(kind):
    async def main():
        trainer, model = await echo_trainer(rates=lambda step: float(step))
        async with trainer:
            fit = await first_begun(trainer, model, kind, 9)
            fit.pause()
            fit.resume()
            for _ in range(50):
                await asyncio.sleep(0)  # what is taken back could be submitted here
            model.release()
            assert (await fit).losses == [*range(9)]

    asyncio.run(main())


@both
def test_after_a_pause_rates_are_asked_for_from_where_the_run_stands(kind):
    class Noting(EchoProgram):
        def schedule(self, per_epoch, step):
            asked.append((per_epoch, step))

    asked = []

    async def main():
        program = Noting(await echo())
        async with Trainer._of(program) as trainer:
            data, options = data_of(kind, 5)
            program.model.hold()
            program.model.release(7)
            fit = trainer.fit(data, epochs=2, **options)
            await program.model.begun(8)
            still = fit.pause()
            program.model.release()
            await still
            fit.resume()
            await fit
            assert (5, 3) in asked

    asyncio.run(main())


class Apart(EchoProgram):
    """An epoch's last batch is smaller, and making its graph takes until `go`."""

    def __init__(self, model):
        super().__init__(model, float)  # a loss that is a number, for any rows
        self.opening, self.go = asyncio.Event(), asyncio.Event()

    async def open(self, batch, idle):
        if len(batch[0]) == 1:
            self.opening.set()
            await self.go.wait()

    def fits(self, shapes):
        return shapes[0][0] == 2


def test_a_pause_while_the_last_batchs_graph_is_made_keeps_its_step_from_beginning():
    async def main():
        program = Apart(await echo())
        async with Trainer._of(program) as trainer:
            rows = np.arange(5.0)
            fit = trainer.fit((rows,), batch_size=2, shuffle=False)
            await program.opening.wait()
            still = fit.pause()
            program.go.set()
            await still
            assert program.model.runs == 2
            fit.resume()
            assert (await fit).losses == [0, 1, 2]

    asyncio.run(main())


@both
def test_what_a_pause_changes_while_the_program_is_opened_is_looked_up(kind):
    class Slow(EchoProgram):
        now, found = "before", None

        async def open(self, batch, idle):
            found = self.now
            opening.set()
            await go.wait()
            self.found = found

    opening, go = asyncio.Event(), asyncio.Event()

    async def main():
        program = Slow(await echo())
        async with Trainer._of(program) as trainer:
            data, options = data_of(kind, 1)
            fit = trainer.fit(data, **options)
            await opening.wait()
            fit.pause()
            program.now = "after"
            fit.resume()
            go.set()
            await fit
            assert program.found == "after"

    asyncio.run(main())


class Renewed(EchoProgram):
    """What a change of the module makes of a program: another model, the old closed."""

    changed = False
    until = 0

    async def open(self, batch, idle):
        if idle and self.changed:
            self.changed = False
            await self.model.close()
            self.model = await echo()
            self.model.hold()
            self.model.release(self.until)


@both
@pytest.mark.parametrize("steps", [0, 1])
def test_a_program_made_anew_in_a_pause_goes_on_where_the_old_one_was(kind, steps):
    async def undisturbed(data, options):
        trainer, _ = await echo_trainer(seed=3)
        async with trainer:
            return await trainer.fit(data, epochs=5, **options)

    async def main():
        data, options = data_of(kind, 10)
        options.pop("shuffle", None)
        program = Renewed(await echo())
        trainer = Trainer._of(program, seed=3)
        async with trainer:
            program.model.hold()
            program.model.release(2)
            fit = trainer.fit(data, epochs=5, **options)
            begun = 3  # in the middle of an epoch, at the end of one, past several
            for more in (7, 5, 23, 100):
                old = program.model
                await old.begun(begun)
                still = fit.pause()
                old.release()
                await still
                program.changed, program.until = True, steps + more - 1
                for _ in range(steps):
                    await trainer.step(np.array([50.0]))
                begun = steps + more
                fit.resume()
                while program.model is old:
                    await asyncio.sleep(0)
            history = await fit
        expected = await undisturbed(data, options)
        assert history.losses == expected.losses
        assert history.epochs == expected.epochs
        assert (program.steps, program.epochs) == (50 + 4 * steps, 5)

    asyncio.run(main())


def test_two_event_loops_do_not_use_a_trainer_at_once(tmp_path):
    async def main():
        trainer, model = await echo_trainer()
        async with trainer:
            model.hold()

            async def step():
                return await trainer.step(np.array([50.0]))

            other = asyncio.create_task(asyncio.to_thread(asyncio.run, step()))
            await model.begun(1)
            try:
                with pytest.raises(RuntimeError, match="another event loop"):
                    await trainer.save(tmp_path / "saved")
                with pytest.raises(RuntimeError, match="another event loop"):
                    await trainer.fit(Batches([1]))
            finally:
                model.release()
            assert await other == {"loss": 50.0}
            await trainer.save(tmp_path / "saved")
            assert (await trainer.fit(Batches([1]))).losses == [1]

    asyncio.run(main())


class Two(EchoProgram):
    """Odd batches take another graph than even ones."""

    async def open(self, batch, idle):
        self.model = self.models[int(batch[0][0]) % 2]

    async def close(self):
        for model in self.models:
            await model.close()


def test_steps_of_two_graphs_never_run_at_once():
    async def main():
        program = Two(None)
        program.models = [await echo(name="even"), await echo(name="odd")]
        async with Trainer._of(program) as trainer:
            even, odd = program.models
            even.hold()
            fit = trainer.fit(Batches([0, 2, 1, 4, 3]))
            await even.begun(1)
            while even.stats().submitted < 2:
                await asyncio.sleep(0)
            for _ in range(50):
                await asyncio.sleep(0)
            at_once = odd.stats().submitted
            even.release()
            assert at_once == 0
            assert (await fit).losses == [0, 2, 1, 4, 3]

    asyncio.run(main())
