"""The benchmarks run, measure everyone, and report what was measured. Never a time."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import (
    devices,
    echo,
    filetypes,
    gpus,
    keras_digits,
    load,
    minilm,
    overload,
    report,
    savedmodels,
    streams,
    train,
    xla,
)
from benchmarks.beat import Beat
from benchmarks.contenders import (
    Batch,
    Contender,
    Workload,
    batchers,
    bridge,
    greedy,
    nothing_to_close,
    servers,
    starters,
)
from benchmarks.figures import figures
from benchmarks.load import Run
from benchmarks.quantiles import quantile
from benchmarks.results import Cell, Results
from benchmarks.suites import Plan, Stage
from pyasyncml import Batching

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


@needs_compiler
@pytest.mark.skipif(bool(filetypes.missing()), reason="the model isn't installed")
def test_the_onnx_suite_measures_everyone_and_the_floor(tmp_path: Path) -> None:
    results, text = smoke("onnx", tmp_path)
    for model in (filetypes.TINY_NAME, filetypes.NAME):
        for instances, names in (
            (1, {"native", "bridge"}),
            (2, {"native", "bridge", "to_thread", "run_async"}),
        ):
            cells = [
                cell
                for cell in results.cells
                if (cell.workload, cell.instances, cell.mode)
                == (model, instances, "closed")
            ]
            assert {cell.contender for cell in cells} == names
    for figure in figures(results):
        assert figure.text in text


@needs_compiler
@pytest.mark.skipif(bool(savedmodels.missing()), reason="tensorflow isn't installed")
def test_the_tensorflow_suite_measures_everyone_and_the_floor(tmp_path: Path) -> None:
    results, text = smoke("tensorflow", tmp_path)
    for model in (savedmodels.TINY_NAME, savedmodels.NAME):
        for instances in (1, 2):
            cells = [
                cell
                for cell in results.cells
                if (cell.workload, cell.instances, cell.mode)
                == (model, instances, "closed")
            ]
            assert {cell.contender for cell in cells} == set(savedmodels.starters())
    for figure in figures(results):
        assert figure.text in text


@pytest.mark.skipif(
    bool(keras_digits.missing()),
    reason=f"{', '.join(keras_digits.missing())} is not installed",
)
def test_the_keras_suite_compares_every_loss_and_measures_the_clients(
    tmp_path: Path,
) -> None:
    results, text = smoke("keras", tmp_path)
    trained, served = (
        {
            cell.contender: runs
            for cell, runs in results.cells.items()
            if cell[0] == name
        }
        for name in (keras_digits.WORKLOAD, keras_digits.SERVED)
    )
    fits = {keras_digits.FIT, keras_digits.BESIDE}
    assert set(trained) == {*fits, *keras_digits.LOOPS}
    assert set(served) == {"idle loop", keras_digits.FIT, keras_digits.NOTHING}
    for name in keras_digits.LOOPS:
        assert [run.differing for run in trained[name]] == [0]
    for figure in figures(results):
        assert figure.text in text


def test_losses_are_compared_bit_for_bit() -> None:
    pytest.importorskip("numpy")
    expected = [1.5, 0.1, 0.0]
    assert keras_digits.differing(expected, expected) == 0
    assert keras_digits.differing([1.5, 0.1 + 1e-8, -0.0], expected) == 2


@pytest.mark.torch
def test_the_batching_suite_measures_every_batcher_beside_the_no_op(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch")
    results, text = smoke("batching", tmp_path)
    for model in ("tiny MLP", "MLP"):
        for workload, names in (
            (f"{model}, batches", set(batchers())),
            (f"{model}, no-op", {"native", "direct", "nothing"}),
        ):
            cells = [
                cell
                for cell in results.cells
                if (cell.workload, cell.mode) == (workload, "closed")
            ]
            assert {cell.contender for cell in cells} == names
            assert {cell.load for cell in cells} == {64, 512}
            for cell in cells:
                assert results.cells[cell][0].requests >= cell.load
    decisive = [figure for figure in figures(results) if figure.target is not None]
    assert {figure.target for figure in decisive} == {2.0, 1.5}
    for figure in decisive:
        assert figure.text in text


@pytest.mark.torch
def test_the_overload_suite_counts_for_everyone_what_was_answered_in_time(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch")
    results, _ = smoke("overload", tmp_path)
    seconds = results.settings["seconds of overload"]
    for workload in (overload.ECHO, overload.MLP):
        runs = {
            cell.contender: runs
            for cell, runs in results.cells.items()
            if (cell.workload, cell.mode) == (workload, "overload")
        }
        assert set(runs) == set(overload.CONTENDERS)
        for name, (run,) in runs.items():
            assert run.goodput is not None, name
            assert round(run.goodput * seconds) <= run.requests, name
            assert run.growth is not None, name
            assert (run.waiting is not None) == name.startswith("native"), name
        (rejecting,) = runs["native, deadlines, reject"]
        assert rejecting.waiting is not None
        assert rejecting.waiting <= overload.BOUND


@pytest.mark.torch
def test_the_text_suite_measures_every_batcher_or_says_what_it_lacks(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch")
    results, _ = smoke("text", tmp_path)
    everyone = set() if minilm.missing() else {*batchers(), *servers(print)}
    for mode in ("closed", "open"):
        cells = [cell for cell in results.cells if cell.mode == mode]
        assert {cell.contender for cell in cells} == everyone


@pytest.mark.torch
def test_the_graph_suite_measures_every_way_of_running_a_module(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch")
    results, text = smoke("graph", tmp_path)
    closed = [cell for cell in results.cells if cell.mode == "closed"]
    assert len({cell.contender for cell in closed}) == 6
    for cell in closed:
        (run,) = results.cells[cell]
        assert run.requests >= cell.load, cell
    for figure in figures(results):
        assert figure.text in text


@pytest.mark.torch
def test_the_streams_suite_counts_for_everyone_what_was_kept_up_with(
    tmp_path: Path,
) -> None:
    if streams.detector() is None:
        pytest.skip("silero-vad is not installed")
    results, text = smoke("streams", tmp_path)
    assert {cell.contender for cell in results.cells} == set(streams.contenders(""))
    for cell, (run,) in results.cells.items():
        assert run.streams is not None, cell
        assert run.requests >= streams.FIRST, cell
    for figure in figures(results):
        assert figure.text in text


def test_the_train_suite_measures_every_loop_and_the_clients_beside(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch")
    results, text = smoke("train", tmp_path)
    nets = {cell.workload for cell in results.cells if cell.mode == "train"}
    assert len(nets) == 3
    for net in nets:
        mine = {cell.contender for cell in results.cells if cell.workload == net}
        assert mine == {*train.EAGER, *train.NATIVE}
    beside = {cell.contender for cell in results.cells if cell.workload == train.ECHO}
    assert beside == set(train.BESIDE)
    assert all(run.requests > 0 for (run,) in results.cells.values())
    for figure in figures(results):
        assert figure.text in text


@pytest.mark.xla
def test_the_xla_suite_measures_everyone_on_one_device_and_on_four(
    tmp_path: Path,
) -> None:
    results, text = smoke("xla", tmp_path)
    expected = (
        set() if xla.missing() else {(xla.TINY, 1), (xla.LARGE, 1), (xla.FOUR, 4)}
    )
    assert {(cell.workload, cell.instances) for cell in results.cells} == expected
    everyone = set() if xla.missing() else set(xla.starters())
    assert {cell.contender for cell in results.cells} == everyone
    for figure in figures(results):
        assert figure.text in text


@pytest.mark.torch
def test_the_devices_suite_feeds_one_and_two_and_compares_ways_to_wait(
    tmp_path: Path,
) -> None:
    results, text = smoke("devices", tmp_path)
    assert {(cell.workload, cell.instances) for cell in results.cells} == {
        (devices.FED, 1),
        (devices.FED, 2),
        (devices.WAITING, 1),
    }
    waiting = {cell for cell in results.cells if cell.workload == devices.WAITING}
    assert {cell.contender for cell in waiting} == set(devices.WAITS)
    assert all(run.requests > 0 for (run,) in results.cells.values())
    for figure in figures(results):
        assert figure.text in text


@pytest.mark.torch
@pytest.mark.accelerator
def test_what_the_devices_suite_does_on_gpus_runs_on_other_devices() -> None:
    import accelerator

    names = [device.name for device in accelerator.devices()]

    async def main() -> None:
        bench = gpus.Gpus(names, size=8, trained=10)
        await bench.open()
        asked = ("1", "2", *devices.WAITS, "train-native1", "train-native2")
        for what in (*asked, "train-eager1"):
            run = await bench.answer(what, 0.01)
            assert run["requests"] > 0, what
        await bench.close()

    asyncio.run(main())


def test_gpus_that_are_not_there_are_said_to_be_missing() -> None:
    torch = pytest.importorskip("torch")
    found = torch.cuda.is_available()
    assert (gpus.missing() == "") is found
    assert found or gpus.missing() == "torch sees no CUDA device here"


def test_figures_of_gpus_compare_two_with_one_where_there_are_two() -> None:
    run = Run(10, 1.0, 1.0, None, None, lag=None)
    for count in (1, 2):
        results = Results({}, {})
        for several in range(1, count + 1):
            cell = Cell(gpus.FED, several, "closed", devices.IN_FLIGHT, "native")
            results.add(cell, run)
            cell = Cell(gpus.TRAINING, several, "train", train.BATCH, "native")
            results.add(cell, run)
        results.add(Cell(gpus.TRAINING, 1, "train", train.BATCH, "eager"), run)
        for name in devices.WAITS:
            results.add(Cell(gpus.WAITING, 1, "alone", 1, name), run)
        found = [figure for figure in figures(results) if "two GPUs" in figure.text]
        assert len(found) == (2 if count == 2 else 0)


def test_copies_beside_kernels_are_counted_by_time() -> None:
    timeline: devices.Timeline = [
        ("to device", 0.0, 2.0),
        ("kernel", 1.0, 4.0),
        ("to host", 3.0, 5.0),
    ]
    assert devices.under_kernels(timeline) == pytest.approx(0.5)


def test_greedy_batches_drop_the_cancelled_and_fail_the_failing_one_alone() -> None:
    seen = []

    def inner(batch: list[int]) -> list[int]:
        seen.append(batch)
        if 3 in batch:
            raise ValueError("three")
        return [-x for x in batch]

    async def main() -> list[Any]:
        batch = Batch(Batching(), most=4, join=list, split=list)
        workload = SimpleNamespace(inner=inner, scope=nullcontext, batch=batch)
        contender = await greedy.start(workload)  # type: ignore[arg-type]
        pending = [contender.infer(x) for x in range(6)]
        pending[2].cancel()
        answers = await asyncio.gather(*pending, return_exceptions=True)
        await contender.close()
        return answers

    answers = asyncio.run(main())
    assert seen == [[0, 1, 3], [0], [1], [3], [4, 5]]
    assert answers[:2] == [0, -1]
    assert isinstance(answers[2], asyncio.CancelledError)
    assert str(answers[3]) == "three"
    assert answers[4:] == [-4, -5]


def test_greedy_batches_put_similar_sizes_together() -> None:
    seen = []

    def inner(batch: list[int]) -> list[int]:
        seen.append(batch)
        return batch

    async def main() -> list[Any]:
        batch = Batch(Batching(), most=4, join=list, split=list, size=abs)
        workload = SimpleNamespace(inner=inner, scope=nullcontext, batch=batch)
        contender = await greedy.start(workload)  # type: ignore[arg-type]
        sizes = (90, 10, 11, 9, 100, 10, 8)
        answers = await asyncio.gather(*map(contender.infer, sizes))
        await contender.close()
        assert answers == list(sizes)
        return answers

    asyncio.run(main())
    assert seen == [[8, 9, 10, 10], [11], [90, 100]]


def test_sentences_are_real_of_many_lengths_and_always_alike() -> None:
    texts = minilm.sentences()
    assert texts == minilm.sentences()
    assert len(texts) == minilm.TEXTS == len(set(texts))
    words = [len(text.split()) for text in texts]
    assert min(words) >= 4
    assert max(words) >= 40


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


def test_contenders_are_closed_whatever_becomes_of_their_suite() -> None:
    closed = []

    async def starter(workload: Workload) -> Contender:
        async def close() -> None:
            closed.append("contender")

        return Contender("late", workload.run, close, blocking=True)

    async def suite(workload: Workload) -> None:
        plan = Plan(rounds=1, seconds=0.001)
        async with Stage(Results({}, {}), plan, workload) as stage:
            await stage.open({"late": starter})
            raise RuntimeError("a floor that ended")

    async def measure() -> None:
        workload = await echo.workload(1, 0.0)

        async def close() -> None:
            closed.append("workload")
            await workload.close()

        with pytest.raises(RuntimeError, match="a floor that ended"):
            await suite(replace(workload, close=close))

    asyncio.run(measure())
    assert closed == ["contender", "workload"]
