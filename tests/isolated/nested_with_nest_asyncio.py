"""The package nest_asyncio, as notebooks use it."""

import asyncio

import nest_asyncio

from pyasyncml.testing import echo

nest_asyncio.apply()


async def main():
    async with await echo(instances=2) as model:

        async def inner(n):
            return [await model.infer(n), await model.infer(n + 1)]

        async def outer(n):
            assert await model.infer(n) == n
            return asyncio.run(inner(n))  # within a task, within a callback

        assert asyncio.run(inner(1)) == [1, 2]
        outcomes = await asyncio.gather(*(outer(n) for n in range(100)))
        assert outcomes == [[n, n + 1] for n in range(100)]
        done = asyncio.get_running_loop().create_future()

        def nest(future):
            done.set_result(asyncio.run(inner(future.result())))

        model.infer(5).add_done_callback(nest)
        assert await done == [5, 6]


asyncio.run(main())
