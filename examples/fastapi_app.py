r"""A web service that awaits a model in its handlers.

How to run it, from a checkout:

    pip install '.[torch]' fastapi uvicorn
    uvicorn --app-dir examples fastapi_app:app
    curl localhost:8000/score -H 'content-type: application/json' \
        -d '{"features": [5.1, 3.5, 1.4, 0.2]}'

What you see: uvicorn's "Application startup complete." once the model is warm, and from
curl {"scores":[0.388…,0.219…,0.391…]}.

The model is loaded when the server starts and closed, with what it has accepted
served, when the server stops. Handlers await it like any other awaitable; the event
loop goes on accepting requests meanwhile. Set MODEL to the path of a TorchScript
archive that takes float32 [1, 4]; without it a small one is made on the spot.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

import pyasyncml as ml

FEATURES = 4


def export_small_model(folder: str) -> str:
    """A linear layer and a softmax, from a fixed seed."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(FEATURES, 3), torch.nn.Softmax(-1))
        path = Path(folder, "small.pt")
        torch.jit.script(net.eval()).save(str(path))
    return str(path)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.environ.get("MODEL") or export_small_model(folder)
        async with ml.load(path, instances=2, name="small") as model:
            app.state.model = model
            yield


app = FastAPI(lifespan=lifespan)


class Sample(BaseModel):
    features: list[float]


class Scores(BaseModel):
    scores: list[float]


@app.post("/score")
async def score(sample: Sample, request: Request) -> Scores:
    x = torch.tensor([sample.features], dtype=torch.float32)
    try:
        y = await request.app.state.model.infer(x, timeout=1.0)
    except ml.QueueFull as error:
        raise HTTPException(503, "busy, try again") from error
    except ml.DeadlineExceeded as error:
        raise HTTPException(504, "took longer than a second") from error
    except (ml.InputError, ml.BackendError) as error:
        raise HTTPException(422, str(error)) from error
    return Scores(scores=y[0].tolist())
