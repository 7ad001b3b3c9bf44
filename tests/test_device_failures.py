"""Devices that fail, run out of memory, are lost, or never come to an end: what is in
flight there pays for it, and nothing else does. On simulated ones (see accelerator/).
"""

from __future__ import annotations

import asyncio
import signal
import subprocess

import numpy as np
import pytest
from accelerator import KERNEL, TO_DEVICE, TO_HOST
from device_checks import close, load, net, on_cpu, rows, until

import pyasyncml as ml

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.accelerator, pytest.mark.torch]

ZERO, ONE = BOTH = ["privateuseone:0", "privateuseone:1"]


def test_an_error_that_comes_late_is_the_error_of_its_request(accelerators):
    module = net()

    async def main():
        async with load(module, ZERO) as model:
            accelerators[0].fail("the kernel did not like it", after=1)
            with pytest.raises(ml.BackendError, match="the kernel did not like it"):
                await model.infer(rows(3))
            assert model.health().lost == ()
            for _ in range(3):
                close(await model.infer(rows(3)), on_cpu(module, rows(3)))
            assert model.health().ok
            accelerators[0].fail("lost on the way", kinds=TO_DEVICE)
            with pytest.raises(ml.BackendError, match="lost on the way"):
                await model.infer(rows(3))
            accelerators[0].fail("lost on the way back", kinds=TO_HOST)
            with pytest.raises(ml.BackendError, match="lost on the way back"):
                await model.infer(rows(3))
            for _ in range(3):
                close(await model.infer(rows(3)), on_cpu(module, rows(3)))
            accelerators[0].reset()  # of reads of what the failed kernel didn't write

    asyncio.run(main())


def test_what_fails_while_it_is_enqueued_leaves_those_before_and_after_alone(
    accelerators, tmp_path
):
    module, path = net(), tmp_path / "net.pt"
    torch.jit.script(module).save(path)

    async def main():
        async with ml.load(path, device=ZERO) as model:
            with accelerators[0].gate(KERNEL):
                good = [model.infer(rows(3)) for _ in range(2)]
                bad = model.infer(np.zeros((3, 9), np.float32))
                good.append(model.infer(rows(3)))
                await until(lambda: accelerators[0].counters().to_device)
            with pytest.raises(ml.BackendError, match="3x9 and 8x16"):
                await bad
            for future in good:
                close(await future, on_cpu(module, rows(3)))

    asyncio.run(main())


def test_a_device_that_is_lost_under_load_takes_only_its_own_requests_along(
    accelerators,
):
    module = net()
    inputs = [rows(1, i) for i in range(60)]

    async def main():
        async with load(module, BOTH, instances=2) as model:
            for device in accelerators:
                device.slow(kernel=5e-4)
            accelerators[0].fail("fell off the bus", after=20, for_good=True)
            given = await asyncio.gather(
                *map(model.infer, inputs), return_exceptions=True
            )
            failures = [y for y in given if isinstance(y, BaseException)]
            assert 1 <= len(failures) <= 4, failures  # two instances, two flights each
            for failure in failures:
                assert isinstance(failure, ml.BackendError)
                assert "fell off the bus" in str(failure)
            for x, y in zip(inputs, given, strict=True):
                if not isinstance(y, BaseException):
                    close(y, on_cpu(module, x))
            health = model.health()
            assert not health.ok
            assert health.status == "ready"
            assert health.lost == (ZERO,)
            assert f"device {ZERO} was lost: fell off the bus" in health.message
            await until(lambda: model.health().instances_alive == 2)

            before = model.stats().instances
            for x in inputs[:8]:
                close(await model.infer(x), on_cpu(module, x))
            after = model.stats().instances
            assert [i.requests for i in after[:2]] == [i.requests for i in before[:2]]

    asyncio.run(main())


def test_with_no_device_left_requests_are_refused_until_a_reload(accelerators):
    module = net()

    async def main():
        async with load(module, BOTH) as model:
            for device in accelerators:
                device.lose("power failure")
            failures = await asyncio.gather(
                *(model.infer(rows(1)) for _ in range(40)), return_exceptions=True
            )
            assert {type(failure) for failure in failures} == {ml.BackendError}
            with pytest.raises(
                ml.BackendError, match=r"no device left.*\(reload\).*power failure"
            ):
                await model.infer(rows(1))
            health = model.health()
            assert health.lost == (ZERO, ONE)
            assert not health.ok
            with pytest.raises(ml.LoadError, match="power failure"):
                await model.reload(module)
            for device in accelerators:
                device.reset()
            await model.reload(module)
            assert model.health().ok
            close(await model.infer(rows(3)), on_cpu(module, rows(3)))

    asyncio.run(main())


def test_a_device_out_of_memory_learns_what_fits_there_and_the_others_keep_theirs(
    accelerators,
):
    class Wide(torch.nn.Module):
        def forward(self, x):
            return (x.repeat(1, 1024) * 2).sum(1)  # 64 KiB a row

    x = rows(1)

    async def main():
        batching = ml.Batching(max_rows=16)
        async with load(Wide(), BOTH, batching=batching) as model:
            small, large = accelerators
            for device in accelerators:
                device.reset()
            small.limit_memory(small.counters().live_bytes + 5 * (64 << 10))

            async def burst():
                """How many runs, and of how many rows, each of the two had."""
                before = model.stats().instances
                copied = [device.counters().to_device for device in accelerators]
                for device in accelerators:
                    device.close(TO_DEVICE)  # what comes meanwhile is in few batches
                asked = [model.infer(x) for _ in range(64)]
                for device, count in zip(accelerators, copied, strict=True):
                    await until(lambda: device.counters().to_device > count)  # noqa: B023
                large.open()
                small.open()
                for y in await asyncio.gather(*asked):
                    close(y, (x * 2048).sum(1))
                after = model.stats().instances
                return [
                    (b.runs - a.runs, b.rows - a.rows)
                    for a, b in zip(before, after, strict=True)
                ]

            taught, ran = -1, []
            while small.counters().out_of_memory != taught or taught == 0:
                taught = small.counters().out_of_memory
                ran = await burst()
            (runs_small, rows_small), (runs_large, rows_large) = ran
            assert rows_small + rows_large == 64
            assert rows_small <= 5 * runs_small
            assert rows_large > 5 * runs_large
            assert large.counters().out_of_memory == 0
            assert model.stats().failed == 0
            small.limit_memory(None)

    asyncio.run(main())


def test_a_device_that_is_lost_takes_only_the_batches_in_flight_along(accelerators):
    module = net()
    inputs = [rows(1, i) for i in range(80)]

    async def main():
        async with load(module, BOTH, batching=ml.Batching(max_rows=4)) as model:
            for device in accelerators:
                device.slow(kernel=5e-4)
            accelerators[0].fail("fell off the bus", after=7, for_good=True)
            given = await asyncio.gather(
                *map(model.infer, inputs), return_exceptions=True
            )
            failures = [y for y in given if isinstance(y, BaseException)]
            assert 1 <= len(failures) <= 8, failures  # two flights of four rows
            for failure in failures:
                assert isinstance(failure, ml.BackendError)
                assert "fell off the bus" in str(failure)
            for x, y in zip(inputs, given, strict=True):
                if not isinstance(y, BaseException):
                    close(y, on_cpu(module, x))
            assert model.health().lost == (ZERO,)
            for y in await asyncio.gather(*map(model.infer, inputs[:8])):
                assert y.shape == (1, 4)

    asyncio.run(main())


def test_a_session_outlives_the_device_that_served_it(accelerators):
    class Adder(torch.nn.Module):
        def forward(self, x, total):
            return total + x, total + x

    example = (torch.zeros(2, 1), torch.zeros(2, 1))
    one = torch.ones(1, 1)

    async def main():
        async with ml.load(Adder(), inputs=example, device=BOTH) as model:
            session = model.session(total=np.zeros((1, 1), np.float32))
            total = 0
            for _ in range(20):
                total += 1
                assert (await session.infer(one)).item() == total
            accelerators[0].lose("fell off the bus")
            while not model.health().lost:
                await asyncio.gather(
                    model.infer(one, one), model.infer(one, one), return_exceptions=True
                )
            for _ in range(5):
                total += 1
                assert (await session.infer(one)).item() == total
            session.close()

    asyncio.run(main())


# --- the end of the process ---


def test_exit_waits_for_the_device_and_says_so(start_script):
    process = start_script("device_exit.py", "leave")
    assert process.stdout.readline() == "exiting\n"
    line = process.stderr.readline()  # after five seconds
    assert "pyasyncml: waiting for" in line
    assert "run" in line
    assert "end before the process can" in line
    process.send_signal(signal.SIGUSR1)  # the device goes on
    assert process.wait(timeout=20) == 0
    assert process.stderr.read() == ""


def test_ctrl_c_ends_the_await_of_a_device_shut_for_ever_and_then_the_process(
    start_script,
):
    process = start_script("device_exit.py", "await")
    assert process.stdout.readline() == "awaiting\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "exiting\n"
    for _ in range(20):  # the first may come while the hook still prints
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130
    assert "KeyboardInterrupt" in process.stderr.read()
