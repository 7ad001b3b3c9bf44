"""One module trained and served by one process, and what a checkpoint keeps."""

from __future__ import annotations

import asyncio
import copy
import random
import subprocess
import sys
from pathlib import Path

import pytest
from runs import runs

import pyasyncml as ml
from pyasyncml import Error, LoadError, _weights

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def net_and_data(dropout=0.0):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Dropout(dropout), nn.Linear(32, 4)
    )
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(60, 16, generator=generator)
    return net, x, x[:, :4].argmax(1)


def trainer_of(net, *, lr=0.05, seed=3, scheduler=True):
    optimizer = torch.optim.Adam(net.parameters(), lr)
    return ml.Trainer(
        net,
        loss=functional.cross_entropy,
        optimizer=optimizer,
        scheduler=(
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
            if scheduler
            else None
        ),
        scheduler_interval="step",
        seed=seed,
    )


def everything(trainer):
    program = trainer._program
    return [
        *(t.clone() for t in program._module.state_dict().values()),
        *(
            torch.as_tensor(value).clone()
            for state in program._optimizer.state.values()
            for _, value in sorted(state.items())
        ),
        torch.tensor(program._optimizer.param_groups[0]["lr"]),
        program._generators[0].get_state(),
    ]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def outputs_of(module, x):
    twin = copy.deepcopy(module).eval()
    with torch.no_grad():
        return twin(x)


def test_a_model_serves_the_modules_memory_until_a_trainer_drives_it():
    net, x, y = net_and_data()
    net.eval()

    async def main():
        async with ml.load(net, inputs=(x,)) as model:
            with torch.no_grad():
                net[0].weight.mul_(2)
            before = await model.infer(x)
            assert torch.equal(before, outputs_of(net, x))
            net.train()
            async with trainer_of(net) as trainer:
                await trainer.fit((x, y), epochs=2)
                assert torch.equal(await model.infer(x), before)
                await model.update_weights(trainer)
                assert torch.equal(await model.infer(x), outputs_of(net, x))
                assert not torch.equal(await model.infer(x), before)

    asyncio.run(main())


def test_a_model_loaded_while_a_trainer_drives_the_module_serves_a_copy():
    net, x, y = net_and_data()

    async def main():
        async with trainer_of(net) as trainer:
            await trainer.step(x, y)
            net.eval()
            async with ml.load(net, inputs=(x,)) as model:
                net.train()
                then = outputs_of(net, x)
                await trainer.step(x, y)
                assert torch.equal(await model.infer(x), then)

    asyncio.run(main())


def test_a_model_reloaded_from_a_module_serves_copies_once_that_is_trained():
    net, x, y = net_and_data()
    other = copy.deepcopy(net).eval()
    net.eval()

    async def main():
        async with ml.load(other, inputs=(x,)) as model:
            await model.reload(net)
            before = await model.infer(x)
            assert torch.equal(before, outputs_of(net, x))
            net.train()
            async with trainer_of(net) as trainer:
                await trainer.step(x, y)
                assert torch.equal(await model.infer(x), before)
                net.eval()
                await model.reload(net)
                assert torch.equal(await model.infer(x), outputs_of(net, x))
                then = outputs_of(net, x)
                net.train()
                await trainer.step(x, y)
                assert torch.equal(await model.infer(x), then)
            async with trainer_of(other) as trainer:  # which nobody serves any more
                await trainer.step(x, y)
                assert torch.equal(await model.infer(x), then)

    asyncio.run(main())


@pytest.mark.parametrize("meanwhile", ["close", "reload"])
def test_a_model_that_is_closed_or_reloaded_while_it_gets_its_copy(
    meanwhile, monkeypatch
):
    net, x, y = net_and_data()
    other = copy.deepcopy(net).eval()
    with torch.no_grad():
        other[0].weight.mul_(2)
    net.eval()

    async def main():
        model = await ml.load(net, inputs=(x,))
        rival = await ml.load(net, inputs=(x,))
        before = await rival.infer(x)
        net.train()
        successor = _weights.Copies.successor

        async def late(self, served):
            made = await successor(self, served)
            if served is model:
                await (model.close() if meanwhile == "close" else model.reload(other))
            return made

        monkeypatch.setattr(_weights.Copies, "successor", late)
        async with trainer_of(net) as trainer, rival:
            assert (await trainer.step(x, y))["loss"] > 0
            assert torch.equal(await rival.infer(x), before)
            if meanwhile == "reload":
                assert torch.equal(await model.infer(x), outputs_of(other, x))
            await model.close()

    asyncio.run(main())


def test_a_step_that_is_traced_anew_publishes_nothing():
    net, x, y = net_and_data()
    net.eval()

    async def main():
        async with ml.load(net, inputs=(x,)) as model, trainer_of(net) as trainer:
            before = await model.infer(x)
            await trainer.step(x, y)
            net.train()
            await trainer.step(x, y)
            assert torch.equal(await model.infer(x), before)

    asyncio.run(main())


def test_weights_published_during_a_run_are_of_one_moment():
    """A module whose outputs tell whether its tensors are of one step."""

    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ParameterList(
                nn.Parameter(torch.zeros(50)) for _ in range(8)
            )

        def forward(self, x):
            return torch.stack([part.mean() for part in self.parts]) + 0 * x.mean()

    net = Counter()
    x = torch.zeros(64, 2)

    def loss(module, x):
        return torch.stack([part.sum() for part in module.parts]).sum() + 0 * x.mean()

    async def main():
        optimizer = torch.optim.SGD(net.parameters(), 1.0)
        trainer = ml.Trainer(net, loss=loss, optimizer=optimizer)
        async with trainer, ml.load(net, inputs=(torch.zeros(2, 2),)) as model:
            run = trainer.fit((x,), epochs=3000, batch_size=32)
            seen = set()
            while not run.done():
                await model.update_weights(trainer)
                out = await model.infer(torch.zeros(2, 2))
                assert len(set(out.tolist())) == 1
                seen.add(out[0].item())
            await run
            await model.update_weights(trainer)
            out = await model.infer(torch.zeros(2, 2))
            assert out.tolist() == [-6000.0] * 8
            assert len(seen) > 3

    asyncio.run(main())


def test_fit_publishes_to_models_and_in_the_end():
    net, x, y = net_and_data()

    async def main():
        net.eval()
        async with ml.load(net, inputs=(x,)) as model:
            net.train()
            async with trainer_of(net) as trainer:
                await trainer.fit((x, y), epochs=50, publish=model, publish_every=10)
                assert torch.equal(await model.infer(x), outputs_of(net, x))

    asyncio.run(main())


def test_a_fit_that_publishes_lets_a_reload_go_first_and_does_without_closed_models():
    net, x, y = net_and_data()

    async def main():
        net.eval()
        async with ml.load(net, inputs=(x,)) as model, ml.load(net, inputs=(x,)) as two:
            net.train()
            async with trainer_of(net) as trainer:
                # As long as a reload is under way.
                with model._reloading:
                    run = trainer.fit(
                        (x, y), epochs=50, publish=[two, model], publish_every=10
                    )
                    await two.close()
                    with pytest.raises(ml.ReloadUnderWay):
                        await model.update_weights(trainer)
                    async for progress in run:
                        if progress.step >= 20:
                            break
                await run
                assert torch.equal(await model.infer(x), outputs_of(net, x))

    asyncio.run(main())


def test_weights_go_only_where_they_fit():
    net, x, _ = net_and_data()
    other = nn.Linear(16, 4)

    async def main():
        async with (
            ml.load(other, inputs=(x,)) as model,
            ml.load(other) as eager,
            trainer_of(net) as trainer,
        ):
            with pytest.raises(LoadError, match="no 'weight'"):
                await model.update_weights(trainer)
            assert torch.equal(await model.infer(x), outputs_of(other, x))
            with pytest.raises(Error, match="live module with example"):
                await eager.update_weights(trainer)
            with pytest.raises(Error, match="another trainer"):
                trainer_of(net)

    asyncio.run(main())


def test_a_restored_run_goes_on_bit_by_bit(tmp_path):
    net, x, y = net_and_data(dropout=0.3)
    twin = copy.deepcopy(net)

    async def whole():
        async with trainer_of(net) as trainer:
            history = await trainer.fit((x, y), epochs=300, batch_size=8)
            return history.losses, everything(trainer)

    async def interrupted():
        losses = []
        async with trainer_of(twin) as trainer:
            run = trainer.fit((x, y), epochs=300, batch_size=8)
            async for progress in run:
                if progress.step >= 5:
                    break
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            losses += run._losses
            await trainer.save(tmp_path / "checkpoint")
        other, _, _ = net_and_data(dropout=0.3)
        with torch.no_grad():
            other[0].weight.zero_()
        async with trainer_of(other, seed=99) as trainer:
            await trainer.restore(tmp_path / "checkpoint")
            history = await trainer.fit((x, y), epochs=300, batch_size=8)
            return losses + history.losses, everything(trainer)

    losses, state = asyncio.run(whole())
    assert len(losses) == 2400
    again, restored = asyncio.run(interrupted())
    assert again == losses
    assert same(restored, state)


def test_no_step_is_lost_or_doubled_whenever_it_is_stopped(tmp_path):
    """Cancels, pauses, saves and restores at random moments."""
    draw = random.Random(4)
    start, x, y = net_and_data(dropout=0.2)

    async def whole():
        async with trainer_of(copy.deepcopy(start)) as trainer:
            history = await trainer.fit((x, y), epochs=5, batch_size=7)
            return history.losses, everything(trainer)

    async def pieces(path):
        losses = []
        net = copy.deepcopy(start)
        while True:
            async with trainer_of(net) as trainer:
                if losses:
                    await trainer.restore(path)
                run = trainer.fit((x, y), epochs=5, batch_size=7)
                until = draw.randrange(1, 25)
                async for progress in run:
                    if draw.random() < 0.3:
                        still = run.pause()
                        if draw.random() < 0.5:
                            await still
                            steps = len(run.losses)
                        else:
                            steps = None
                        await trainer.save(path)
                        assert steps in (None, len(run.losses))
                        run.resume()
                    if progress.step >= until:
                        break
                run.cancel()
                try:
                    await run
                except asyncio.CancelledError:
                    losses += run._losses
                    await trainer.save(path)
                    if not trainer._position.interrupted:
                        return losses, everything(trainer)
                else:
                    return losses + run._losses, everything(trainer)
            net = copy.deepcopy(start)

    losses, state = asyncio.run(whole())
    for i in range(runs(5)):
        again, restored = asyncio.run(pieces(tmp_path / f"checkpoint-{i}"))
        assert again == losses
        assert same(restored, state)


def test_a_killed_run_goes_on_from_its_last_checkpoint_bit_by_bit(tmp_path):
    script = Path(__file__).parent / "isolated" / "killed_while_training.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(runs(2))],
        capture_output=True,
        text=True,
        check=False,
        timeout=60 + 20 * runs(2),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_checkpoint_of_something_else_changes_nothing(tmp_path):
    net, x, y = net_and_data()

    async def main():
        async with trainer_of(net) as trainer:
            await trainer.fit((x, y))
            await trainer.save(tmp_path / "one")
            state = everything(trainer)
        other = nn.Linear(16, 4)
        async with trainer_of(other) as trainer:
            with pytest.raises(LoadError, match="another module"):
                await trainer.restore(tmp_path / "one")
        async with trainer_of(net, scheduler=False) as trainer:
            with pytest.raises(LoadError, match="with a learning-rate scheduler"):
                await trainer.restore(tmp_path / "one")
            (tmp_path / "one").write_bytes((tmp_path / "one").read_bytes()[:-9])
            with pytest.raises(LoadError, match="damaged|no checkpoint"):
                await trainer.restore(tmp_path / "one")
            with pytest.raises(LoadError, match="No such file"):
                await trainer.restore(tmp_path / "none")
        assert same([*net.state_dict().values()], state[: len(net.state_dict())])

    asyncio.run(main())
