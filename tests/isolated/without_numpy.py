"""Without numpy, tensors come back as objects that lend their memory."""

import array
import asyncio
import sys

sys.modules["numpy"] = None  # type: ignore[assignment]

from pyasyncml.testing import echo  # noqa: E402


async def main():
    async with await echo() as model:
        x = array.array("f", [1, 2, 3])
        y = await model.infer(x)
        view = memoryview(y)
        assert (view.format, view.shape, view.readonly) == ("f", (3,), False)
        assert view.tolist() == [1, 2, 3]
        view[0] = 7
        assert x[0] == 1
        assert "float32(3,) on cpu" in repr(y)
        assert y.__dlpack_device__() == (1, 0)
        again = await model.infer([y, memoryview(bytes(6)).cast("B", (2, 3))])
        assert memoryview(again[0]).tolist() == [7, 2, 3]
        assert memoryview(again[1]).shape == (2, 3)
    del model
    assert view.tolist() == [7, 2, 3]


asyncio.run(main())
