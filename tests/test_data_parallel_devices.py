"""Data-parallel training on accelerators, simulated ones (see accelerator/)."""

from __future__ import annotations

import asyncio
import copy

import accelerator
import numpy as np
import pytest
from accelerator import KERNEL, TO_DEVICE

import pyasyncml as ml

torch = pytest.importorskip("torch")
from test_data_parallel import (  # noqa: E402
    OPTIMIZERS,
    SEED,
    assert_close,
    check_replicas,
    fitted,
    trainer_of,
)
from training_nets import make, same_state  # noqa: E402

pytestmark = [pytest.mark.accelerator, pytest.mark.torch]

ZERO, ONE = BOTH = ["privateuseone:0", "privateuseone:1"]


async def until(what):
    """Lets the loop run until it is so."""
    while not what():
        await asyncio.sleep(0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", ["mlp", "convolutional"])
def test_two_accelerators_give_what_two_replicas_on_the_cpu_give(
    net, optimizer, accelerators
):
    expected, one, _ = fitted(net, ["cpu", "cpu"], optimizer, clip_norm=0.5)
    for device in accelerators:
        device.reset()
    module, history, trainer = fitted(net, BOTH, optimizer, clip_norm=0.5)
    assert {p.device for p in module.parameters()} == {torch.device(ZERO)}
    np.testing.assert_allclose(history.losses, one.losses, rtol=1e-3)
    assert_close(module, expected, rtol=1e-2, atol=1e-3)
    # Each shard goes to its device through pinned memory: x and y, 21 steps.
    for device in accelerators:
        assert device.counters().to_device_pinned == 2 * 21
    state = trainer._program._optimizer.state_dict()["state"]
    assert {
        held.device
        for values in state.values()
        for held in values.values()
        if held.dim() > 0
    } == {torch.device(ZERO)}


def test_dropout_on_accelerators_is_what_the_seed_says(accelerators):
    runs = [fitted("mlp with dropout", BOTH) for _ in range(2)]
    (module, history, _), (again, history_again, _) = runs
    assert history.losses == history_again.losses
    assert_close(module, again, rtol=0, atol=0)
    expected, on_cpu, _ = fitted("mlp with dropout", ["cpu", "cpu"])
    np.testing.assert_allclose(history.losses, on_cpu.losses, rtol=1e-3)
    assert_close(module, expected, rtol=1e-2, atol=1e-3)


def test_a_replica_computes_while_the_other_has_not_begun(accelerators):
    module, x, y = make("mlp")
    first, second = accelerators

    async def main():
        async with trainer_of(module, BOTH, "sgd") as trainer:
            await trainer.step(x[:16], y[:16])
            for device in accelerators:
                device.reset()
            with accelerator.timeline() as spans:
                first.close(KERNEL)
                step = asyncio.create_task(trainer.step(x[:16], y[:16]))
                # Forward and backward pass; the update waits for the other's gradients.
                await until(lambda: second.counters().kernels > 10)
                await until(accelerator.is_quiet)
                assert not step.done()
            first.open()
            await step
            did = [span.device for span in spans if span.kind == KERNEL]
            assert did.count(1) > 10
            assert did.count(0) == 0
            check_replicas(trainer)

    asyncio.run(main())


def test_batches_may_lie_on_the_first_device(accelerators):
    module, x, y = make("mlp")
    twin = copy.deepcopy(module)

    async def main():
        async with (
            trainer_of(module, BOTH) as trainer,
            trainer_of(twin, None) as other,
        ):
            for where in (ZERO, "cpu", ZERO):
                await trainer.step(x.to(where), y.to(where))
                await other.step(x, y)
            check_replicas(trainer)
            with pytest.raises(ml.InputError, match=f"it is on {ONE}.*runs on {ZERO}"):
                await trainer.step(x.to(ONE), y.to(ONE))

    asyncio.run(main())
    assert_close(module, twin, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("net", ["mlp", "convolutional"])
def test_a_failure_on_either_device_leaves_the_weights_as_they_were(net, accelerators):
    module, x, y = make(net)
    twin = copy.deepcopy(module)

    async def main():
        async with (
            trainer_of(module, BOTH) as trainer,
            trainer_of(twin, ["cpu", "cpu"]) as other,
        ):
            await trainer.step(x[:16], y[:16])
            await other.step(x[:16], y[:16])
            before = {n: t.cpu() for n, t in module.state_dict().items()}
            for device in accelerators:
                for kinds, after in (
                    *((KERNEL, n) for n in range(0, 12, 3)),
                    (TO_DEVICE, 0),
                    (TO_DEVICE, 1),
                ):
                    device.fail("it did not like it", kinds=kinds, after=after)
                    with pytest.raises(ml.BackendError, match="it did not like it"):
                        await trainer.step(x[16:32], y[16:32])
                    now = {n: t.cpu() for n, t in module.state_dict().items()}
                    assert same_state(now, before), (device, kinds, after)
                    # Of reads of what the failed work didn't write.
                    for other_device in accelerators:
                        other_device.reset()
            await trainer.step(x[16:32], y[16:32])
            await other.step(x[16:32], y[16:32])
            check_replicas(trainer)

    asyncio.run(main())
    assert_close(module, twin, rtol=1e-3, atol=1e-4)


def test_a_device_that_is_lost_ends_the_run_after_the_last_whole_step(accelerators):
    module, x, y = make("mlp")
    twin = copy.deepcopy(module)
    second = accelerators[1]

    async def main():
        async with trainer_of(module, BOTH) as trainer:
            await trainer.step(x[:20], y[:20])
            second.fail("fell off the bus", kinds=TO_DEVICE, after=25, for_good=True)
            run = trainer.fit((x, y), epochs=10, batch_size=20)
            with pytest.raises(
                ml.BackendError, match=f"device {ONE} was lost: fell off the bus"
            ):
                await run
            steps = len(run.losses)
            assert 0 < steps < 50
            assert trainer._position.epoch * 5 + trainer._position.step == steps
            with pytest.raises(ml.BackendError, match="fell off the bus"):
                await trainer.step(x[:20], y[:20])
            for device in accelerators:
                device.reset()
            return steps, copy.deepcopy(module).cpu()

    async def reference(steps):
        async with trainer_of(twin, ["cpu", "cpu"]) as trainer:
            await trainer.step(x[:20], y[:20])
            for step in range(steps):
                epoch, at = divmod(step, 5)
                order = np.random.default_rng([SEED, epoch]).permutation(len(x))
                rows = torch.from_numpy(order)[20 * at : 20 * at + 20]
                await trainer.step(x[rows], y[rows])

    steps, left = asyncio.run(main())
    asyncio.run(reference(steps))
    assert_close(left, twin, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_two_accelerators_goes_on_on_them_to_the_bit(
    accelerators, tmp_path
):
    async def go_on(device, path, save=None, epochs=2):
        module, x, y = make("mlp with dropout")
        async with trainer_of(module, device) as trainer:
            if path is not None:
                await trainer.restore(path)
            await trainer.fit((x, y), epochs=epochs, batch_size=16)
            if save is not None:
                await trainer.save(save)
        return module

    async def main():
        whole = await go_on(BOTH, None, epochs=4)
        await go_on(BOTH, None, tmp_path / "saved")
        assert_close(await go_on(BOTH, tmp_path / "saved"), whole, rtol=0, atol=0)
        on_cpu = await go_on(["cpu", "cpu"], tmp_path / "saved")
        assert_close(on_cpu, whole, rtol=1e-2, atol=1e-3)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ([ZERO, ZERO], "privateuseone:0 is named twice"),
        ([ZERO, "cpu"], "one kind.*privateuseone:0, cpu"),
        ([ZERO, "privateuseone:5"], "no privateuseone:5"),
    ],
    ids=str,
)
def test_devices_that_cannot_share_a_batch_are_refused(device, words, accelerators):
    module, _, _ = make("mlp")
    with pytest.raises(ValueError, match=words):
        trainer_of(module, device)
