"""XLA over a plugin that fails where a test wants it (tests/xla_stub/plugin.c), in a
process of its own: there is one plugin a process.

Arguments: what to do, the stub and a bundle that doubles four numbers."""

import asyncio
import ctypes
import re
import sys

import numpy as np

import pyasyncml as ml

what, stub_path, bundle = sys.argv[1:]
stub = ctypes.CDLL(stub_path)
x = np.arange(4, dtype=np.float32)

EXECUTES, REFUSES, FAILS_LATE = range(3)
INTERNAL = 13


async def failure(awaitable, kind=ml.BackendError):
    """What it says of its failure."""
    (answer,) = await asyncio.gather(awaitable, return_exceptions=True)
    assert type(answer) is kind, answer
    return str(answer)


async def works(model):
    np.testing.assert_array_equal(await model.infer(x), 2 * x)


async def a_lost_device(how):
    """It is taken out, and comes back by a reload once it works again."""
    async with ml.load(bundle, device="xla:0") as model:
        await works(model)
        stub.stub_fail(0, how, INTERNAL, 1)
        assert "device xla:0 was lost: " in await failure(model.infer(x))
        assert model.health().lost == ("xla:0",), model.health()
        refused = await failure(model.infer(x))
        assert "no device left" in refused, refused
        assert "fell off the bus" in refused, refused
        stub.stub_fail(0, EXECUTES, 0, 0)
        assert "no device left" in await failure(model.infer(x))
        await model.reload(bundle)
        await works(model)


async def a_failing_program(how):
    """The device is still there: the next request may do well."""
    async with ml.load(bundle, device="xla:0") as model:
        stub.stub_fail(0, how, INTERNAL, 0)
        assert await failure(model.infer(x)) == "XLA: fell off the bus"
        assert model.health().lost == ()
        stub.stub_fail(0, EXECUTES, 0, 0)
        await works(model)


async def one_of_two_devices():
    """The other goes on; nobody but who was on the first notices. (Which device takes
    which request is a race of two workers: so ask until the first had one.)"""
    async with ml.load(bundle, device=["xla:0", "xla:1"]) as model:
        stub.stub_fail(0, REFUSES, INTERNAL, 1)
        failed = []
        while not failed:
            answers = await asyncio.gather(
                *(model.infer(x) for _ in range(100)), return_exceptions=True
            )
            failed = [a for a in answers if isinstance(a, BaseException)]
        assert all("device xla:0 was lost" in str(error) for error in failed), failed
        assert len(failed) <= 8, failed
        assert model.health().lost == ("xla:0",)
        for _ in range(20):
            await works(model)


async def a_trainer():
    """`bundle` is a step that adds its batch; a restore brings it back."""
    async with await ml.Trainer.load(bundle, device="xla:0") as trainer:
        await trainer.fit((x,), shuffle=False)
        await trainer.save(stub_path + ".saved")
        stub.stub_fail(0, FAILS_LATE, INTERNAL, 1)
        said = await failure(trainer.fit((x,), shuffle=False))
        assert re.search("device xla:0 was lost: .* fell off the bus", said), said
        stub.stub_fail(0, EXECUTES, 0, 0)
        await trainer.restore(stub_path + ".saved")
        np.testing.assert_array_equal(await trainer.state(), x)


async def a_crowd():
    """More instances than the device takes runs of; `bundle` takes some milliseconds.
    (32: where PJRT begins to make callers wait.)"""
    square = np.full((256, 256), 1e-3, np.float32)
    async with (
        ml.load(bundle, device="xla:0", instances=5) as many,
        ml.load(bundle, device="xla:0") as one,
        ml.load(bundle, device="xla:0") as other,
    ):
        models = (many, many, many, one, other)
        await asyncio.gather(
            *(model.infer(square) for _ in range(30) for model in models)
        )
    assert 16 <= stub.stub_most() < 32, stub.stub_most()


async def an_empty_plugin_first():
    """The next one is taken."""
    async with ml.load(bundle) as model:
        await works(model)
    assert [d.device for d in ml.devices() if d.backend == "xla"] == ["xla:0"]


async def an_empty_plugin_only():
    said = await failure(ml.load(bundle)._open(), ml.LoadError)
    assert "the XLA plugin finds no device here" in said, said


asyncio.run(
    {
        "lost": lambda: a_lost_device(REFUSES),
        "lost_late": lambda: a_lost_device(FAILS_LATE),
        "failing": lambda: a_failing_program(REFUSES),
        "failing_late": lambda: a_failing_program(FAILS_LATE),
        "one_of_two": one_of_two_devices,
        "trainer": a_trainer,
        "crowd": a_crowd,
        "empty_first": an_empty_plugin_first,
        "empty_only": an_empty_plugin_only,
    }[what]()
)
