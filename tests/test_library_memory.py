"""Memory that goes to the libraries and comes from them: it isn't copied, and it is
held for as long as they have it."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

import pyasyncml as ml

SCRIPT = Path(__file__).parent / "isolated" / "memory_peak.py"
BYTES = 2**27  # of what the script calls many numbers


@pytest.fixture(params=["onnx", "savedmodel"])
def library(request) -> str:
    package = {"onnx": "onnxruntime", "savedmodel": "tensorflow"}[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if request.param == "onnx":
        pytest.importorskip("onnx")
    return request.param


@pytest.fixture
def source(library, request, tmp_path):
    """(path, entry) of one of the models by name."""

    def source(name):
        if library == "savedmodel":
            return request.getfixturevalue("saved_model_folder") / "several", name
        import onnx_models

        path = tmp_path / f"{name}.onnx"
        more = (2**25,) if name == "grown" else ()
        return getattr(onnx_models, name)(path, *more), None

    return source


def aligned(count, offset=0):
    """float32 ones that begin `offset` bytes after a multiple of 64."""
    memory = np.zeros(4 * count + 128, np.uint8)
    begin = -memory.ctypes.data % 64 + offset
    array = memory[begin : begin + 4 * count].view(np.float32)
    array[:] = 1
    return array


def test_an_input_is_lent_and_held_until_the_run_has_ended(source):
    """What is written to it meanwhile is seen: the library reads it where it lies."""
    path, entry = source("late")

    async def main():
        async with ml.load(path, entry=entry) as model:
            await model.infer(aligned(4), np.int32(1) if entry else np.int64(1))
            for rounds in (2**k for k in range(14, 31)):
                x = aligned(4)
                held = weakref.ref(x)
                future = model.infer(x, rounds)
                while not future.done() and model.health().longest_run < 0.02:
                    await asyncio.sleep(0)
                if future.done():
                    continue  # too short a run to write in time
                x[:] = 7
                del x
                gc.collect()
                assert held() is not None
                assert (await future).tolist() == [7] * 4
                break
            else:
                raise AssertionError("no run takes long")
            while held() is not None:  # the worker is about to let go
                await asyncio.sleep(0.001)
                gc.collect()

    asyncio.run(main())


def more_at_the_peak(path, entry, *arguments):
    done = subprocess.run(
        [sys.executable, SCRIPT, path, entry or "-", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return int(done.stdout)


def test_a_large_input_is_not_copied(source):
    assert more_at_the_peak(*source("total"), "many", 0) < BYTES / 2


@pytest.mark.parametrize("library", ["savedmodel"], indirect=True)
def test_one_that_lies_as_tensorflow_cannot_take_it_is_copied_once(source):
    more = more_at_the_peak(*source("total"), "many", 4)
    assert BYTES / 2 < more < BYTES * 1.6


def test_a_large_output_is_handed_on_without_a_copy(source):
    assert BYTES / 2 < more_at_the_peak(*source("grown"), "one", 0) < BYTES * 1.6
