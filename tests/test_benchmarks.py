"""The benchmarks run, measure everyone, and report what was measured. Never a time."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import load, report
from benchmarks.beat import Beat
from benchmarks.contenders import Contender, bridge, nothing_to_close, starters
from benchmarks.figures import figures
from benchmarks.quantiles import quantile
from benchmarks.results import Cell, Results

ROOT = Path(__file__).resolve().parents[1]

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or shutil.which("c++") is None,
    reason="the floors are compiled",
)


def smoke(what: str, folder: Path) -> tuple[Results, str]:
    command = [sys.executable, "-m", "benchmarks", what, "--quick", "--no-plot"]
    done = subprocess.run(
        [*command, "--output", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = (folder / "results.md").read_text()
    assert text in done.stdout
    return Results.read(folder / "results.json"), text


def everyone_answered(results: Results, workload: str, loads: set[int]) -> None:
    for name in starters():
        mine = {
            cell.load: runs
            for cell, runs in results.cells.items()
            if (cell.workload, cell.mode, cell.instances) == (workload, "closed", 1)
            and cell.contender == name
        }
        assert set(mine) == loads, name
        for in_flight, (run,) in mine.items():
            assert run.requests >= in_flight, name
            assert run.lag is not None
            assert run.lag.beats > 0
            assert run.lag.p50_us <= run.lag.p99_us <= run.lag.max_us
            assert run.p50_us is not None
            assert run.p99_us is not None
            assert 0 < run.p50_us <= run.p99_us


@needs_compiler
def test_the_echo_suite_measures_every_contender_under_every_load(
    tmp_path: Path,
) -> None:
    pytest.importorskip("numpy")
    results, text = smoke("echo", tmp_path)
    everyone_answered(results, "echo", {1, 8, 64, 512, 1024})
    modes = {(cell.workload, cell.mode) for cell in results.cells}
    assert {("echo", "open"), ("echo 1 ms", "closed"), ("echo 1 ms", "idle")} <= modes
    alone = {cell.contender for cell in results.cells if cell.mode == "alone"}
    assert alone == {"C ping-pong", "native", "native, PYASYNCML_SPIN=0"}

    decisive = [figure for figure in figures(results) if figure.target is not None]
    assert {figure.target for figure in decisive} == {1.25, 1 / 20, 0.65, 0.99, 0.2}
    for figure in decisive:
        assert figure.text in text
    assert json.loads((tmp_path / "results.json").read_text())["machine"]["cores"] >= 1


@needs_compiler
@pytest.mark.torch
def test_the_torch_suite_measures_every_contender_and_the_floor(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    results, _ = smoke("torch", tmp_path)
    for model in ("tiny MLP", "MLP", "transformer"):
        everyone_answered(results, model, {1, 8, 64, 512, 1024})
        threads = {
            cell.instances
            for cell in results.cells
            if (cell.workload, cell.contender) == (model, "C++ loop")
        }
        assert threads == {1, 2}
    targets = {figure.target for figure in figures(results)}
    assert {0.95, 0.90, 3.0, 0.2} <= targets


def test_beats_missed_by_a_blocked_loop_count_with_their_own_lag() -> None:
    async def main() -> Any:
        beat = Beat(asyncio.get_running_loop())
        blocked_until = time.monotonic() + 0.02
        while time.monotonic() < blocked_until:
            pass
        return beat.stop()

    lag = asyncio.run(main())
    assert lag.beats >= 20
    assert lag.missed == lag.beats - 1
    assert lag.max_us >= 19_000


def test_open_loop_latency_counts_from_the_intended_arrival() -> None:
    def block(_: Any) -> None:
        blocked_until = time.monotonic() + 0.002
        while time.monotonic() < blocked_until:
            pass

    contender = Contender("blocking", block, nothing_to_close, blocking=True)
    # Arrivals every millisecond of work that takes two: the queue grows, and a request
    # late in the run has waited for all before it.
    run = asyncio.run(load.open_loop(contender, None, rate=1000, seconds=0.05, seed=0))
    assert run.unfinished == 0
    assert run.p99_us is not None
    assert run.p99_us > 10 * 2_000


def test_bridge_drops_cancelled_requests_and_fails_the_failing_one_alone() -> None:
    seen = []

    def inner(x: int) -> int:
        seen.append(x)
        if x == 3:
            raise ValueError("three")
        return -x

    class Scope:
        def __enter__(self) -> None: ...
        def __exit__(self, *exception: object) -> None: ...

    async def main() -> list[Any]:
        workload = SimpleNamespace(instances=1, inner=inner, scope=Scope)
        contender = await bridge.start(workload)  # type: ignore[arg-type]
        pending = [contender.infer(x) for x in range(6)]
        pending[2].cancel()
        answers = await asyncio.gather(*pending, return_exceptions=True)
        await contender.close()
        return answers

    answers = asyncio.run(main())
    assert seen == [0, 1, 3, 4, 5]
    assert answers[:2] == [0, -1]
    assert isinstance(answers[2], asyncio.CancelledError)
    assert str(answers[3]) == "three"
    assert answers[4:] == [-4, -5]


def test_nearest_rank_quantiles() -> None:
    values = list(range(1, 101))
    assert quantile(values, 0.50) == 51
    assert quantile(values, 0.99) == 100
    assert quantile([7], 0.99) == 7


def test_a_figure_without_every_run_it_needs_is_an_error_not_a_gap() -> None:
    results = Results({"cores": 1, "python": "3"}, {})
    assert "Figures that decide" in report.markdown(results)
    run = load.Run(1, 1.0, 1.0, 1.0, 1.0, None)
    results.add(Cell("echo", 1, "closed", 512, "native"), run)
    with pytest.raises(KeyError):
        figures(results)
