"""The web service, asked by a real client over a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

torch = pytest.importorskip("torch")
uvicorn = pytest.importorskip("uvicorn")

import fastapi_app  # noqa: E402 - needs torch

pytestmark = pytest.mark.torch


@asynccontextmanager
async def served() -> AsyncIterator[httpx.AsyncClient]:
    """The app behind uvicorn on a free port of the loopback interface."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(fastapi_app.app, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    # Connections wait in the listener's backlog until the server accepts them.
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()
    try:
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            yield client
    finally:
        server.should_exit = True
        await serving
        listener.close()


@pytest.mark.asyncio
async def test_handlers_answer_many_clients_at_once() -> None:
    async with served() as client:
        features = torch.arange(64.0).reshape(16, 4).div(64).tolist()
        replies = await asyncio.gather(
            *(client.post("/score", json={"features": row}) for row in features)
        )
        for reply in replies:
            assert reply.status_code == 200
            assert sum(reply.json()["scores"]) == pytest.approx(1.0)
        assert len({str(reply.json()) for reply in replies}) == len(replies)


@pytest.mark.asyncio
async def test_wrong_number_of_features_is_the_clients_mistake() -> None:
    async with served() as client:
        reply = await client.post("/score", json={"features": [1.0, 2.0]})
        assert reply.status_code == 422
        again = await client.post("/score", json={"features": [1.0, 2.0, 3.0, 4.0]})
        assert again.status_code == 200
