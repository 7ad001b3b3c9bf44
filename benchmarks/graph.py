"""Live modules, exported: the graph runner against the ways torch itself offers.

One intra-op thread, one request a run. Through pyasyncml, on one worker or two: the
graph, and code that AOTInductor compiled. In `asyncio.to_thread`, on as many threads as
the default executor has: eager, TorchScript, and the same compiled code through torch's
own binding, which holds the GIL for the length of a run.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import minilm
from .contenders import Contender, Starter, Workload, nothing_to_close

IN_FLIGHT = (1, 64)
GRAPH = "graph"
GRAPH_2 = "graph, 2 instances"
COMPILED = "compiled"
BINDING = "AOTInductor, to_thread"
#: Runs of a tenth of a second, where a frozen loop is seen best.
WIDE = "wide MLP"


@dataclass(frozen=True)
class Program:
    """A module with its example inputs, and the compiled package made of it."""

    name: str
    module: Any
    inputs: tuple[Any, ...]
    dynamic: Any
    package: Path


def programs(folder: Path, quick: bool) -> list[Program]:
    """Builds what is measured; `quick`: the smallest alone. Compiling takes a while."""
    import torch
    from torch import nn

    import pyasyncml

    torch.manual_seed(0)
    torch.set_num_threads(1)
    wide = [nn.Sequential(nn.Linear(2048, 2048), nn.ReLU()) for _ in range(3)]
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    made: list[tuple[str, Any, tuple[Any, ...], Any]] = [
        ("MLP", _mlp(), (torch.randn(1, 784),), None),
        ("transformer", encoder, (torch.randn(1, 32, 64),), None),
        (WIDE, nn.Sequential(*wide), (torch.randn(512, 2048),), None),
    ]
    if not minilm.missing():
        ids = torch.randint(1000, 2000, (1, 16))
        dynamic = {"input_ids": {1: "length"}, "attention_mask": {1: "length"}}
        made.append(("MiniLM", _bert(), (ids, torch.ones_like(ids)), dynamic))
    found = []
    for name, module, inputs, dynamic in made[:1] if quick else made:
        module.eval()
        path = folder / f"{name.replace(' ', '_')}.pt2"
        pyasyncml.export.torch(module, inputs, path, dynamic=dynamic, compile=True)
        found.append(Program(f"{name}, exported", module, inputs, dynamic, path))
    return found


def _mlp() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def _bert() -> Any:
    from transformers import AutoModel

    source = importlib.util.find_spec(minilm.PACKAGES[-1])
    assert source is not None
    assert source.origin is not None
    files = Path(source.origin).parent / "model"
    return AutoModel.from_pretrained(str(files), local_files_only=True)


def workload(program: Program) -> Workload:
    import torch

    def run(inputs: tuple[Any, ...]) -> Any:
        with torch.inference_mode():
            return program.module(*inputs)

    async def native(**options: Any) -> Any:
        raise NotImplementedError

    return Workload(
        name=program.name,
        instances=1,
        x=program.inputs,
        run=run,
        inner=run,
        scope=nullcontext,
        native=native,
        close=nothing_to_close,
    )


def contenders(program: Program) -> Mapping[str, Starter]:
    import torch

    import pyasyncml

    def native(name: str, source: Any, **options: Any) -> Starter:
        async def start(_: Workload) -> Contender:
            model = await pyasyncml.load(source, threads=1, **options)

            def infer(inputs: tuple[Any, ...]) -> Any:
                return model.infer(*inputs)

            async def close() -> None:
                await model.close()

            return Contender(name, infer, close, model=model)

        return start

    def in_thread(name: str, make: Callable[[], Any]) -> Starter:
        async def start(_: Workload) -> Contender:
            function = make()

            def run(inputs: tuple[Any, ...]) -> Any:
                with torch.inference_mode():
                    return function(*inputs)

            def infer(inputs: tuple[Any, ...]) -> Coroutine[Any, Any, Any]:
                return asyncio.to_thread(run, inputs)

            return Contender(name, infer, nothing_to_close)

        return start

    def scripted() -> Any:
        return torch.jit.trace(
            program.module, program.inputs, strict=False, check_trace=False
        )

    def compiled() -> Any:
        return torch._inductor.aoti_load_package(str(program.package))

    options = {"inputs": program.inputs, "dynamic": program.dynamic}
    return {
        GRAPH: native(GRAPH, program.module, **options),
        GRAPH_2: native(GRAPH_2, program.module, instances=2, **options),
        COMPILED: native(COMPILED, str(program.package), inputs=program.inputs),
        "eager, to_thread": in_thread("eager, to_thread", lambda: program.module),
        "TorchScript, to_thread": in_thread("TorchScript, to_thread", scripted),
        BINDING: in_thread(BINDING, compiled),
    }
