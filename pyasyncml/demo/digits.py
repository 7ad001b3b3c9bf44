"""A small convolutional net for scikit-learn's digits, trained here and exported.

The data are 1,797 real 8x8 images of handwritten digits (E. Alpaydin, C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI, 1998), shipped with scikit-learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

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


def train(
    data: Digits, *, epochs: int, on_epoch: Callable[[int], None] = lambda epoch: None
) -> nn.Sequential:
    """Adam on the cross entropy of shuffled batches of 64, from a fixed seed.

    The process's own random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = build_net()
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        loss = nn.CrossEntropyLoss()
        for epoch in range(epochs):
            for batch in torch.randperm(len(data.train_labels)).split(64):
                optimizer.zero_grad()
                out = net(data.train_images[batch])
                loss(out, data.train_labels[batch]).backward()
                optimizer.step()
            on_epoch(epoch + 1)
    return net.eval()


def export(net: nn.Module, path: Path) -> Path:
    """Writes the net as a TorchScript archive."""
    with warnings.catch_warnings():
        # torch.jit announces its retirement; TorchScript is the format shown here.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(net).save(str(path))
    return path
