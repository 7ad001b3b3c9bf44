"""Small TorchScript models, run on a batch of one with one intra-op thread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contenders import Batch, Workload, nothing_to_close

# The best of 32 to 512 for the tiny MLP at 512 in flight and for the MLP at 64.
NATIVE_ROWS = 128
GREEDY_ROWS = 512


@dataclass(frozen=True)
class Model:
    name: str
    path: Path
    input_path: Path  # raw float32, for the C++ loop
    shape: tuple[int, ...]
    weighted_sum: float  # of the output: each element times its flat index


def build(folder: Path) -> list[Model]:
    """Scripts the models and writes them with their inputs."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    modules: list[tuple[str, nn.Module, tuple[int, ...]]] = [
        (
            "tiny MLP",
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)),
            (1, 32),
        ),
        (
            "MLP",
            nn.Sequential(
                nn.Linear(784, 512),
                nn.ReLU(),
                nn.Linear(512, 512),
                nn.ReLU(),
                nn.Linear(512, 10),
            ),
            (1, 784),
        ),
        ("transformer", nn.TransformerEncoder(layer, 2), (1, 32, 64)),
    ]
    models = []
    for name, module, shape in modules:
        stem = name.replace(" ", "_")
        x = torch.randn(shape)
        path, input_path = folder / f"{stem}.pt", folder / f"{stem}.f32"
        torch.jit.script(module.eval()).save(str(path))
        input_path.write_bytes(x.numpy().tobytes())
        with torch.inference_mode():
            flat = torch.jit.load(str(path))(x).flatten().double()
        weighted = float(flat.dot(torch.arange(flat.numel(), dtype=torch.double)))
        models.append(Model(name, path, input_path, shape, weighted))
    return models


def workload(model: Model, instances: int) -> Workload:
    import numpy as np
    import torch

    import pyasyncml

    torch.set_num_threads(1)
    module = torch.jit.load(str(model.path))
    raw = np.fromfile(model.input_path, np.float32).reshape(model.shape)

    def run(x: Any) -> Any:
        with torch.inference_mode():
            return module(x)

    async def native(**options: Any) -> Any:
        return await pyasyncml.load(
            str(model.path), instances=instances, threads=1, **options
        )

    return Workload(
        name=model.name,
        instances=instances,
        x=torch.from_numpy(raw),
        run=run,
        inner=module,
        scope=torch.inference_mode,
        native=native,
        close=nothing_to_close,
        batch=Batch(
            native=pyasyncml.Batching(max_rows=NATIVE_ROWS),
            most=GREEDY_ROWS,
            join=torch.cat,
            split=lambda output: output.unsqueeze(1).unbind(),
        ),
    )
