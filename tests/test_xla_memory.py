"""Runs by the ten thousands leave nothing behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
from xla_programs import FEATURES, adam_state, adam_step, init_layers, mlp

import pyasyncml as ml
from pyasyncml import export

pytestmark = pytest.mark.xla

RUNS = int(os.environ.get("PYASYNCML_STRESS", "20000"))
#: Bytes a round: an event that isn't destroyed in each run would be 2 MB.
ALLOWED = 512 << 10


def resident():
    """Bytes of this process's own: pages of mapped files aren't counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


async def grown(one_wave, runs_a_wave):
    """The middle one of three rounds' growths, after one that fills what is kept."""
    growths = []
    for n in range(4):
        before = resident()
        for _ in range(RUNS // 4 // runs_a_wave):
            await one_wave()
        if n > 0:
            growths.append(resident() - before)
    return sorted(growths)[1]


def test_runs_leave_nothing_behind(tmp_path):
    layers = init_layers(0, FEATURES, 32, 4)
    path = tmp_path / "mlp"
    export.jax(mlp, np.zeros((1, FEATURES), np.float32), path, (1, 8), weights=layers)
    x = np.ones((5, FEATURES), np.float32)

    async def main():
        async with ml.load(path, device=["xla:0", "xla:1"]) as model:
            return await grown(
                lambda: asyncio.gather(*(model.infer(x) for _ in range(50))), 50
            )

    assert asyncio.run(main()) < ALLOWED


def test_steps_of_a_state_leave_nothing_behind(tmp_path):
    state = adam_state(init_layers(0, FEATURES, 32, 4))
    path = tmp_path / "step"
    x = np.ones((8, FEATURES), np.float32)
    y = np.zeros(8, np.int32)
    export.jax(adam_step, (x, y, 1e-3), path, None, state=state)

    async def main():
        async with ml.load(path, device="xla:0") as model:
            return await grown(
                lambda: asyncio.gather(*(model.infer(x, y, 1e-3) for _ in range(50))),
                50,
            )

    assert asyncio.run(main()) < ALLOWED
