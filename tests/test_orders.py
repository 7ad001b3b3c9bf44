"""The three frameworks in one process: our backends' libraries and the imports, in
every order.

Each order is a process of some seconds, so a few are run: others every day, all within
some weeks. PYASYNCML_ORDERS=all runs them all, PYASYNCML_ORDERS=12:15 these.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

SCRIPT = Path(__file__).parent / "isolated" / "orders.py"
IMPORTS = ("torch", "onnxruntime", "tensorflow")
OURS = ("torchscript", "onnx", "savedmodel")
A_DAY = 3


def all_orders() -> Iterator[tuple[str, ...]]:
    """Every order of loading our three: alone, with each import at each place, and with
    all imports before them, between them, after them and in turn with them."""
    orders_of_imports = [*itertools.permutations(IMPORTS)]
    for turn, (a, b, c) in enumerate(itertools.permutations(OURS)):
        yield a, b, c
        for name in IMPORTS:
            yield from ((name, a, b, c), (a, name, b, c), (a, b, name, c))
            yield a, b, c, name
        # Every place with every order of the imports, over all orders of ours.
        x, y, z = zip(
            *(orders_of_imports[turn:] + orders_of_imports[:turn]), strict=True
        )
        yield x[0], y[0], z[0], a, b, c
        yield a, x[1], y[1], z[1], b, c
        yield a, b, x[2], y[2], z[2], c
        yield a, b, c, x[3], y[3], z[3]
        yield x[4], a, y[4], b, z[4], c
        yield a, x[5], b, y[5], c, z[5]


ORDERS = [*all_orders()]


def chosen() -> list[int]:
    asked = os.environ.get("PYASYNCML_ORDERS", "")
    if asked == "all":
        return [*range(len(ORDERS))]
    if asked:
        first, _, last = asked.partition(":")
        return [*range(int(first), int(last or int(first) + 1))]
    today = datetime.date.today().toordinal()
    # A step that shares no factor with how many there are comes by all.
    return [(today * A_DAY + n) * 61 % len(ORDERS) for n in range(A_DAY)]


@pytest.fixture(scope="module")
def files(request, tmp_path_factory):
    """y = 2 x, for each of ours."""
    for name in ("torch", "onnx"):
        pytest.importorskip(name)
    for name in IMPORTS:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    import onnx_models
    import torch

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    folder = tmp_path_factory.mktemp("orders")
    torch.jit.script(Twice()).save(str(folder / "twice.pt"))
    onnx_models.scale(folder / "twice.onnx", 2.0)
    return {
        "torchscript": folder / "twice.pt",
        "onnx": folder / "twice.onnx",
        "savedmodel": request.getfixturevalue("saved_model_folder") / "twice",
    }


def run_in_order(order, files):
    steps = [f"{name}={files[name]}" if name in files else name for name in order]
    says_something = any(name in IMPORTS for name in order)
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *steps],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, **(quiet if says_something else {})},
    )
    ended = (done.returncode, done.stdout) == (0, "ended well\n")
    if ended and (says_something or not done.stderr):
        return None
    return order, done.returncode, done.stdout, done.stderr[-2000:]


def test_the_frameworks_come_in_any_order(files):
    orders = [ORDERS[n] for n in chosen()]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        failed = [
            failure
            for failure in pool.map(lambda order: run_in_order(order, files), orders)
            if failure is not None
        ]
    assert not failed
