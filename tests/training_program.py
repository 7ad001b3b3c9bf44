"""A training step for tests: the echo backend's, whose loss is the batch's number."""

from __future__ import annotations

import json
import os

import numpy as np

from pyasyncml import LoadError
from pyasyncml.testing import echo
from pyasyncml.training import Trainer


class EchoProgram:
    """Batches hold one number each. What was "trained" is how often `advanced` says."""

    values = ("loss",)
    rows = None

    def __init__(self, model, rates=None):
        self.model = model
        self.columns = 0 if rates is None else 1
        self.rates = rates
        self.steps = self.epochs = 0
        self.metrics = []
        self.follows = False
        self.evaluations = []

    async def open(self, batch, idle):
        pass

    def fits(self, shapes):
        return True

    def schedule(self, per_epoch, step):
        if self.rates is None:
            return None
        return Rates(self.rates, self.steps)

    def advanced(self, steps, epochs):
        self.steps += steps
        self.epochs += epochs

    def epoch_metric(self):
        return self.follows

    def epoch_ended(self, metric):
        self.metrics.append(metric)

    async def evaluate(self, data, batch_size):
        self.evaluations.append((data, batch_size))
        return {"loss": 100.0 + len(self.evaluations)}

    async def snapshot(self, position):
        state = {"steps": self.steps, "position": position}

        async def write(path):
            with open(path + ".new", "w") as file:
                json.dump(state, file)
            os.replace(path + ".new", path)

        return write

    async def restore(self, path):
        try:
            with open(path) as file:
                state = json.load(file)
        except ValueError as error:
            raise LoadError(f"{path}: {error}") from error
        self.steps = state["steps"]
        return state["position"]

    async def close(self):
        await self.model.close()


class Rates:
    constant = False

    def __init__(self, rates, at):
        self.rates, self.at = rates, at

    def take(self, steps):
        self.at += steps
        return np.array(
            [[self.rates(i)] for i in range(self.at - steps, self.at)], dtype=np.float64
        )


async def echo_trainer(rates=None, seed=0, **options):
    model = await echo(**options)
    trainer = Trainer._of(EchoProgram(model, rates), seed)
    return trainer, model
