"""A torch module's run and those who come between its steps."""

from __future__ import annotations

import asyncio

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.optim import lr_scheduler as lrs  # noqa: E402

from pyasyncml.training import Trainer  # noqa: E402

BATCH = torch.ones(2, 4), torch.ones(2, 1)


class Source:
    """Batches, of which there are so many, and what is done before the end."""

    def __init__(self, batches, before_end):
        self.batches, self.before_end = batches, before_end

    def __len__(self):
        return len(self.batches)

    async def __aiter__(self):
        for batch in self.batches:
            yield batch
        await self.before_end()


def trainer_of(net, scheduler=None, **options):
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    if scheduler is not None:
        options["scheduler"] = scheduler(optimizer)
    return Trainer(net, loss=F.mse_loss, optimizer=optimizer, seed=1, **options)


def test_a_step_of_its_own_at_an_epochs_end_ends_no_epoch():
    async def main():
        trainer = trainer_of(nn.Linear(4, 1), lambda o: lrs.StepLR(o, 1, 0.5))
        async with trainer:

            async def step():
                await trainer.step(*BATCH)

            run = trainer.fit(Source([BATCH] * 3, step), epochs=2)
            assert len((await run).losses) == 6
            assert trainer._program._scheduler.last_epoch == 2

    asyncio.run(main())


def test_a_checkpoint_of_an_epochs_last_step_goes_on_with_the_epochs_end(tmp_path):
    def fresh():
        return trainer_of(nn.Linear(4, 1), lambda o: lrs.StepLR(o, 1, 0.5))

    async def main():
        async with fresh() as trainer:

            async def save():
                if not (tmp_path / "saved").exists():
                    while trainer._position.step < 3:
                        await asyncio.sleep(0)
                    await trainer.save(tmp_path / "saved")

            expected = await trainer.fit(Source([BATCH] * 3, save), epochs=2)
        async with fresh() as trainer:
            await trainer.restore(tmp_path / "saved")
            history = await trainer.fit(Source([BATCH] * 3, save), epochs=2)
            assert history.losses == expected.losses[3:]
            assert trainer._program._scheduler.last_epoch == 2

    asyncio.run(main())


class Sized(nn.Module):
    """Takes a graph of its own for each number of rows."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 1)

    def forward(self, x):
        return self.fc(x) * float(x.shape[0])


def test_closing_that_is_cancelled_leaves_no_model_open():
    async def main():
        async with trainer_of(Sized()) as trainer:
            for rows in (2, 3):
                await trainer.step(torch.ones(rows, 4), torch.ones(rows, 1))
            program = trainer._program
            models = [model for _, model in program._models.values()]
            assert len(models) == 2
            closing = asyncio.create_task(program.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            statuses = [model.health().status for model in models]
            assert set(statuses) <= {"closing", "closed"}
            for model in models:
                await model.close()

    asyncio.run(main())


class Breakable(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 1)
        self.broken = False

    def forward(self, x):
        if self.broken:
            raise ArithmeticError("broken")
        return self.fc(x)


def test_a_step_that_cannot_be_traced_anew_does_not_end_the_run_beside_it():
    async def main():
        net = Breakable()
        async with trainer_of(net) as trainer:

            async def step():
                net.broken = True
                net.eval()  # which is part of the graph
                with pytest.raises(ArithmeticError):
                    await trainer.step(*BATCH)
                net.broken = False

            run = trainer.fit(Source([BATCH] * 3, step))
            assert len((await run).losses) == 3

    asyncio.run(main())
