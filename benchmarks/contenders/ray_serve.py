"""Ray Serve: `@serve.batch` in one replica, asked through its handle. The transport
between the processes (an actor call, both ways) is included.

A batch waits up to `BATCH_TIMEOUT` for more, as the other packages' do.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from . import Contender, Workload

BATCH_TIMEOUT = 0.001


async def start(workload: Workload) -> Contender:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # type: ignore[import-not-found]
    import torch
    from ray import serve  # type: ignore[import-not-found]

    assert workload.path is not None
    assert workload.batch is not None
    path, most = workload.path, workload.batch.most

    @serve.deployment(  # type: ignore[untyped-decorator]
        num_replicas=1, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 1}
    )
    class Embedding:
        def __init__(self) -> None:
            import torch

            torch.set_num_threads(1)
            self.module = torch.jit.load(path)

        @serve.batch(  # type: ignore[untyped-decorator]
            max_batch_size=most, batch_wait_timeout_s=BATCH_TIMEOUT
        )
        async def __call__(self, inputs: list[list[int]]) -> list[Any]:
            import torch

            longest = max(map(len, inputs))
            together = torch.zeros((2, len(inputs), longest), dtype=torch.int64)
            for row, ids in enumerate(inputs):
                together[0, row, : len(ids)] = torch.tensor(ids)
                together[1, row, : len(ids)] = 1
            with torch.inference_mode():
                return list(self.module(together[0], together[1]).numpy())

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
    )
    handle = serve.run(
        Embedding.bind(), route_prefix=None, logging_config={"log_level": "ERROR"}
    )

    async def infer(x: tuple[Any, Any]) -> Any:
        return torch.from_numpy((await handle.remote(x[0][0].tolist())).copy())

    async def close() -> None:
        serve.shutdown()
        ray.shutdown()

    return Contender("Ray Serve", infer, close)
