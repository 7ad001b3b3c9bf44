"""Models on accelerators, simulated ones (see accelerator/): late, gated and faulty."""

from __future__ import annotations

import asyncio
import ctypes

import accelerator
import numpy as np
import pytest
from accelerator import KERNEL, TO_DEVICE
from device_checks import (
    CHECKS,
    LARGE,
    close,
    devices_named_in_a_program_are_where_it_runs,
    load,
    net,
    on_cpu,
    rows,
    until,
)
from device_service_checks import SERVICE_CHECKS

import pyasyncml as ml

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.accelerator, pytest.mark.torch]

ZERO, ONE = BOTH = ["privateuseone:0", "privateuseone:1"]


@pytest.mark.parametrize(
    "check", [*CHECKS, *SERVICE_CHECKS], ids=lambda check: check.__name__
)
def test_on_simulated_devices(check, accelerators):
    check(BOTH)


def test_devices_named_in_a_program_are_where_it_runs(accelerators, tmp_path):
    devices_named_in_a_program_are_where_it_runs(BOTH, tmp_path)


# --- what there is ---


def test_devices_lists_accelerators_and_their_memory_or_why_it_is_unknown(
    accelerators,
):
    accelerators[0].limit_memory(3 << 30)
    accelerators[1].lose("power failure")
    found = {d.device: d for d in ml.devices() if d.backend == "torch"}
    assert list(found) == ["cpu", ZERO, ONE]
    assert all(device.available for device in found.values())
    assert found["cpu"].memory > 0
    assert (found[ZERO].memory, found[ZERO].reason) == (3 << 30, "")
    assert (found[ONE].memory, found[ONE].reason) == (0, "memory: power failure")
    accelerators[0].limit_memory(None)
    [first] = [d for d in ml.devices() if d.device == ZERO]
    assert first.memory == 0
    assert "memory: getMemoryInfo is not implemented" in first.reason


# --- what can't be ---


@pytest.mark.parametrize(
    ("device", "given", "said"),
    [
        (ZERO, {}, r"give example inputs= .*served on 'privateuseone:0', or move it"),
        (
            ZERO,
            {"backend": "python"},
            r"give example inputs= \(and no backend='python'",
        ),
        ("xla:0", {}, "XLA devices run JAX functions, as bundles that export.jax"),
        ("xla:0", {"inputs": True}, "device xla:0 runs JAX functions.*export.jax"),
        ("privateuseone:7", {"inputs": True}, "no device privateuseone:7; torch can"),
    ],
)
def test_device_that_a_module_cannot_run_on_is_told_with_what_could_be_done(
    accelerators, device, given, said
):
    if "inputs" in given:
        given = {"inputs": torch.from_numpy(rows(2))}

    async def main():
        with pytest.raises(ml.LoadError, match=said):
            await ml.load(net(), device=device, **given)

    asyncio.run(main())


def test_a_callable_runs_on_no_device_and_an_xla_device_trains_no_module(accelerators):
    async def main():
        with pytest.raises(ml.LoadError, match="a callable runs in Python, not on"):
            await ml.load(len, device=ZERO)
        with pytest.raises(ml.LoadError, match="not on 'xla:0'; export.jax writes"):
            await ml.load(len, device="xla:0")

    asyncio.run(main())
    module = net()
    optimizer = torch.optim.SGD(module.parameters())
    with pytest.raises(ValueError, match="aren't trained on xla:0.*export.jax"):
        ml.Trainer(module, loss=len, optimizer=optimizer, device="xla:0")


def test_an_input_elsewhere_is_told_all_devices_of_the_model(accelerators):
    x = torch.from_numpy(rows(2)).to(ZERO)

    async def main():
        async with load(net(), ["cpu", ONE]) as model:
            with pytest.raises(
                ml.InputError,
                match=r"it is on privateuseone:0, the model runs on cpu and "
                "privateuseone:1",
            ):
                model.infer(x)
            assert (await model.infer(x.to(ONE))).device == torch.device(ONE)

    asyncio.run(main())


def test_example_inputs_may_lie_where_the_module_does_not(accelerators):
    module = net()
    x = torch.from_numpy(rows(2))

    async def main():
        for device, where in (("cpu", ZERO), (ZERO, ZERO), (ONE, ZERO), (ZERO, "cpu")):
            async with ml.load(module, inputs=x.to(where), device=device) as model:
                close(await model.infer(x.numpy()), on_cpu(module, x))

    asyncio.run(main())


# --- copies ---


def test_host_memory_is_copied_through_pinned_memory_and_results_come_back_in_it(
    accelerators,
):
    module = net()

    async def main():
        async with load(module, ZERO) as model:
            accelerators[0].reset()
            held = accelerator.pinned_blocks()
            y = await model.infer(rows(3))
            done = accelerators[0].counters()
            assert (done.to_device, done.to_device_pinned) == (1, 1)
            assert (done.to_host, done.to_host_pinned) == (1, 1)
            assert done.synchronized == 0
            assert accelerator.pinned_blocks() == held + 1
            close(y, on_cpu(module, rows(3)))
            del y
            await until(lambda: accelerator.pinned_blocks() == held)

    asyncio.run(main())


def test_what_stays_on_the_device_makes_no_trip_to_the_host(accelerators):
    module = net()
    x = torch.from_numpy(rows(3)).to(ZERO)

    async def main():
        async with load(module, ZERO) as model:
            accelerators[0].reset()
            with accelerators[0].gate_stream(0):  # where it is made
                future = model.infer(x + 1)
                await until(lambda: accelerators[0].counters().waits)
                assert not future.done()
            y = await future
            done = accelerators[0].counters()
            assert (done.to_device, done.to_host) == (0, 0)
            assert y.device == x.device
            return y

    y = asyncio.run(main())
    close(y.cpu().numpy(), on_cpu(module, rows(3) + 1))


def test_a_device_that_serves_another_s_input_keeps_the_order_and_stops_nobody_there(
    accelerators,
):
    module = net()
    x = torch.from_numpy(rows(3)).to(ZERO)

    async def main():
        async with load(module, BOTH) as model:
            accelerators[0].lose("out of the model")
            while not model.health().lost:
                await asyncio.gather(model.infer(rows(1)), return_exceptions=True)
            for device in accelerators:  # the simulated one is back, the model's isn't
                device.reset()
            with accelerators[0].gate_stream(0):  # where it is made
                future = model.infer(x + 1)
                await until(lambda: accelerators[0].counters().waits)
                await until(accelerator.is_quiet)
                assert not future.done()
            y = await future
            assert y.device == x.device
            close(y.cpu(), on_cpu(module, rows(3) + 1))

            accelerators[0].reset()
            with accelerators[1].gate(KERNEL):
                future = model.infer(x)
                await until(lambda: accelerators[0].counters().on_device)
                close((x * 2).cpu(), rows(3) * 2)  # nobody waits for the other device
                assert not future.done()
            y = await future
            with accelerators[0].gate_stream(0):
                late = y * 2
                live = accelerators[0].counters().live_blocks
                del y, future  # what is freed is poisoned
                await until(lambda: accelerators[0].counters().live_blocks < live)
                await until(accelerator.is_quiet)
            close(late.cpu(), on_cpu(module, rows(3)) * 2)

    asyncio.run(main())


def test_a_torchscript_archive_answers_on_the_input_s_device_whichever_served_it(
    accelerators, tmp_path
):
    module, path = net(), tmp_path / "net.pt"
    torch.jit.script(module).save(path)
    inputs = [torch.from_numpy(rows(2, i)) for i in range(12)]

    async def main():
        async with ml.load(path, device=["cpu", *BOTH]) as model:
            while not all(instance.runs for instance in model.stats().instances):
                there = [x.to(BOTH[i % 2]) for i, x in enumerate(inputs)]
                given = await asyncio.gather(*map(model.infer, there))
                for x, y in zip(there, given, strict=True):
                    assert y.device == x.device
                    close(y.cpu(), on_cpu(module, x))

    asyncio.run(main())


def test_requests_on_a_device_run_alone_beside_batches_of_the_host_s(accelerators):
    module = net()

    async def main():
        async with load(module, ZERO, batching=ml.Batching(max_rows=8)) as model:
            with accelerators[0].gate(KERNEL):
                asked = [
                    (x, model.infer(torch.from_numpy(x).to(ZERO) if i % 2 else x))
                    for i, x in enumerate(rows(1 + i % 3, i) for i in range(12))
                ]
            for i, (x, future) in enumerate(asked):
                y = await future
                if i % 2:
                    assert y.device == torch.device(ZERO)
                    y = y.cpu().numpy()
                close(y, on_cpu(module, x))
            assert model.stats().runs < model.stats().requests

    asyncio.run(main())


def test_a_result_that_is_dropped_while_the_caller_still_reads_it_is_not_overwritten(
    accelerators,
):
    module = net()

    async def main():
        async with load(module, ZERO) as model:
            x = torch.from_numpy(rows(3)).to(ZERO)
            wanted = on_cpu(module, x)
            y = await model.infer(x)
            with accelerators[0].gate_stream(0):
                late = y * 2
                del y
                for _ in range(4):  # would find its memory free
                    await model.infer(rows(3, 1))
            close(late.cpu().numpy(), wanted * 2)

    asyncio.run(main())


def test_a_staging_buffer_is_not_written_before_the_device_has_read_it(accelerators):
    class Sum(torch.nn.Module):
        def forward(self, x):
            return x.double().sum(0)

    x = rows(LARGE // 32)

    async def main():
        async with load(Sum(), ZERO, rows=x.shape[0]) as model:
            accelerators[0].reset()
            accelerators[0].close(TO_DEVICE)
            future = model.infer(x)
            # It waits for room in the two buffers, and for nothing else.
            await until(lambda: not accelerators[0].is_idle())
            accelerators[0].open()
            close(await future, x.astype(np.float64).sum(0))
            assert accelerators[0].counters().to_device == 3

    asyncio.run(main())


def test_weights_are_copied_once_a_device(accelerators):
    module = net()
    weights = sum(p.nbytes for p in module.parameters())

    async def main():
        for device in accelerators:
            device.reset()
        async with load(module, BOTH, instances=3, warmup=False) as model:
            for device in accelerators:
                assert device.counters().to_device_bytes == weights
            close(await model.infer(rows(3)), on_cpu(module, rows(3)))

    asyncio.run(main())


# --- work that waits ---


def test_close_waits_for_what_runs_however_long_the_device_takes(accelerators):
    module = net()

    async def main():
        model = await load(module, ZERO)
        accelerators[0].close(KERNEL)
        running = model.infer(rows(3))
        await until(lambda: model.stats().running)
        closing = asyncio.ensure_future(model.close(drain=False))
        done, _ = await asyncio.wait([closing], timeout=0.05)
        assert not done
        assert model.health().status == "closing"
        accelerators[0].open()
        await closing
        close(await running, on_cpu(module, rows(3)))

    asyncio.run(main())


def test_what_is_given_up_while_a_device_is_busy_is_never_given_to_it(accelerators):
    module = net()

    async def main():
        async with load(module, ZERO) as model:
            accelerators[0].reset()
            with accelerators[0].gate(KERNEL):
                gone, running = model.infer(rows(3)), model.infer(rows(3))
                await until(lambda: accelerators[0].counters().to_device == 2)
                unwanted = model.infer(rows(3))
                late = model.infer(rows(3), timeout=0.01)
                for future in (gone, unwanted):
                    assert future.cancel()
                with pytest.raises(ml.DeadlineExceeded):
                    await late
            close(await running, on_cpu(module, rows(3)))
            assert accelerators[0].counters().to_device == 2
            assert model.stats().cancelled == 2
            assert model.stats().expired == 1

    asyncio.run(main())


def test_an_idle_device_takes_what_a_busy_one_has_not_begun(accelerators):
    module = net()
    inputs = [rows(1, i) for i in range(20)]

    async def main():
        async with load(module, BOTH) as model:
            with accelerators[1].gate(KERNEL):
                asked = [model.infer(x) for x in inputs]
                await until(lambda: sum(future.done() for future in asked) >= 18)
                assert model.stats().waiting == 0
            for x, future in zip(inputs, asked, strict=True):
                close(await future, on_cpu(module, x))
            first = [i.requests for i in model.stats().instances]
            assert first[1] <= 2
            # A hundred times as slow: it gets some, the other one most.
            accelerators[1].slow(kernel=5e-3)
            await asyncio.gather(*map(model.infer, inputs * 3))
            then = [i.requests for i in model.stats().instances]
            assert then[0] - first[0] > then[1] - first[1]

    asyncio.run(main())


def test_devices_are_fed_while_somebody_holds_the_gil(accelerators):
    hold = ctypes.PyDLL(None).usleep  # a C function called with the GIL held
    module = net()

    async def main():
        async with load(module, BOTH) as model:
            for device in accelerators:
                device.reset()
                device.slow(kernel=1e-3)
            asked = [model.infer(rows(1)) for _ in range(150)]
            # The loop's thread gives what it has been told to submit.
            await asyncio.sleep(0)
            before = [device.counters().kernels for device in accelerators]
            hold(300_000)
            after = [device.counters().kernels for device in accelerators]
            await asyncio.gather(*asked)
            return [b - a for a, b in zip(before, after, strict=True)]

    # 3 kernels a request; ideally 300 a device.
    fed = asyncio.run(main())
    assert min(fed) > 100, fed


# --- two runs in flight ---


def test_the_inputs_of_the_next_run_are_copied_while_the_last_one_computes(
    accelerators,
):
    module = net()

    async def main():
        async with load(module, ZERO) as model:
            accelerators[0].reset()
            with accelerator.timeline() as spans:
                with accelerators[0].gate(KERNEL):
                    asked = [model.infer(rows(3, seed)) for seed in range(3)]
                    await until(lambda: accelerators[0].counters().to_device == 2)
                    await until(accelerator.is_quiet)
                    assert model.stats().waiting == 1
                for seed, future in enumerate(asked):
                    close(await future, on_cpu(module, rows(3, seed)))
            kernel = next(span for span in spans if span.kind == KERNEL)
            copies = [span for span in spans if span.kind == TO_DEVICE]
            assert copies[1].end <= kernel.begin

    asyncio.run(main())


def test_a_session_has_one_run_in_flight_beside_those_of_others(accelerators):
    class Adder(torch.nn.Module):
        def forward(self, x, total):
            return total + x, total + x

    example = (torch.zeros(2, 1), torch.zeros(2, 1))

    async def main():
        loading = ml.load(Adder(), inputs=example, device=ZERO)
        async with loading as model:
            streams = [model.session(total=np.zeros((1, 1), np.float32)) for _ in "abc"]
            one = np.ones((1, 1), np.float32)
            accelerators[0].reset()
            with accelerators[0].gate(KERNEL):
                sums = [[s.infer(one * (i + 1)) for i in range(20)] for s in streams]
                # Of two of them, each with its state.
                await until(lambda: accelerators[0].counters().to_device == 4)
            for futures in sums:
                for i, future in enumerate(futures):
                    assert (await future).item() == (i + 1) * (i + 2) / 2
            for stream in streams:
                stream.close()

    asyncio.run(main())
