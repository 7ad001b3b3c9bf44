"""What the scheduler does on every accelerator, as on the CPU: sessions, deadlines,
cancelling, reloads, weights, `map`, padding. As device_checks.py has it: each takes the
names of the devices, and needs no control over them."""

from __future__ import annotations

import asyncio
import copy

import numpy as np
from device_checks import close, load, net, on_cpu, rows

import pyasyncml as ml


def sessions_keep_their_state_and_their_order(names):
    import torch

    class Adder(torch.nn.Module):
        def forward(self, x, total):
            return total + x, total + x

    example = (torch.zeros(2, 8), torch.zeros(2, 8))
    inputs = [rows(1, i) for i in range(12)]
    # Some lie on one of the devices; the state never does.
    there = [
        torch.from_numpy(x).to(names[i % len(names)]) for i, x in enumerate(inputs)
    ]

    async def serve(batching):
        options = {"device": names, "batching": batching}
        async with ml.load(Adder(), inputs=example, **options) as model:
            streams = [
                model.session(total=np.full((1, 8), k, np.float32)) for k in range(5)
            ]
            asked = [
                [stream.infer(there[i] if i % 3 else inputs[i]) for i in range(12)]
                for stream in streams
            ]
            for k, futures in enumerate(asked):
                total = np.full((1, 8), k, np.float32)
                for i, future in enumerate(futures):
                    total = total + inputs[i]
                    y = await future
                    if i % 3:
                        assert y.device == there[i].device
                        y = y.cpu().numpy()
                    close(y, total)
            streams[0].reset()
            close(await streams[0].infer(inputs[0]), inputs[0])
            for stream in streams:
                stream.close()

    asyncio.run(serve(None))
    asyncio.run(serve(ml.Batching(max_rows=4)))


def what_is_late_or_cancelled_leaves_the_others_alone(names):
    import torch

    module = net()
    inputs = [rows(1, i) for i in range(60)]

    async def main():
        async with load(module, names) as model:
            asked = [model.infer(x) for x in inputs]
            late = [model.infer(x, timeout=1e-6, priority=-1) for x in inputs[:8]]
            there = [torch.from_numpy(x).to(names[0]) for x in inputs[:8]]
            unwanted = [model.infer(x, priority=-1) for x in there]
            del there  # a cancelled request still owns its input until it is over
            for future in unwanted:
                assert future.cancel()
            for x, future in zip(inputs, asked, strict=True):
                close(await future, on_cpu(module, x))
            ends = await asyncio.gather(*late, *unwanted, return_exceptions=True)
            assert {type(end) for end in ends[:8]} == {ml.DeadlineExceeded}
            assert {type(end) for end in ends[8:]} == {asyncio.CancelledError}
            close(await model.infer(inputs[0], timeout=60), on_cpu(module, inputs[0]))

    asyncio.run(main())


def a_reload_changes_the_program_under_load(names):
    old, new = net(), copy.deepcopy(net())
    import torch

    with torch.no_grad():
        for parameter in new.parameters():
            parameter.neg_()
    x = rows(3)
    before, after = on_cpu(old, x), on_cpu(new, x)

    async def main():
        async with load(old, names) as model:
            asked = []

            async def ask():
                while True:
                    asked.append(model.infer(x))
                    await asyncio.wait(asked[-4:])

            asking = asyncio.ensure_future(ask())
            await model.reload(new)
            served = len(asked)
            while len(asked) < served + 20:
                await asyncio.sleep(0)
            asking.cancel()
            given = await asyncio.gather(*asked)
            which = [np.allclose(y, after, rtol=1e-4, atol=1e-5) for y in given]
            for y, changed in zip(given, which, strict=True):
                close(y, after if changed else before)
            assert which == sorted(which)
            assert which[-1]
            assert [i.device for i in model.stats().instances] == names

    asyncio.run(main())


def weights_that_are_trained_on_the_device_are_served_there(names):
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    ).to(names[0])
    target = np.random.default_rng(1).integers(0, 4, 64)
    x = rows(3)

    async def main():
        trainer = ml.Trainer(
            module,
            loss=torch.nn.functional.cross_entropy,
            optimizer=torch.optim.Adam(module.parameters(), lr=0.01),
            device=names[0],
            seed=0,
        )
        async with trainer, load(module, names) as model:
            fitting = trainer.fit(
                (rows(64), target),
                epochs=5,
                batch_size=8,
                publish=model,
                publish_every=4,
            )
            while not fitting.done():
                await model.infer(x)  # between the steps
            await fitting
            close(await model.infer(x), on_cpu(copy.deepcopy(module).cpu(), x))
            await trainer.step(rows(8), target[:8])
            served = await model.infer(x)
            await model.update_weights(trainer)
            now = await model.infer(x)
            assert not np.array_equal(served, now)
            close(now, on_cpu(copy.deepcopy(module).cpu(), x))

    asyncio.run(main())


def map_gives_results_in_order(names):
    import torch

    module = net()
    inputs = [rows(1 + i % 3, i) for i in range(40)]

    async def main():
        async with load(module, names) as model:
            given = [y async for y in model.map(inputs, in_flight=6)]
            for x, y in zip(inputs, given, strict=True):
                close(y, on_cpu(module, x))
            there = (torch.from_numpy(x).to(names[-1]) for x in inputs)
            given = [y async for y in model.map(there, in_flight=6)]
            for x, y in zip(inputs, given, strict=True):
                assert y.device == torch.device(names[-1])
                close(y.cpu(), on_cpu(module, x))

    asyncio.run(main())


def requests_of_many_lengths_share_padded_runs(names):
    import torch

    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(50, 8)

        def forward(self, ids, mask):
            seen = self.embed(ids) * mask.unsqueeze(-1).float()
            return seen.sum(1), seen

    torch.manual_seed(0)
    module = Masked().eval()
    lengths = {"length": {"ids": 1}}
    pad = ml.Pad(lengths, outputs={"length": {1: 1}}, mask="mask")
    example = (torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.long))
    random = np.random.default_rng(0)
    inputs = [random.integers(0, 50, (1, 1 + i % 9)) for i in range(90)]

    async def main():
        loading = ml.load(
            module,
            inputs=example,
            dynamic={"ids": {1: "length"}, "mask": {1: "length"}},
            device=names,
            batching=ml.Batching(max_rows=8, pad=pad),
        )
        async with loading as model:
            given = await asyncio.gather(*(model.infer(ids=ids) for ids in inputs))
            for ids, (sums, seen) in zip(inputs, given, strict=True):
                ids = torch.from_numpy(ids)
                with torch.no_grad():
                    wanted = module(ids, torch.ones_like(ids))
                close(sums, wanted[0])
                close(seen, wanted[1])
            stats = model.stats()
            assert stats.runs < stats.requests
            assert stats.padding_waste > 0

    asyncio.run(main())


SERVICE_CHECKS = (
    sessions_keep_their_state_and_their_order,
    what_is_late_or_cancelled_leaves_the_others_alone,
    a_reload_changes_the_program_under_load,
    weights_that_are_trained_on_the_device_are_served_there,
    map_gives_results_in_order,
    requests_of_many_lengths_share_padded_runs,
)
