"""LitServe: HTTP in, batches for one worker process. The transport is included.

A process of its own serves the same TorchScript file (litserve_server.py); requests and
answers are JSON, as its own examples have them. A batch waits up to a millisecond for
more, as the other packages' do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import Contender, Workload

START_SECONDS = 60.0
ROOT = Path(__file__).parents[2]


async def start(workload: Workload) -> Contender:
    import httpx
    import torch

    assert workload.path is not None
    assert workload.batch is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "benchmarks.contenders.litserve_server"]
    server = subprocess.Popen(
        [*program, workload.path, str(port), str(workload.batch.most)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60, trust_env=False
    )

    async def close() -> None:
        await client.aclose()
        # With its own processes, which outlive it otherwise.
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    async def infer(x: tuple[Any, Any]) -> Any:
        answer = await client.post("/predict", json={"ids": x[0][0].tolist()})
        answer.raise_for_status()
        return torch.tensor(answer.json()["embedding"])

    async def up() -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get("/health")).status_code == 200:
                    return
            if server.poll() is not None:
                raise RuntimeError(f"LitServe ended with {server.returncode}")
            await asyncio.sleep(0.2)

    try:
        await asyncio.wait_for(up(), START_SECONDS)
    except BaseException:
        await close()
        raise
    return Contender("LitServe", infer, close)
