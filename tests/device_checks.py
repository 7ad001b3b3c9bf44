"""What holds on every accelerator: run on simulated ones by test_devices.py, on real
ones by gpu/. Each takes the names of the devices, and needs no control over them."""

from __future__ import annotations

import asyncio
import copy

import numpy as np

import pyasyncml as ml

#: More than both staging buffers of an instance hold.
LARGE = 20 << 20


def net():
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    ).eval()


def load(module, names, rows=2, **options):
    import torch

    # Not torch's generator: what it gives next is the tests' own.
    example = torch.from_numpy(np.zeros((rows, 8), np.float32))
    return ml.load(module, inputs=(example,), device=names, **options)


def rows(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)


def on_cpu(module, x):
    import torch

    with torch.no_grad():
        return module(torch.as_tensor(x).cpu()).numpy()


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


async def until(what):
    """Lets the loop run until it is so."""
    while not what():
        await asyncio.sleep(0)


def all_devices_give_what_the_cpu_gives(names):
    module = net()
    inputs = [rows(1 + i % 3, i) for i in range(24)]

    async def main():
        async with load(module, names) as model:
            for _ in range(20):
                given = await asyncio.gather(*map(model.infer, inputs))
                for x, y in zip(inputs, given, strict=True):
                    close(y, on_cpu(module, x))
                if all(i.runs for i in model.stats().instances):
                    break
            served = [i.requests for i in model.stats().instances]
            assert all(served), served
            assert [i.device for i in model.stats().instances] == names

    asyncio.run(main())


def what_comes_on_the_device_is_answered_on_the_device(names):
    import torch

    module = net()

    async def main():
        async with load(module, names[:1]) as model:
            x = torch.from_numpy(rows(3)).to(names[0])
            y = await model.infer(x)
            assert y.device == x.device
            close(y.cpu().numpy(), on_cpu(module, x))
            # Also where it was made beside the usual stream, and isn't there yet.
            side = torch.Stream(names[0])
            for _ in range(20):
                with side:
                    late = x
                    for _ in range(10):
                        late = late + 1
                    future = model.infer(late)
                y = await future
                close(y.cpu().numpy(), on_cpu(module, rows(3) + 10))

    asyncio.run(main())


def a_result_is_on_the_device_of_its_input_whichever_served_it(names):
    import torch

    class Both(torch.nn.Module):
        def forward(self, x, y):
            return x + y, {"x": x}  # one made by the run, one given back

    example = (torch.zeros(2, 8), torch.zeros(2, 8))
    inputs = [torch.from_numpy(rows(2, i)) for i in range(24)]

    async def main():
        async with ml.load(Both(), inputs=example, device=names) as model:
            for _ in range(20):
                asked = []
                for i, x in enumerate(inputs):
                    # What is mixed goes by the first on a device.
                    x, y = x.to(names[i % len(names)]), x.to(names[-1])
                    asked.append((x.device, model.infer(x, x if i % 3 else y)))
                for x, (device, future) in zip(inputs, asked, strict=True):
                    y, given = await future
                    assert (y.device, given["x"].device) == (device, device)
                    close((y * 2).cpu(), x * 4)
                    close(given["x"].cpu(), x)
                if all(i.runs for i in model.stats().instances):
                    break
            assert all(i.runs for i in model.stats().instances)
            # One that is on a device, beside one of the host's.
            y, given = await model.infer(inputs[0], inputs[0].to(names[-1]))
            assert y.device == given["x"].device == torch.device(names[-1])
            close(y.cpu(), inputs[0] * 2)

    asyncio.run(main())


def large_inputs_go_through_small_staging(names):
    import torch

    class Mean(torch.nn.Module):
        def forward(self, x, y):
            return x.mean(1) + y

    x = np.random.default_rng(0).standard_normal((4, LARGE // 16)).astype(np.float32)
    y = np.arange(4, dtype=np.float32)

    async def main():
        loading = ml.load(
            Mean(), inputs=(torch.from_numpy(x), torch.from_numpy(y)), device=names[:1]
        )
        async with loading as model:
            close(await model.infer(x, y), x.mean(1) + y)
            apart = np.ascontiguousarray(x.T).T  # dense, in another order
            close(await model.infer(apart, y), x.mean(1) + y)
            wide = np.repeat(x, 2, axis=1)[:, ::2]  # with gaps
            close(await model.infer(wide, y), x.mean(1) + y)
            backwards = y[::-1]
            close(await model.infer(x, backwards), x.mean(1) + backwards)

    asyncio.run(main())


def training_gives_what_it_gives_on_the_cpu(names):
    import torch

    def train(device):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
        )
        trainer = ml.Trainer(
            module,
            loss=torch.nn.functional.cross_entropy,
            optimizer=torch.optim.Adam(module.parameters(), lr=0.01),
            device=device,
            seed=0,
        )
        target = np.random.default_rng(1).integers(0, 4, 64)

        async def main():
            async with trainer:
                history = await trainer.fit((rows(64), target), epochs=3, batch_size=16)
                x = torch.from_numpy(rows(16)).to(device)
                await trainer.step(x, torch.from_numpy(target[:16]).to(device))
            return [epoch.loss for epoch in history.epochs]

        losses = asyncio.run(main())
        assert {p.device for p in module.parameters()} == {torch.device(device)}
        return losses, [p.detach().cpu().numpy() for p in module.parameters()]

    losses, parameters = train("cpu")
    losses_there, parameters_there = train(names[0])
    close(losses_there, losses)
    for a, b in zip(parameters_there, parameters, strict=True):
        close(a, b)


def several_devices_train_as_one_does(names):
    import torch

    if len(names) < 2:
        return

    def train(device):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
        )
        trainer = ml.Trainer(
            module,
            loss=torch.nn.functional.cross_entropy,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
            clip_norm=1.0,
            device=device,
            seed=0,
        )
        target = np.random.default_rng(1).integers(0, 4, 60)

        async def main():
            async with trainer:
                await trainer.fit((rows(60), target), epochs=3, batch_size=16)

        asyncio.run(main())
        return [p.detach().cpu().numpy() for p in module.parameters()]

    for one, several in zip(train(names[0]), train(names), strict=True):
        close(several, one)


def a_live_module_on_the_device_is_served_there(names):
    module = net()
    there = copy.deepcopy(module).to(names[0])

    async def main():
        async with load(there, "cpu") as model:
            assert model.stats().devices == (names[0],)
            close(await model.infer(rows(3)), on_cpu(module, rows(3)))

    asyncio.run(main())


def devices_named_in_a_program_are_where_it_runs(names, folder):
    import torch

    class Literal(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(8, 8)
            self.shift = torch.arange(8.0)  # no buffer: a constant of the program

        def forward(self, x):
            bias = torch.ones(8, device="cpu") + torch.tensor(2.0)
            # A view that is right for the strides of the CPU's kernels.
            y = self.linear(x).t().contiguous().t() + bias
            return (y + self.shift).transpose(0, 1).reshape(4, -1), torch.arange(3)

    module = Literal().eval()
    path = folder / "literal.pt2"
    x = torch.from_numpy(rows(2))
    torch.export.save(torch.export.export(module, (x,)), path)
    with torch.no_grad():
        wanted = [part.numpy() for part in module(x)]

    async def main():
        for source, inputs in ((module, (x,)), (path, None)):
            async with ml.load(source, inputs=inputs, device=names) as model:
                for given, expected in zip(
                    await model.infer(x.numpy()), wanted, strict=True
                ):
                    close(given, expected)

    asyncio.run(main())


CHECKS = (
    all_devices_give_what_the_cpu_gives,
    what_comes_on_the_device_is_answered_on_the_device,
    a_result_is_on_the_device_of_its_input_whichever_served_it,
    large_inputs_go_through_small_staging,
    training_gives_what_it_gives_on_the_cpu,
    several_devices_train_as_one_does,
    a_live_module_on_the_device_is_served_there,
)
