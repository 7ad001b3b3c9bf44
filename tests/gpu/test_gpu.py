"""On real GPUs what test_devices.py checks on simulated ones: inference, training,
several devices at once where there are two, memory, and copies beside kernels.

    pytest tests/gpu
"""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from device_checks import (
    CHECKS,
    devices_named_in_a_program_are_where_it_runs,
    load,
    rows,
)
from device_service_checks import SERVICE_CHECKS

import pyasyncml as ml

torch = pytest.importorskip("torch")
from torch.profiler import ProfilerActivity, profile  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch sees no CUDA device here"
    ),
]


@pytest.fixture
def names():
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


@pytest.mark.parametrize(
    "check", [*CHECKS, *SERVICE_CHECKS], ids=lambda check: check.__name__
)
def test_on_gpus(check, names):
    check(names)


def test_devices_named_in_a_program_are_where_it_runs(names, tmp_path):
    devices_named_in_a_program_are_where_it_runs(names, tmp_path)


def test_devices_lists_them_with_their_memory(names):
    found = {device.device: device for device in ml.devices()}
    for index, name in enumerate(names):
        assert found[name].available
        assert found[name].memory == torch.cuda.mem_get_info(index)[1]
        assert found[name].reason == ""


def test_the_inputs_of_the_next_run_are_copied_while_the_last_one_computes(names):
    class Deep(torch.nn.Module):
        def forward(self, x):
            for _ in range(40):
                x = torch.tanh(x @ x)
            return x.sum(1)

    x = torch.zeros(1024, 1024)

    async def main():
        async with ml.load(Deep(), inputs=x, device=names[0]) as model:
            with profile(activities=[ProfilerActivity.CUDA]) as profiled:
                await asyncio.gather(*(model.infer(x) for _ in range(20)))
                torch.cuda.synchronize()
        return profiled.events()

    spans = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in asyncio.run(main())
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    copies = [span for span in spans if "HtoD" in span[0]]
    kernels = [span for span in spans if "Mem" not in span[0]]
    assert len(copies) >= 20
    assert any(
        begin < until and since < end
        for _, begin, end in copies
        for _, since, until in kernels
    )


def test_a_batch_that_memory_is_short_for_is_run_in_parts(names):
    class Wide(torch.nn.Module):
        def forward(self, x):
            return x.repeat(1, 1 << 21).sum(1)  # 64 MiB a row

    x = rows(1)

    async def main():
        batching = ml.Batching(max_rows=32)
        async with load(Wide(), names[:1], batching=batching) as model:
            total = torch.cuda.mem_get_info(0)[1]
            held = torch.cuda.memory_reserved(0)
            torch.cuda.set_per_process_memory_fraction(
                (held + 12 * (64 << 20)) / total, 0
            )
            try:
                for _ in range(3):
                    asked = [model.infer(x) for _ in range(64)]
                    for y in await asyncio.gather(*asked):
                        np.testing.assert_allclose(
                            y, x.sum(1) * (1 << 21), rtol=1e-3, atol=1.0
                        )
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0, 0)
            assert model.stats().failed == 0

    asyncio.run(main())
