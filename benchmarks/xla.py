"""JAX functions: as bundles served by the xla backend, and as `jax.jit` calls.

`run` is what one writes by hand: the jitted function on the rows, padded to a power of
two so that it isn't compiled for every batch, and `block_until_ready`.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyasyncml
from pyasyncml import export

from . import contenders
from .contenders import Batch, Starter, Workload, nothing_to_close

IN_FLIGHT = (1, 16, 256)
SIZES = (1, 8, 32, 128)
TINY, LARGE, FOUR = "XLA tiny MLP", "XLA MLP", "XLA MLP, four devices"
WORKLOADS = ((TINY, (32, 64, 10), 1), (LARGE, (784, 512, 512, 10), 1))
DEVICES = 4  # simulated, of the CPU


def missing() -> list[str]:
    return [name for name in ("jax", "lammps_jax_pjrt_cpu") if not find_spec(name)]


def starters() -> dict[str, Starter]:
    everyone = {**contenders.batchers(), **contenders.starters()}
    names = ("native", "native, batched", "to_thread", "bridge", "greedy", "direct")
    return {name: everyone[name] for name in names}


def workloads(folder: Path) -> list[Workload]:
    # Before the plugin is loaded: its client is made once a process.
    os.environ.setdefault("PYASYNCML_XLA_OPTIONS", f"cpu_device_count={DEVICES}")
    made = [_workload(folder, name, sizes, 1) for name, sizes, _ in WORKLOADS]
    return [*made, _workload(folder, FOUR, WORKLOADS[1][1], DEVICES)]


def _workload(
    folder: Path, name: str, sizes: tuple[int, ...], devices: int
) -> Workload:
    import jax
    import numpy as np

    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    weights = [
        np.asarray(jax.random.normal(key, (n, m)) * n**-0.5)
        for key, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ]

    def mlp(weights: Any, x: Any) -> Any:
        for weight in weights[:-1]:
            x = jax.nn.relu(x @ weight)
        return x @ weights[-1]

    path = folder / name.replace(" ", "_")
    x = np.random.default_rng(0).normal(size=(1, sizes[0])).astype(np.float32)
    export.jax(mlp, x, path, SIZES, weights=weights)
    jitted = jax.jit(mlp)
    on_device = [jax.device_put(weight) for weight in weights]

    def run(x: Any) -> Any:
        rows = len(x)
        bucket = 1 << (rows - 1).bit_length()
        if bucket > rows:
            x = np.concatenate([x, np.zeros((bucket - rows, x.shape[1]), x.dtype)])
        return np.asarray(jitted(on_device, x).block_until_ready())[:rows]

    names = [f"xla:{n}" for n in range(devices)]

    async def native(**options: Any) -> Any:
        return await pyasyncml.load(path, device=names, **options)

    return Workload(
        name=name,
        instances=devices,
        x=x,
        run=run,
        inner=run,
        scope=nullcontext,
        native=native,
        close=nothing_to_close,
        batch=Batch(
            native=pyasyncml.Batching(max_rows=SIZES[-1]),
            most=SIZES[-1],
            join=np.concatenate,
            split=lambda y: y[:, None],
        ),
    )
