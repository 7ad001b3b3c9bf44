"""`Trainer` on live torch modules, against the loop one writes by hand."""

from __future__ import annotations

import asyncio
import copy
import operator
import os
import threading
import time

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml import BackendError, InputError, LoadError, ModelClosed

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def one_thread():
    """What is compared with runs on one thread, as the trainer's worker does: kernels
    add in another order on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ROWS, SEED = 100, 11


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x):
        x = functional.relu(self.norm(self.conv(x.view(-1, 1, 8, 8))))
        return self.head(functional.max_pool2d(x, 2).flatten(1))


class Transformer(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.encoder(x.view(-1, 8, 8)).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 64, generator=generator)
    return x, (x[:, :10] + x[:, 20:30]).argmax(1)


def pair(make, optimizer):
    """The same net twice, each with an optimizer."""
    torch.manual_seed(1)
    net = make()
    twin = copy.deepcopy(net)
    return (net, optimizer(net.parameters())), (twin, optimizer(twin.parameters()))


def by_hand(net, optimizer, *, epochs, batch, scheduler=None, clip=None, x, y):
    """The eager loop over the trainer's order."""
    losses = []
    for epoch in range(epochs):
        order = np.random.default_rng([SEED, epoch]).permutation(len(x))
        for rows in torch.from_numpy(order).split(batch):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x[rows]), y[rows])
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            losses.append(loss.item())
        if scheduler is not None:
            scheduler.step()
    return losses


def assert_same_state(one, other):
    for (name, a), (_, b) in zip(
        one.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def assert_same_optimizer(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one["state"].keys() == other["state"].keys()
    for key, state in one["state"].items():
        for name, value in state.items():
            twin = other["state"][key][name]
            if torch.is_tensor(value):
                assert torch.equal(value, twin), name
            else:
                assert value == twin, name
    assert one["param_groups"] == other["param_groups"]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(
        p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4
    ),
    "adam": lambda p: torch.optim.Adam(p, 1e-3, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [mlp, Convolutional, Transformer])
def test_a_fit_is_the_eager_loop_to_the_last_bit(make, optimizer):
    (net, ours), (twin, theirs) = pair(make, OPTIMIZERS[optimizer])
    x, y = digits()

    async def main():
        trainer = ml.Trainer(
            net,
            loss=functional.cross_entropy,
            optimizer=ours,
            scheduler=torch.optim.lr_scheduler.StepLR(ours, 2, 0.5),
            clip_norm=1.0,
            seed=SEED,
        )
        async with trainer:
            return await trainer.fit((x, y), epochs=5, batch_size=16)

    history = asyncio.run(main())
    scheduler = torch.optim.lr_scheduler.StepLR(theirs, 2, 0.5)
    losses = by_hand(
        twin, theirs, epochs=5, batch=16, scheduler=scheduler, clip=1.0, x=x, y=y
    )
    assert history.losses == losses
    assert_same_state(net, twin)
    assert_same_optimizer(ours, theirs)
    assert len(history.epochs) == 5


def test_batches_numpy_and_single_steps_train_as_arrays_do():
    def fit(data):
        async def main():
            torch.manual_seed(1)
            net = mlp()
            optimizer = torch.optim.SGD(net.parameters(), 0.1)
            trainer = ml.Trainer(
                net, loss=functional.cross_entropy, optimizer=optimizer
            )
            async with trainer:
                if data == "steps":
                    for batch in batches:
                        await trainer.step(*batch)
                elif data == "arrays":
                    await trainer.fit((x, y), shuffle=False, batch_size=16)
                else:
                    await trainer.fit(data)
            return net

        return asyncio.run(main())

    x, y = digits()
    batches = list(zip(x.split(16), y.split(16), strict=True))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=16
    )
    expected = fit("arrays")
    for data in (
        batches,
        loader,
        [(a.numpy(), b.numpy()) for a, b in batches],
        "steps",
    ):
        assert_same_state(fit(data), expected)


def test_a_last_batch_of_one_row_is_a_step_of_its_own():
    (net, ours), (twin, theirs) = pair(mlp, OPTIMIZERS["sgd"])
    x, y = digits()
    x, y = x[:33], y[:33]

    async def main():
        trainer = ml.Trainer(
            net, loss=functional.cross_entropy, optimizer=ours, seed=SEED
        )
        async with trainer:
            return await trainer.fit((x, y), epochs=2, batch_size=16)

    history = asyncio.run(main())
    assert history.losses == by_hand(twin, theirs, epochs=2, batch=16, x=x, y=y)
    assert_same_state(net, twin)


def test_going_on_in_plain_pytorch_and_back_gives_what_one_loop_gives():
    (net, ours), (twin, theirs) = pair(mlp, OPTIMIZERS["adamw"])
    x, y = digits()

    def eager(module, optimizer):
        optimizer.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()

    async def main():
        trainer = ml.Trainer(net, loss=functional.cross_entropy, optimizer=ours)
        async with trainer:
            for _ in range(3):
                await trainer.step(x, y)
                eager(net, ours)
                ours.load_state_dict(copy.deepcopy(ours.state_dict()))
            with pytest.raises(ml.Error, match="state: it is in the module"):
                await trainer.state()

    asyncio.run(main())
    for _ in range(6):
        eager(twin, theirs)
    assert_same_state(net, twin)
    assert_same_optimizer(ours, theirs)


def test_validation_is_the_mean_over_its_rows_in_the_modules_evaluation_mode():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), mlp_tail()
    )
    x, y = digits()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)

    def loss(module, x, y):
        out = module(x)
        right = (out.argmax(1) == y).double().mean()
        return functional.cross_entropy(out, y), {"accuracy": right}

    async def main():
        trainer = ml.Trainer(net, loss=loss, optimizer=optimizer, seed=SEED)
        async with trainer:
            arrays = await trainer.fit(
                (x, y), batch_size=16, validation=(x[:33], y[:33])
            )
            loader = torch.utils.data.DataLoader(
                torch.utils.data.TensorDataset(x[:33], y[:33]), batch_size=8
            )
            expected = [values(x[:33], y[:33])]
            batches = await trainer.fit((x, y), batch_size=16, validation=loader)
            expected.append(values(x[:33], y[:33]))
            return arrays, batches, expected

    def values(x, y):
        net.eval()
        with torch.no_grad():
            out = net(x)
        net.train()
        return {
            "loss": functional.cross_entropy(out, y).item(),
            "accuracy": (out.argmax(1) == y).double().mean().item(),
        }

    arrays, batches, expected = asyncio.run(main())
    assert net.training
    assert arrays.epochs[0].validation == pytest.approx(expected[0], rel=1e-5)
    assert batches.epochs[0].validation == pytest.approx(expected[1], rel=1e-5)
    assert arrays.metrics.keys() == {"accuracy"}


def mlp_tail():
    return nn.Linear(32, 10)


def test_a_validation_that_fails_leaves_none_of_its_runs_behind():
    x, y = digits()
    asked = []

    class Data:
        def __iter__(self):
            yield from ((x[i : i + 8], y[i : i + 8]) for i in range(0, 16, 8))
            raise RuntimeError("no more")

    async def main():
        net = mlp_tail()
        net = nn.Sequential(nn.Linear(64, 32), net)
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        trainer = ml.Trainer(net, loss=functional.cross_entropy, optimizer=optimizer)
        async with trainer:
            infer = ml.Model.infer

            def watched(model, *inputs, **options):
                asked.append(infer(model, *inputs, **options))
                return asked[-1]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ml.Model, "infer", watched)
                with pytest.raises(RuntimeError, match="no more"):
                    await trainer.fit((x, y), batch_size=16, validation=Data())
            assert asked
            assert all(future.done() for future in asked)

    asyncio.run(main())


def test_a_schedule_that_follows_the_validation_is_stepped_after_each_epoch():
    torch.manual_seed(1)
    net = mlp()
    x, y = digits()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=0, threshold=1e9, threshold_mode="abs"
    )

    async def main():
        trainer = ml.Trainer(
            net, loss=functional.cross_entropy, optimizer=optimizer, scheduler=plateau
        )
        async with trainer:
            await trainer.fit((x, y), epochs=3, validation=(x, y))

    asyncio.run(main())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


@pytest.mark.parametrize("step", [False, True], ids=["pause", "step"])
@pytest.mark.parametrize("change", ["mode", "unfrozen", "rate"])
def test_what_is_changed_in_a_pause_counts_from_the_next_step_on(change, step):
    def make():
        net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 10))
        net[0].requires_grad_(change != "unfrozen")
        return net

    def changed(net, optimizer):
        if change == "mode":
            net.eval()
        elif change == "unfrozen":
            net[0].requires_grad_(True)
        else:
            optimizer.param_groups[0]["lr"] = 0.001

    x, y = digits()
    (net, optimizer), (twin, twins_optimizer) = pair(
        make, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)
    )

    async def main():
        trainer = ml.Trainer(
            net, loss=functional.cross_entropy, optimizer=optimizer, seed=SEED
        )
        async with trainer:
            run = trainer.fit((x, y), epochs=100_000, batch_size=32)
            async for progress in run:
                if progress.step > 3:
                    break
            await run.pause()
            before = len(run.losses)
            changed(net, optimizer)
            if step:
                await trainer.step(x[:32], y[:32])
            run.resume()
            async for progress in run:
                if progress.step > before + 20:
                    break
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            return run.losses, before

    losses, before = asyncio.run(main())
    expected = []

    def one(rows):
        twins_optimizer.zero_grad()
        loss = functional.cross_entropy(twin(x[rows]), y[rows])
        loss.backward()
        twins_optimizer.step()
        return loss.item()

    for epoch in range(-(-len(losses) // 4)):
        order = np.random.default_rng([SEED, epoch]).permutation(len(x))
        for rows in torch.from_numpy(order).split(32)[: len(losses) - 4 * epoch]:
            if len(expected) == before:
                changed(twin, twins_optimizer)
                if step:
                    one(slice(32))
            expected.append(one(rows))
    assert losses == expected
    assert_same_state(net, twin)


def test_training_goes_on_while_somebody_holds_the_gil():
    net = mlp()
    x, y = digits()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)

    async def main():
        trainer = ml.Trainer(net, loss=functional.cross_entropy, optimizer=optimizer)
        async with trainer:
            run = trainer.fit((x, y), epochs=100_000, batch_size=16)
            async for progress in run:
                if progress.step > 100:
                    break
            before = run._steps.done
            until = time.monotonic() + 0.3
            hold_the_gil(0.3)
            assert time.monotonic() >= until
            during = run._steps.done - before
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            return during

    # Steps of some 100 µs: thousands, were it alone.
    assert asyncio.run(main()) > 100


def hold_the_gil(seconds):
    """Without a single switch to another thread."""
    import ctypes

    libc = ctypes.PyDLL(None)
    libc.usleep(int(seconds * 1e6))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"module": 3}, TypeError, "module"),
        ({"loss": 3}, TypeError, "loss"),
        ({"optimizer": 3}, TypeError, "optimizer.*int"),
        ({"optimizer": "lbfgs"}, TypeError, "AdamW"),
        ({"scheduler": 3}, TypeError, "scheduler"),
        ({"accumulate": 0}, ValueError, "accumulate"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm"),
        ({"threads": 0}, ValueError, "threads"),
        ({"device": "cuda:0"}, ValueError, "no cuda:0 to move to"),
        ({"device": "tape"}, ValueError, "device"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_refused_where_they_are_given(change, error, words):
    net = mlp()
    arguments = {
        "module": net,
        "loss": functional.cross_entropy,
        "optimizer": torch.optim.SGD(net.parameters(), 0.1),
    } | change
    if change.get("optimizer") == "lbfgs":
        arguments["optimizer"] = torch.optim.LBFGS(net.parameters())
    with pytest.raises(error, match=words):
        ml.Trainer(arguments.pop("module"), **arguments)


def test_what_the_step_does_not_take_is_an_input_error_and_nothing_is_trained():
    net = mlp()
    before = copy.deepcopy(net)
    x, y = digits()

    async def main():
        trainer = ml.Trainer(
            net,
            loss=functional.cross_entropy,
            optimizer=torch.optim.SGD(net.parameters(), 0.1),
        )
        async with trainer:
            with pytest.raises(InputError, match="reduction dim.*float32.32, 5."):
                await trainer.fit((x[:, :5], y))
            with pytest.raises(BackendError, match="same dtype"):
                await trainer.fit((x.double(), y))
            assert_same_state(net, before)
            await trainer.fit((x, y))
            after = copy.deepcopy(net)
            with pytest.raises(InputError, match="batch"):
                await trainer.fit((x[:, :5], y))
            with pytest.raises(InputError, match="float32"):
                await trainer.fit((x.double(), y))
            with pytest.raises(BackendError, match="out of bounds|Target"):
                await trainer.fit((x, y + 100))
            assert_same_state(net, after)

    asyncio.run(main())


def test_a_branch_on_values_is_named_with_its_line():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            if x.sum() > 0:  # the branch
                return self.fc(x)
            return -self.fc(x)

    net = Branching()

    async def main():
        trainer = ml.Trainer(
            net,
            loss=functional.cross_entropy,
            optimizer=torch.optim.SGD(net.parameters(), 0.1),
        )
        async with trainer:
            with pytest.raises(LoadError, match=r"test_trainer.py:\d+.*# the branch"):
                await trainer.fit(digits())

    asyncio.run(main())


def test_other_tasks_go_on_while_it_trains():
    net = mlp()
    x, y = digits()

    async def main():
        trainer = ml.Trainer(
            net,
            loss=functional.cross_entropy,
            optimizer=torch.optim.SGD(net.parameters(), 0.1),
        )
        async with trainer:
            await trainer.step(x, y)
            run = trainer.fit((x, y), epochs=200)
            turns = 0
            while not run.done():
                await asyncio.sleep(0)
                turns += 1
            assert turns > 100
            return (await run).steps

    assert asyncio.run(main()) == 200 * 4


class Fixed(nn.Linear):
    """Asks for its batch's size: each size has a graph of its own."""

    def forward(self, x):
        return super().forward(x) * int(x.shape[0])


def test_of_graphs_for_one_size_each_those_used_last_are_kept(monkeypatch):
    monkeypatch.setattr("pyasyncml.training._torch_program._KEPT", 3)
    (net, optimizer), (twin, twins_optimizer) = pair(
        lambda: Fixed(64, 10), lambda p: torch.optim.SGD(p, 1e-4)
    )
    x, y = digits()
    data = [(x[:n], y[:n]) for n in (9, 8, 7, 9, 6, 5, 8, 9, 4)]

    async def main():
        trainer = ml.Trainer(net, loss=functional.cross_entropy, optimizer=optimizer)
        async with trainer:
            await ml.call(int)  # its threads
            before = len(os.listdir("/proc/self/task"))
            history = await trainer.fit(data, validation=data)
            await trainer.step(*data[0])
            # Three graphs of the step and three of the validation.
            assert len(os.listdir("/proc/self/task")) <= before + 6
            return history

    with pytest.warns(RuntimeWarning, match="traced 5 times"):
        history = asyncio.run(main())
    expected = []
    for inputs, target in [*data, data[0]]:
        twins_optimizer.zero_grad()
        loss = functional.cross_entropy(twin(inputs), target)
        loss.backward()
        twins_optimizer.step()
        expected.append(loss.item())
    assert history.losses == expected[:-1]
    assert_same_state(net, twin)


class Gated(nn.Module):
    """Its Python, which only tracing runs, waits to be let go on."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def forward(self, x):
        self.begun.set()
        assert self.gate.wait(30)
        return self.fc(x)

    def hold(self):
        self.begun.clear()
        self.gate.clear()

    async def traced(self):
        assert await asyncio.to_thread(self.begun.wait, 30)


def gated_trainer(kind=Gated):
    net = kind()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    return net, ml.Trainer(net, loss=functional.cross_entropy, optimizer=optimizer)


async def held(net, traces):
    """A task of what traces the module; its gate is closed, and it has come to it."""
    net.hold()
    task = asyncio.create_task(traces)
    await net.traced()
    return task


async def load(net, x):
    return await ml.load(net, inputs=(x,))


async def turns():
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_step_cancelled_while_it_is_traced_leaves_the_module_as_it_was():
    net, trainer = gated_trainer()
    parameters = list(net.parameters())

    async def main():
        async with trainer:
            step = await held(net, trainer.step(*digits()))
            step.cancel()
            await turns()
            net.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await step
            assert all(map(operator.is_, net.parameters(), parameters))
            assert (await trainer.step(*digits()))["loss"] > 0

    asyncio.run(main())


def test_nobody_looks_at_the_module_while_its_validation_is_traced(tmp_path):
    net, trainer = gated_trainer()
    x, y = digits()

    async def main():
        async with trainer, ml.load(net, inputs=(x,)) as model:
            await trainer.step(x, y)
            net.hold()
            run = trainer.fit((x, y), validation=(x, y), publish=model, publish_every=1)
            await net.traced()
            others = asyncio.gather(
                trainer.save(tmp_path / "saved"), trainer.step(x, y), trainer.step(x, y)
            )
            await turns()
            net.gate.set()
            before, after = (await others)[1:]
            assert before["loss"] > after["loss"] > 0
            validation = (await run).epochs[0].validation
            assert validation["loss"] == pytest.approx(before["loss"], abs=1e-6)
            await trainer.restore(tmp_path / "saved")

    asyncio.run(main())


def test_a_step_that_waits_when_the_trainer_is_closed_makes_no_model_anew():
    net, trainer = gated_trainer()

    async def main():
        net.hold()
        first = asyncio.create_task(trainer.step(*digits()))
        second = asyncio.create_task(trainer.step(*digits()))
        await net.traced()
        closing = asyncio.create_task(trainer.close())
        await turns()
        net.gate.set()
        assert (await first)["loss"] > 0
        with pytest.raises(ModelClosed):
            await second
        await closing

    asyncio.run(main())


def test_a_step_on_another_shape_does_not_lead_a_run_astray():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x).mean(1)

    net = Net()

    async def main():
        trainer = ml.Trainer(
            net,
            loss=functional.mse_loss,
            optimizer=torch.optim.SGD(net.parameters(), 0.01),
        )
        ten, five = ((torch.ones(8, n, 4), torch.ones(8, 2)) for n in (10, 5))
        async with trainer:
            await trainer.step(*ten)
            await trainer.step(*five)
            for data, options in (([five] * 50, {}), (five, {"epochs": 400})):
                run = trainer.fit(data, **options)
                while not run.done():
                    await trainer.step(*ten)
                    await asyncio.sleep(0.001)
                await run

    asyncio.run(main())


def test_a_model_loaded_while_the_first_step_is_traced_serves_a_copy():
    net, trainer = gated_trainer()
    x, y = digits()

    async def main():
        async with trainer:
            step = await held(net, trainer.step(x, y))
            loading = asyncio.create_task(load(net, x))
            await turns()
            net.gate.set()
            async with await loading as model:
                await step
                then = await model.infer(x)
                for _ in range(3):
                    await trainer.step(x, y)
                assert torch.equal(await model.infer(x), then)

    asyncio.run(main())


def test_an_export_waits_for_a_trace_before_it_looks_at_the_module():
    """Whose tensors are fake ones, on another device at times, until that ends."""
    looked = threading.Event()

    class Watched(Gated):
        def named_parameters(self, *args, **kwargs):
            if not self.gate.is_set():
                looked.set()
            return super().named_parameters(*args, **kwargs)

    net, trainer = gated_trainer(Watched)
    x, y = digits()

    async def main():
        async with trainer:
            step = await held(net, trainer.step(x, y))
            looked.clear()
            loading = asyncio.create_task(load(net, x))
            assert not await asyncio.to_thread(looked.wait, 0.3)
            net.gate.set()
            await step
            await (await loading).close()

    asyncio.run(main())


def test_a_trainer_whose_module_is_exported_meanwhile_waits_for_that(tmp_path):
    net, trainer = gated_trainer()
    twin, twins = gated_trainer()
    twin.load_state_dict(net.state_dict())
    x, y = digits()

    async def main():
        async with trainer, twins:
            await trainer.step(x, y)
            await trainer.save(tmp_path / "saved")
            loading = await held(net, load(net, x))
            others = asyncio.gather(
                trainer.step(x, y),
                trainer.save(tmp_path / "then"),
                trainer.restore(tmp_path / "saved"),
                trainer.step(x, y),
            )
            await turns()
            net.gate.set()
            async with await loading as model:
                second, _, _, again = await others
                await twins.step(x, y)
                assert second == await twins.step(x, y)
                assert again == second
                with torch.no_grad():
                    await model.update_weights(trainer)
                    assert torch.equal(await model.infer(x), net(x))

    asyncio.run(main())
