"""Whose turn it is with live modules.

An export, or the tracing of a step, runs a module's Python on tensors without data: it
puts them into the module in place of its own, for a tenth of a second to seconds, and
patches torch meanwhile. Nobody else may trace then, or look at the module's tensors.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: torch.export patches torch while it works: one at a time. Taken first of the two.
exporting = threading.RLock()
#: Whoever holds it finds modules with their own tensors.
own_tensors = threading.RLock()


def alone(trace: Callable[P, T]) -> Callable[P, T]:
    """For what traces or exports: one at a time in the process."""

    @functools.wraps(trace)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with exporting, own_tensors:
            return trace(*args, **kwargs)

    return locked


def at_rest(look: Callable[P, T]) -> Callable[P, T]:
    """For what looks at a module's tensors: not while somebody traces. Thread: a
    worker, as it may wait for seconds."""

    @functools.wraps(look)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with own_tensors:
            return look(*args, **kwargs)

    return locked
