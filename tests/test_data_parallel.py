"""Training on several devices at once: here replicas on one CPU, held against the whole
batch on one device. (On simulated accelerators: test_data_parallel_devices.py.)"""

from __future__ import annotations

import asyncio
import copy
import functools

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml import BackendError, InputError, LoadError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from training_nets import make, mlp, same_state, torch_loop  # noqa: E402

pytestmark = pytest.mark.torch

TWO = ["cpu", "cpu"]
SEED = 5

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer_of(module, device, optimizer="adamw", **options):
    options.setdefault("loss", F.cross_entropy)
    return ml.Trainer(
        module,
        optimizer=OPTIMIZERS[optimizer](module.parameters()),
        device=device,
        seed=SEED,
        **options,
    )


def fitted(net, device, optimizer="adamw", *, rows=100, epochs=3, batch=16, **options):
    """A module after a fit, its history and its trainer, which is closed."""
    module, x, y = make(net)
    trainer = trainer_of(module, device, optimizer, **options)

    async def main():
        async with trainer:
            data = (x[:rows], y[:rows])
            history = await trainer.fit(data, epochs=epochs, batch_size=batch)
            if isinstance(device, list):
                check_replicas(trainer)
            return history

    return module, asyncio.run(main()), trainer


def check_replicas(trainer):
    """All replicas have the same parameters, buffers and optimizer state, to the
    bit."""
    step = trainer._program._first
    live = {source: n for n, (k, source) in step._places.items() if k == 0}
    others = 0
    for name, (replica, source) in step._places.items():
        if replica > 0:
            others += 1
            one, other = step.bound[live[source]], step.bound[name]
            assert one.data_ptr() != other.data_ptr()
            assert torch.equal(one.cpu(), other.cpu()), name
    assert others == (len(step.replicas) - 1) * len(live)


def assert_close(one, other, rtol=1e-4, atol=1e-5):
    for (name, a), b in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(
            a.cpu(), b.cpu(), rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


# --- the result of the whole batch ---


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", ["mlp", "transformer"])
@pytest.mark.parametrize("devices", [2, 3])
def test_several_devices_give_what_one_gives(net, optimizer, devices):
    expected, one, _ = fitted(net, None, optimizer, clip_norm=0.5)
    module, history, _ = fitted(net, ["cpu"] * devices, optimizer, clip_norm=0.5)
    np.testing.assert_allclose(history.losses, one.losses, rtol=1e-4)
    for net in (module, expected):
        for name, parameter in net.named_parameters():
            if name.endswith("in_proj_bias"):
                # A key's bias makes no difference: its gradient is 0 but for rounding,
                # and Adam makes steps of full size of that.
                parameter.data.chunk(3)[1].zero_()
    assert_close(module, expected, rtol=1e-3, atol=1e-4)


def test_schedules_and_accumulated_parts_are_those_of_one_device():
    def fit(device):
        module, x, y = make("mlp")
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        trainer = ml.Trainer(
            module,
            loss=F.cross_entropy,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
            accumulate=2,
            clip_norm=1.0,
            device=device,
            seed=SEED,
        )

        async def main():
            async with trainer:
                await trainer.fit((x[:96], y[:96]), epochs=4, batch_size=16)

        asyncio.run(main())
        return module, optimizer.state_dict()

    (one, state), (two, state_of_two) = fit(None), fit(TWO)
    assert_close(two, one)
    assert state["param_groups"] == state_of_two["param_groups"]
    for i, held in state["state"].items():
        torch.testing.assert_close(
            state_of_two["state"][i]["momentum_buffer"], held["momentum_buffer"]
        )


def test_autocast_is_that_of_one_device():
    expected, one, _ = fitted("mlp", None, autocast=torch.bfloat16)
    module, history, _ = fitted("mlp", TWO, autocast=torch.bfloat16)
    np.testing.assert_allclose(history.losses, one.losses, rtol=0.05)
    assert_close(module, expected, rtol=0.05, atol=0.02)
    assert not torch.equal(expected[0].weight, fitted("mlp", None)[0][0].weight)


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_an_uneven_batch_counts_by_rows(rows):
    module, x, y = make("mlp")
    twin = copy.deepcopy(module)

    async def main():
        async with trainer_of(module, TWO, "sgd") as trainer:
            first = await trainer.step(x[:32], y[:32])
            second = await trainer.step(x[:rows], y[:rows])
            check_replicas(trainer)
            return [first["loss"], second["loss"]]

    losses = asyncio.run(main())
    batches = [(x[:32], y[:32]), (x[:rows], y[:rows])]
    expected = torch_loop(twin, OPTIMIZERS["sgd"](twin.parameters()), iter(batches))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_close(module, twin)


def test_metrics_are_means_over_the_rows():
    def loss(module, x, y):
        out = module(x)
        right = (out.argmax(1) == y).float().mean()
        return F.cross_entropy(out, y), {"right": right}

    module, x, y = make("mlp")

    async def main():
        async with trainer_of(module, ["cpu"] * 3, loss=loss) as trainer:
            with torch.no_grad():
                _, expected = loss(module, x[:50], y[:50])
            values = await trainer.step(x[:50], y[:50])
            assert values["right"] == pytest.approx(expected["right"].item())

    asyncio.run(main())


def test_batch_norm_sees_its_devices_rows_and_keeps_the_firsts_statistics():
    module, x, y = make("convolutional")
    twin = copy.deepcopy(module)
    optimizer = OPTIMIZERS["sgd"](twin.parameters())
    batches = [(x[i : i + 15], y[i : i + 15]) for i in range(0, 90, 15)]

    async def main():
        async with trainer_of(module, TWO, "sgd") as trainer:
            await trainer.fit(batches)
            check_replicas(trainer)

    asyncio.run(main())
    for a, b in batches:  # as torch.nn.DataParallel does
        optimizer.zero_grad()
        second = copy.deepcopy(twin)
        parts = [(twin, a[:8], b[:8]), (second, a[8:], b[8:])]
        for net, part, target in parts:
            (F.cross_entropy(net(part), target) * len(part) / 15).backward()
        for one, other in zip(twin.parameters(), second.parameters(), strict=True):
            one.grad += other.grad
        optimizer.step()
    assert_close(module, twin)
    assert module[1].num_batches_tracked == len(batches)


# --- replicas ---


def test_replicas_stay_equal_to_the_bit_and_draw_what_the_seed_says():
    runs = [fitted("mlp with dropout", TWO, epochs=15) for _ in range(2)]
    (module, history, trainer), (again, history_again, _) = runs
    assert history.steps > 100
    assert history.losses == history_again.losses
    assert same_state(module.state_dict(), again.state_dict())
    one, other = (g.get_state() for g in trainer._program._generators)
    assert not torch.equal(one, other)
    alone, _, _ = fitted("mlp with dropout", None, epochs=15)
    assert not torch.equal(alone[0].weight, module[0].weight)


def test_what_is_done_to_the_module_between_steps_is_done_to_all_replicas():
    module, x, y = make("mlp")
    twin = copy.deepcopy(module)
    data = (x[:32], y[:32])

    def by_hand(net, optimizer):
        with torch.no_grad():
            net[0].weight.data.mul_(0.5)  # which counts no versions
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        torch_loop(net, optimizer, iter([data]))

    async def main():
        async with trainer_of(module, TWO) as trainer:
            for _ in range(3):
                await trainer.step(*data)
                by_hand(module, trainer._program._optimizer)
            await trainer.step(*data)
            check_replicas(trainer)

    asyncio.run(main())
    optimizer = OPTIMIZERS["adamw"](twin.parameters())
    for _ in range(3):
        torch_loop(twin, optimizer, iter([data]))
        by_hand(twin, optimizer)
    torch_loop(twin, optimizer, iter([data]))
    assert_close(module, twin)


def test_a_paused_and_a_cancelled_run_have_made_whole_steps_on_all_replicas(tmp_path):
    module, x, y = make("mlp with dropout")

    async def main():
        async with trainer_of(module, TWO) as trainer:
            run = trainer.fit((x, y), epochs=5000, batch_size=20)
            async for progress in run:
                if progress.step > 3:
                    break
            await run.pause()
            check_replicas(trainer)
            run.resume()
            await trainer.save(tmp_path / "saved")
            async for progress in run:
                if progress.step > 20:
                    break
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            check_replicas(trainer)
            position = trainer._position
            return len(run.losses), position.epoch * 5 + position.step

    steps, counted = asyncio.run(main())
    assert steps == counted > 20
    twin, x, y = make("mlp with dropout")

    async def reference():
        async with trainer_of(twin, TWO) as trainer:
            epochs, rest = divmod(steps, 5)
            if epochs:
                await trainer.fit((x, y), epochs=epochs, batch_size=20)
            order = np.random.default_rng([SEED, epochs]).permutation(len(x))
            for rows in torch.from_numpy(order).split(20)[:rest]:
                await trainer.step(x[rows], y[rows])

    asyncio.run(reference())
    assert same_state(module.state_dict(), twin.state_dict())


def test_a_failed_step_leaves_all_replicas_as_they_were():
    module, x, y = make("mlp")

    async def main():
        async with trainer_of(module, TWO) as trainer:
            await trainer.step(x[:8], y[:8])
            before = copy.deepcopy(module.state_dict())
            wrong = y[:8].clone()
            wrong[-1] = 99  # on the second device
            with pytest.raises(BackendError, match="out of bounds|Target"):
                await trainer.step(x[:8], wrong)
            assert same_state(module.state_dict(), before)
            check_replicas(trainer)
            await trainer.step(x[:8], y[:8])
            check_replicas(trainer)

    asyncio.run(main())


# --- checkpoints, models, validation ---


async def go_on(device, path, net="mlp with dropout", save=None, epochs=2):
    """Some epochs from a checkpoint, where there is one, and one written."""
    module, x, y = make(net)
    async with trainer_of(module, device) as trainer:
        if path is not None:
            await trainer.restore(path)
        if epochs:
            await trainer.fit((x, y), epochs=epochs, batch_size=16)
        if save is not None:
            await trainer.save(save)
    return module, trainer._program._optimizer


def test_a_restored_run_goes_on_to_the_bit(tmp_path):
    async def main():
        whole, optimizer = await go_on(TWO, None, epochs=4)
        await go_on(TWO, None, save=tmp_path / "saved")
        rest, other = await go_on(TWO, tmp_path / "saved")
        assert same_state(whole.state_dict(), rest.state_dict())
        assert same_state(optimizer.state_dict(), other.state_dict())

    asyncio.run(main())


def test_a_checkpoint_goes_to_one_device_and_back(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"

    async def main():
        expected, _ = await go_on(None, None, "mlp", epochs=6)
        await go_on(TWO, None, "mlp", save=one)
        await go_on(None, one, "mlp", save=other)
        module, _ = await go_on(TWO, other, "mlp")
        assert_close(module, expected, rtol=1e-3, atol=1e-4)

        # Where there is no state for a replica's dropout it follows from the others'.
        await go_on(None, None, save=one)
        twice = [await go_on(TWO, one) for _ in range(2)]
        assert same_state(*(module.state_dict() for module, _ in twice))

    asyncio.run(main())


def test_a_checkpoint_of_another_module_is_refused_and_nothing_changes(tmp_path):
    module, x, y = make("convolutional")

    async def main():
        await go_on(TWO, None, "mlp", save=tmp_path / "saved")
        async with trainer_of(module, TWO) as trainer:
            await trainer.step(x[:8], y[:8])
            before = copy.deepcopy(module.state_dict())
            with pytest.raises(LoadError, match="another module"):
                await trainer.restore(tmp_path / "saved")
            assert same_state(module.state_dict(), before)
            await trainer.step(x[:8], y[:8])
            check_replicas(trainer)

    asyncio.run(main())


def test_models_get_the_weights_and_validation_is_the_modules():
    module, x, y = make("mlp with dropout")

    async def main():
        module.eval()  # as it is served
        async with (
            ml.load(module, inputs=(x,)) as model,
            trainer_of(module.train(), TWO) as trainer,
        ):
            history = await trainer.fit(
                (x, y),
                epochs=3,
                batch_size=16,
                validation=(x[:9], y[:9]),
                publish=model,
                publish_every=2,
            )
            twin = copy.deepcopy(module).eval()
            with torch.no_grad():
                out = twin(x)
                loss = F.cross_entropy(out[:9], y[:9]).item()
            assert history.epochs[-1].validation["loss"] == pytest.approx(loss)
            torch.testing.assert_close(await model.infer(x), out)

    asyncio.run(main())


# --- what can't be ---


class Summed(nn.Module):
    reduction = "sum"

    def forward(self, out, y):
        return F.cross_entropy(out, y, reduction="sum")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"device": []}, ValueError, "at least one"),
        ({"device": 3}, TypeError, "a str or a list of them, got int"),
        ({"device": ["cpu", 3]}, TypeError, "a str or a list of them, got int"),
        ({"device": ["cpu", "cuda:0"]}, ValueError, "one kind.*cpu, cuda:0"),
        ({"device": ["cuda:0", "cuda"]}, ValueError, "cuda:0 is named twice"),
        ({"device": ["cuda:0", "cuda:1"]}, ValueError, "no cuda:"),
        ({"loss": nn.MSELoss(reduction="sum")}, ValueError, "MSELoss adds up"),
        ({"loss": Summed()}, ValueError, "Summed adds up"),
        (
            {"loss": functools.partial(F.cross_entropy, reduction="sum")},
            ValueError,
            "cross_entropy adds up",
        ),
    ],
    ids=str,
)
def test_what_devices_cannot_share_is_refused_at_once(change, error, words):
    with pytest.raises(error, match=words):
        trainer_of(mlp(), **({"device": TWO} | change))


def test_one_device_takes_a_loss_that_is_a_sum():
    module, x, y = make("mlp")

    async def main():
        async with trainer_of(module, ["cpu"], loss=Summed()) as trainer:
            await trainer.step(x[:8], y[:8])

    asyncio.run(main())


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: F.cross_entropy(out, y, reduction="sum"),
        lambda out, y: F.mse_loss(out[:, 0], y.float(), reduction="sum"),
    ],
    ids=["cross_entropy", "mse"],
)
def test_a_loss_whose_last_operator_is_a_sum_is_refused_by_the_run(loss):
    module, x, y = make("mlp")
    before = copy.deepcopy(module.state_dict())

    async def main():
        async with trainer_of(module, TWO, loss=loss) as trainer:
            with pytest.raises(ValueError, match="reduction='sum'"):
                await trainer.fit((x, y))

    asyncio.run(main())
    assert same_state(module.state_dict(), before)


def test_a_batch_that_is_too_small_is_an_input_error_before_anything_is_trained():
    module, x, y = make("mlp")
    before = copy.deepcopy(module.state_dict())

    async def main():
        async with trainer_of(module, ["cpu"] * 3) as trainer:
            with pytest.raises(InputError, match="2 rows can't be split over 3"):
                await trainer.fit((x[:34], y[:34]), batch_size=16)
            with pytest.raises(InputError, match="1 row can't be split over 3"):
                await trainer.step(x[:1], y[:1])
            with pytest.raises(InputError, match=r"batch\[1\]: has 6 rows and batch"):
                await trainer.step(x[:7], y[:6])
            assert same_state(module.state_dict(), before)
            # Batches that come one by one are found out when it is their turn.
            await trainer.step(x[:9], y[:9])
            run = trainer.fit([(x[:9], y[:9]), (x[:2], y[:2])])
            with pytest.raises(InputError, match="2 rows can't be split"):
                await run
            check_replicas(trainer)
            await trainer.step(x[:9], y[:9])
            check_replicas(trainer)

    asyncio.run(main())


def test_a_tensor_without_rows_goes_to_every_device():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x, scale):
            return self.net(x) * scale

    torch.manual_seed(0)
    module, twin = Scaled(), Scaled()
    twin.load_state_dict(module.state_dict())
    _, x, y = make("mlp")
    scale = torch.tensor(0.5)

    async def main():
        for net, device in ((module, TWO), (twin, None)):
            async with trainer_of(net, device) as trainer:
                for _ in range(3):
                    await trainer.step(x, scale, y)

    asyncio.run(main())
    assert_close(module, twin)
