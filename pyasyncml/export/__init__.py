"""From live programs to files that `load` serves.

>>> from pyasyncml import export  # doctest: +SKIP
>>> export.torch(module, (x,), "model.pt2")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["torch"]


def torch(
    module: Any,
    inputs: Any,
    path: str | os.PathLike[str],
    *,
    dynamic: Any = None,
    entry: str | None = None,
    compile: bool = False,  # noqa: A002
) -> None:
    """Write a `torch.nn.Module` to a `.pt2` that `load` serves, with its checksum.

    The module is exported in the mode it is in (call ``module.eval()`` first), from
    the example `inputs`, one or a tuple; sizes vary as in `load`, `dynamic` names
    further axes. `entry`: another method than forward. The file is what
    `torch.export.save` writes, so that torch reads it too; it appears whole or not at
    all, and ``path + ".sha256"`` with it, which `load` verifies.

    `compile`: with code compiled by AOTInductor for this machine, which runs faster
    still: it needs a C++ compiler and some seconds, here only.

    Takes seconds and is Python: on a loop use ``await call(export.torch, …)``. Raises
    `LoadError` for a module that can't be exported, naming the line, and `OSError`.
    """
    from ._module import export_module
    from ._write import write_atomically

    args = inputs if isinstance(inputs, tuple) else (inputs,)
    program, names = export_module(module, args, dynamic, entry=entry)
    if compile:
        from ._compiled import compile_program

        write_atomically(
            os.fspath(path), lambda made: compile_program(program, names, made)
        )
        return
    from ._archive import save_program
    from ._program import serve

    serve(program, entry or "forward", names)  # what can't be served isn't written
    write_atomically(os.fspath(path), lambda made: save_program(program, names, made))
