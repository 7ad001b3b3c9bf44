"""The same nets for every backend: what test_backends.py runs, and who writes them.

A backend joins by an entry in BACKENDS: what must be installed, and a function that
writes the nets to a folder as "good", "other" and "running".
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Tuple  # noqa: UP035

import numpy as np
import torch

WIDTH = 8  # of what Running sums
LENGTH = 5  # of its example


class Net:
    """The digits' net of the demo, trained; called with arrays it gives arrays."""

    def __init__(self, module: Any) -> None:
        self.module = module.eval()

    @property
    def weights(self) -> list[np.ndarray]:
        """Convolutions first."""
        return [p.detach().numpy() for p in self.module.parameters()]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.module(torch.from_numpy(images.copy())).numpy()


class Running(torch.nn.Module):
    """For padding and sessions: x [n, length, 8] summed over what the mask [n, length]
    has, added to the state [n, 8]; the next state is that, squashed."""

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, state: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:  # noqa: UP006
        y = state + (x * mask.unsqueeze(-1)).sum(1)
        return y, torch.tanh(y)


def running(x: np.ndarray, state: np.ndarray) -> np.ndarray:
    """What Running gives, without padding: y. (The next state is its tanh.)"""
    return state + x.sum(1)


@dataclass(frozen=True)
class Nets:
    good: Net
    other: Net  # which was trained for a moment only

    def digits(self) -> dict[str, Net]:
        return {"good": self.good, "other": self.other}


def write_torchscript(nets: Nets, folder: Path) -> None:
    for name, net in nets.digits().items():
        torch.jit.script(net.module).save(str(folder / name))
    torch.jit.script(Running()).save(str(folder / "running"))


def write_torch_export(nets: Nets, folder: Path) -> None:
    from pyasyncml import export

    for name, net in nets.digits().items():
        export.torch(net.module, torch.zeros(2, 1, 8, 8), folder / name)
    example = torch.ones(2, LENGTH, WIDTH), torch.ones(2, LENGTH), torch.ones(2, WIDTH)
    dynamic = {"x": {1: "length"}, "mask": {1: "length"}}
    export.torch(Running(), example, folder / "running", dynamic=dynamic)


def write_onnx(nets: Nets, folder: Path) -> None:
    import onnx_models

    for name, net in nets.digits().items():
        onnx_models.digits(folder / name, net.weights)
    onnx_models.running(folder / "running", WIDTH)


def write_saved_models(nets: Nets, folder: Path) -> None:
    import saved_models

    weights = {name: net.weights for name, net in nets.digits().items()}
    saved_models.nets(folder, weights, WIDTH)


def write_xla(nets: Nets, folder: Path) -> None:
    import jax

    from pyasyncml import export

    def convolved(x: Any, w: Any, b: Any) -> Any:
        y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")
        return jax.nn.relu(y + b[None, :, None, None])

    def digits(weights: Any, x: Any) -> Any:
        w1, b1, w2, b2, w3, b3 = weights
        x = convolved(convolved(x, w1, b1), w2, b2)
        x = x.reshape(len(x), len(b2), 4, 2, 4, 2).max((3, 5))
        return x.reshape(len(x), -1) @ w3.T + b3

    def running(x: Any, mask: Any, state: Any) -> Any:
        y = state + (x * mask[..., None]).sum(1)
        return y, jax.numpy.tanh(y)

    image = np.zeros((1, 1, 8, 8), np.float32)
    for name, net in nets.digits().items():
        export.jax(digits, image, folder / name, (1, 8, 32), weights=net.weights)
    shapes = (1, LENGTH, WIDTH), (1, LENGTH), (1, WIDTH)
    example = tuple(np.zeros(shape, np.float32) for shape in shapes)
    export.jax(running, example, folder / "running", (1, 8))


@dataclass(frozen=True)
class Backend:
    id: str
    name: str  # as in Stats.backend
    packages: tuple[str, ...]
    write: Callable[[Nets, Path], None]
    device: str = "cpu"
    any_length: bool = True  # of an axis besides the batch
    takes_tokens: bool = True  # computes in the workers, on the processors' budget

    def missing(self) -> list[str]:
        return [name for name in self.packages if not importlib.util.find_spec(name)]


BACKENDS = [
    Backend("torchscript", "torch", ("torch",), write_torchscript),
    Backend("torch-export", "torch", ("torch",), write_torch_export),
    Backend("onnx", "onnxruntime", ("onnxruntime", "onnx"), write_onnx),
    Backend("savedmodel", "tensorflow", ("tensorflow",), write_saved_models),
    Backend(
        "xla",
        "xla",
        ("jax", "lammps_jax_pjrt_cpu"),
        write_xla,
        device="xla:0",
        any_length=False,
        takes_tokens=False,
    ),
]
