"""Copies of a module's tensors, taken in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def tensors_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name, each once."""
    return {
        **dict(module.named_parameters()),
        **dict(module.named_buffers()),
    }


def copy_all(into: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copies tensors into others of the same sizes: one call, no Python in between."""
    import torch

    if into:
        with torch.no_grad():
            torch._foreach_copy_(list(into), [t.detach() for t in source])


class Snapshot:
    """A module's weights at one moment, in memory of their own.

    `tensors`: parameter and buffer names → copies, as `module.state_dict()` has them
    but for tied weights, which are there once. `take()` copies the present values into
    them, where no step runs; the same memory is written each time. To publish weights
    while the last ones are being read, take turns with two.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        import torch

        self._module = module
        self.tensors = {
            name: torch.empty_like(tensor, requires_grad=False)
            for name, tensor in tensors_of(module).items()
        }
        self.take()

    def take(self) -> dict[str, Tensor]:
        """Raises `ValueError` where the module has other tensors than it had."""
        source = tensors_of(self._module)
        for name in source.keys() ^ self.tensors.keys():
            raise ValueError(f"the module's tensor {name!r} came or went")
        for name, tensor in source.items():
            if tensor.shape != self.tensors[name].shape:
                raise ValueError(
                    f"the module's tensor {name!r} was "
                    f"{list(self.tensors[name].shape)} and is {list(tensor.shape)}"
                )
        copy_all([self.tensors[name] for name in source], list(source.values()))
        return self.tensors
