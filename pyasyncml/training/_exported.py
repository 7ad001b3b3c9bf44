"""Training steps that were exported, from their files."""

from __future__ import annotations

import os
from typing import Any

from .._call import call
from .._files import is_bundle
from ._program import Program


async def load_program(
    source: Any, entry: str, device: str | None, threads: int
) -> Program:
    """See `Trainer.load`."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if await call(is_bundle, path):
            from ._xla_program import XlaProgram

            return await XlaProgram.load(path, entry, device, threads)
    from ._tensorflow_program import TensorflowProgram

    return await TensorflowProgram.load(source, entry, device, threads)
