"""Models on two simulated devices at once give what the CPU gives."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from accelerator import KERNEL

import pyasyncml as ml

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.accelerator, pytest.mark.torch]

BOTH = ["privateuseone:0", "privateuseone:1"]


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(8, 16, 2, batch_first=True)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x):
        hidden, _ = self.lstm(x)
        return self.head(hidden[:, -1])


def mlp():
    return torch.nn.Sequential(
        torch.nn.Linear(12, 32), torch.nn.GELU(), torch.nn.Linear(32, 3)
    ), (12,)


def convolutional():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 8, 3, stride=2, groups=2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 3),
    ), (3, 16, 16)


def transformer():
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (6, 16)


def recurrent():
    return Recurrent(), (7, 8)


@pytest.fixture(scope="module", params=[mlp, convolutional, transformer, recurrent])
def net(request):
    """The module, some rows to feed it, and what the CPU makes of them."""
    torch.manual_seed(0)
    module, shape = request.param()
    module.eval()
    rows = torch.randn(12, *shape)
    with torch.no_grad():
        return module, rows.numpy(), module(rows).numpy()


async def answers(model, rows, accelerators):
    """Of each row, asked for at once; every device has its part in it."""
    for device in accelerators:
        device.close(KERNEL)
    asked = [model.infer(row[None]) for row in rows]
    while any(device.is_idle() for device in accelerators):
        await asyncio.sleep(0)
    for device in accelerators:
        device.open()
    return np.concatenate(await asyncio.gather(*asked))


@pytest.mark.parametrize("batching", [None, "dynamic"])
def test_two_devices_at_once_give_what_the_cpu_gives(net, batching, accelerators):
    module, rows, wanted = net

    async def main():
        model = await ml.load(
            module,
            inputs=(torch.from_numpy(rows[:2]),),
            device=BOTH,
            batching=ml.Batching(max_rows=4) if batching else None,
        )
        async with model:
            return await answers(model, rows, accelerators)

    np.testing.assert_allclose(asyncio.run(main()), wanted, rtol=1e-4, atol=1e-5)


# Scripted attention writes to attributes on some paths.
@pytest.mark.filterwarnings("ignore:.*keeps state of its own:RuntimeWarning")
def test_scripted_module_on_two_devices_gives_what_the_cpu_gives(
    net, accelerators, tmp_path
):
    module, rows, wanted = net
    path = tmp_path / "net.pt"
    torch.jit.script(module).save(path)

    async def main():
        async with ml.load(path, device=BOTH) as model:
            return await answers(model, rows, accelerators)

    np.testing.assert_allclose(asyncio.run(main()), wanted, rtol=1e-4, atol=1e-5)
