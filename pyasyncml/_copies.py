"""Many tensors copied in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def copy_all(into: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copies tensors into others of the same sizes: one call, no Python in between."""
    import torch

    if into:
        with torch.no_grad():
            torch._foreach_copy_(list(into), [t.detach() for t in source])
