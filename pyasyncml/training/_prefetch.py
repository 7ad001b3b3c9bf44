"""Batches that are submitted ahead of their step."""

from __future__ import annotations

from collections import deque
from typing import Any

from .._core import Future
from ..model import Model

Batch = tuple[Any, ...]


class Prefetch:
    """Batches in their order: those whose steps are in flight, then those that wait to
    be submitted. What has not begun can be taken back, and comes again, with rates of
    its own."""

    def __init__(self) -> None:
        self._flying: deque[tuple[Batch, Model, Future[Any]]] = deque()
        self.waiting: deque[Batch] = deque()
        #: None may follow what is in flight: the rates that come next are not theirs.
        self.interrupted = False

    def __len__(self) -> int:
        """How many are in flight."""
        return len(self._flying)

    @property
    def first(self) -> Future[Any]:
        """The step that ends next."""
        return self._flying[0][2]

    @property
    def model(self) -> Model:
        """Whose steps are in flight: two models' would not be one after the other."""
        return self._flying[-1][1]

    def submitted(self, model: Model, future: Future[Any]) -> None:
        """The first that waited is in flight now."""
        if not self._flying:
            self.interrupted = False
        self._flying.append((self.waiting.popleft(), model, future))

    def pop(self) -> Future[Any]:
        """The step that ends next, no longer in flight."""
        return self._flying.popleft()[2]

    def take_back(self) -> None:
        """What has not begun waits to be submitted again, once nothing is in flight."""
        self.interrupted = True
        while self._flying:
            batch, model, future = self._flying[-1]
            if not model._withdraw(future):
                break  # it has begun, and those before it
            self._flying.pop()
            self.waiting.appendleft(batch)
