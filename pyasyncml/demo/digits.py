"""A small convolutional net for scikit-learn's digits, trained here and exported.

The data are 1,797 real 8x8 images of handwritten digits (E. Alpaydin, C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI, 1998), shipped with scikit-learn.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import pyasyncml as ml

from .heartbeat import Heartbeat

CLIENTS = 8
HELD_OUT = 450
SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images are float32 [n, 1, 8, 8] in 0..1, labels int64 [n]."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_data() -> Digits:
    """The 1,797 images, 450 of them held out, every digit in its proportion."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16.0
    labels = torch.from_numpy(data.target).long()
    train, test = train_test_split(
        range(len(labels)),
        test_size=HELD_OUT,
        stratify=data.target,
        random_state=SEED,
    )
    return Digits(images[train], labels[train], images[test], labels[test])


def build_net() -> nn.Sequential:
    """Two convolutions, one pooling, one linear layer: 9,930 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


@dataclass(frozen=True)
class Trained:
    """A net in its evaluation mode, and what its process did while it learnt: requests
    answered, and how late the loop answered a 1 ms heartbeat, in seconds."""

    net: nn.Sequential
    served: int
    lag: list[float]


async def train(
    data: Digits,
    *,
    epochs: int,
    on_progress: Callable[[ml.Progress, int], None] = lambda progress, served: None,
) -> Trained:
    """Adam on the cross entropy of shuffled batches of 64, from a fixed seed, awaited;
    meanwhile clients are served the held-out images by the same net, with the weights
    that it had a hundred steps ago at most.

    The process's own random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = build_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, fused=True)
    served = 0

    async def client(model: ml.Model, images: list[torch.Tensor]) -> None:
        nonlocal served
        while True:
            for image in images:
                await model.infer(image)
                served += 1

    images = list(data.test_images.split(1))
    async with (
        ml.load(net, inputs=(images[0],)) as model,
        ml.Trainer(
            net, loss=nn.CrossEntropyLoss(), optimizer=optimizer, seed=SEED
        ) as trainer,
    ):
        await trainer.step(data.train_images[:64], data.train_labels[:64])  # traces it
        clients = [asyncio.create_task(client(model, images)) for _ in range(CLIENTS)]
        try:
            with Heartbeat() as beat:
                run = trainer.fit(
                    (data.train_images, data.train_labels),
                    epochs=epochs,
                    batch_size=64,
                    publish=model,
                    publish_every=100,
                )
                async for progress in run:
                    on_progress(progress, served)
                await run
        finally:
            for task in clients:
                task.cancel()
            await asyncio.wait(clients)
    return Trained(net.eval(), served, beat.lag)


def export(net: nn.Module, path: Path) -> Path:
    """Writes the net as a TorchScript archive."""
    with warnings.catch_warnings():
        # torch.jit announces its retirement; TorchScript is the format shown here.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(net).save(str(path))
    return path
