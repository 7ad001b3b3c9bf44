"""What a graph that trains a replica on each of several devices has besides operators:
calls of these functions, which the native half knows. Called, they do the same on one
device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx


def shard(batch: Sequence[torch.Tensor], part: int, parts: int) -> list[torch.Tensor]:
    """A replica's rows of a batch, on its device: as equal parts as can be, the larger
    ones first. What has no rows goes to everybody."""
    return [
        tensor.tensor_split(parts)[part] if tensor.dim() > 0 else tensor
        for tensor in batch
    ]


def barrier() -> None:
    """Waits until every device has done what was enqueued, or has failed."""


fx.node.has_side_effect(barrier)
