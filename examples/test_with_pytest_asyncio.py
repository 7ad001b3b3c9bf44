"""How to test code that awaits a model, with pytest-asyncio.

How to run it, from a checkout:

    pip install '.[torch]' pytest pytest-asyncio
    pytest examples/test_with_pytest_asyncio.py

What you see: every test passes, each on the loop that its marks and fixtures give it.

A future belongs to the loop that called `infer`; a model belongs to the process. So a
model loaded on the loop of the whole session serves tests on that loop and tests on
loops of their own.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import pyasyncml as ml
from pyasyncml import testing

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def doubling(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ml.Model]:
    """A model loaded once for all tests; it doubles what it gets."""

    class Double(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    path: Path = tmp_path_factory.mktemp("model") / "double.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Double(), torch.zeros(1)).save(str(path))
    async with ml.load(path) as model:
        yield model


@pytest.mark.asyncio(loop_scope="session")
async def test_on_the_loop_that_loaded_the_model(doubling: ml.Model) -> None:
    y = await doubling.infer(torch.tensor([1.0, 2.0]))
    assert y.tolist() == [2.0, 4.0]


@pytest.mark.asyncio(loop_scope="function")
async def test_on_a_loop_of_its_own(doubling: ml.Model) -> None:
    y = await doubling.infer(torch.tensor([3.0]))
    assert y.tolist() == [6.0]


@pytest.mark.asyncio(loop_scope="function")
async def test_on_a_second_loop_of_its_own(doubling: ml.Model) -> None:
    results = await asyncio.gather(
        *(doubling.infer(torch.tensor([float(i)])) for i in range(32))
    )
    assert [y.item() for y in results] == [2.0 * i for i in range(32)]


@pytest.mark.asyncio
async def test_own_code_without_a_framework() -> None:
    """`testing.echo` gives the inputs back: no model file, no torch."""
    async with await testing.echo() as model:
        assert await model.infer(7) == 7
