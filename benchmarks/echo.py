"""The echo backend: what handing a request over costs when the model costs nothing."""

from __future__ import annotations

import contextlib
from typing import Any

from .contenders import Workload

ELEMENTS = 16  # of the input, float32


async def workload(
    instances: int, delay: float, x: Any = None, delay_per_row: float = 0.0
) -> Workload:
    """`delay`: seconds one run takes, `delay_per_row` more for each row. `x`: the
    input, a small NumPy array if None."""
    import numpy as np

    from pyasyncml.testing import echo

    # One model for the blocking callers, which use their own threads, and one for
    # `infer`. Python and C do the same in both: convert, run in C without the GIL,
    # convert back.
    settings: dict[str, Any] = {
        "instances": instances,
        "delay": delay,
        "delay_per_row": delay_per_row,
    }
    blocking = await echo(**settings)

    async def native(**options: Any) -> Any:
        return await echo(**settings, **options)

    name = "echo" if not delay else f"echo {delay * 1e3:g} ms"
    if x is None:
        x = np.zeros(ELEMENTS, np.float32)
    else:
        name = f"{name}, shape {tuple(x.shape)}"
    return Workload(
        name=name,
        instances=instances,
        x=x,
        run=blocking.run_direct,
        inner=blocking.run_direct,
        scope=contextlib.nullcontext,
        native=native,
        close=blocking.close,
    )
