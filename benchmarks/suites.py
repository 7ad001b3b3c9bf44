"""What is measured: which workloads under which loads, everyone taking turns."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import (
    contenders,
    devices,
    echo,
    filetypes,
    floors,
    gpus,
    graph,
    keras_digits,
    load,
    minilm,
    overload,
    plots,
    savedmodels,
    streams,
    text,
    train,
    xla,
)
from .contenders import Contender, Starter, Workload
from .load import Run
from .results import Cell, Results

IN_FLIGHT = (1, 8, 64, 512, 1024)
ECHO_RATES = (1_000, 10_000, 30_000)
BATCHED = ("tiny MLP", "MLP")
OPEN_SHARE = 0.5  # of the C++ loop's requests per second, for the models' open loop


@dataclass(frozen=True)
class Plan:
    rounds: int
    seconds: float  # of one run
    overload_seconds: float = 60.0  # of overload for each contender, over all rounds
    plots: Path | None = None  # where suites put plots of their own

    @property
    def warm(self) -> float:
        return min(0.2, self.seconds)


class Stage:
    """One workload with its contenders, ready to take turns; closed by its `async
    with`, whatever became of them, since their threads would outlive the program."""

    def __init__(self, results: Results, plan: Plan, workload: Workload) -> None:
        self._results = results
        self._plan = plan
        self.workload = workload
        self._contenders: dict[str, Contender] = {}
        self._stack = AsyncExitStack()

    async def open(self, starters: Mapping[str, Starter]) -> None:
        self._stack.push_async_callback(self.workload.close)
        for name, start in starters.items():
            contender = await start(self.workload)
            self._stack.push_async_callback(contender.close)
            self._contenders[name] = contender
            await load.closed(contender, self.workload.x, 64, self._plan.warm)

    async def __aenter__(self) -> Stage:
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._stack.aclose()

    def _input(self) -> Any:
        """The same for everyone: of texts in turn, from the first on."""
        if isinstance(self.workload.x, minilm.Texts):
            self.workload.x.rewind()
        return self.workload.x

    def _turns(self, turn: int) -> list[tuple[str, Contender]]:
        return rotated(self._contenders, turn)

    async def closed(self, turn: int, in_flight: int) -> None:
        for name, contender in self._turns(turn):
            run = await load.closed(
                contender, self._input(), in_flight, self._plan.seconds
            )
            self._add("closed", in_flight, name, run)

    async def open_loop(self, turn: int, rate: int) -> None:
        for name, contender in self._turns(turn):
            run = await load.open_loop(
                contender, self._input(), rate, self._plan.seconds, seed=turn
            )
            self._add("open", rate, name, run)

    async def idle(self) -> None:
        self._add("idle", 0, "idle loop", await load.idle(self._plan.seconds))

    def ceiling(self, rows: int) -> None:
        """The model alone, on one full batch again and again, on this thread."""
        workload = self.workload
        assert workload.batch is not None
        rows = min(rows, workload.batch.native.max_rows)
        x = workload.batch.join([workload.x] * rows)
        run = load.alone(workload.run, x, rows, self._plan.seconds)
        self._add("ceiling", rows, "model alone", run)

    async def by_turns(self, floor: floors.TorchLoop, threads: int) -> Run:
        """The C++ loop before and after `native`, four times: a machine whose speed
        changes meanwhile changes it for both. Nor does the beat tick, which the C++
        loop hasn't got: it costs whoever computes beside it. Gives the loop's run."""
        native, half = self._contenders["native"], self._plan.seconds / 2
        ours, theirs = [], []
        for _ in range(4):
            theirs.append(floor.ask(threads, half))
            ours.append(
                await load.closed(
                    native, self.workload.x, 64, self._plan.seconds, beat=False
                )
            )
            theirs.append(floor.ask(threads, half))
        self._add("by turns", 64, "native", load.joined(ours))
        self.floor(threads, run := load.joined(theirs))
        return run

    def floor(self, threads: int, run: Run, by: str = "C++ loop") -> None:
        cell = Cell(self.workload.name, threads, "floor", threads, by)
        self._results.add(cell, run)

    def _add(self, mode: str, amount: int, contender: str, run: Run) -> None:
        workload = self.workload
        cell = Cell(workload.name, workload.instances, mode, amount, contender)
        self._results.add(cell, run)


def rotated(
    everyone: Mapping[str, Contender], turn: int
) -> list[tuple[str, Contender]]:
    """Everyone, starting with another one each round."""
    pairs = list(everyone.items())
    start = turn % len(pairs)
    return pairs[start:] + pairs[:start]


def placements() -> tuple[str, ...]:
    """Where the loop's and the worker's thread may run: see native/pingpong.c."""
    return ("free", "apart") if len(os.sched_getaffinity(0)) > 1 else ("free",)


def some(everyone: Mapping[str, Starter], *names: str) -> dict[str, Starter]:
    return {name: everyone[name] for name in names}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def echo_suite(results: Results, plan: Plan) -> None:
    everyone = contenders.starters()

    say("alone in flight: ping-pong floor, native, native without spinning")
    with ExitStack() as stack:
        peers = {
            "C ping-pong": stack.enter_context(floors.pingpong()),
            "native": stack.enter_context(floors.alone(spin=True)),
            "native, PYASYNCML_SPIN=0": stack.enter_context(floors.alone(spin=False)),
        }
        for _ in range(plan.rounds):
            for placement in placements():
                for name, peer in peers.items():
                    run = peer.ask(f"{plan.seconds} {placement}")
                    results.add(Cell(f"alone, {placement}", 1, "alone", 1, name), run)

    for instances, delay, in_flight, rates in (
        (1, 0.0, IN_FLIGHT, ECHO_RATES),
        (2, 0.0, (64, 512), ()),
        (2, 0.001, (64, 512), (1_000,)),
    ):
        async with Stage(results, plan, await echo.workload(instances, delay)) as stage:
            say(f"{stage.workload.name}, instances={instances}")
            await stage.open(everyone)
            for turn in range(plan.rounds):
                if delay:
                    await stage.idle()
                for amount in in_flight:
                    await stage.closed(turn, amount)
                for rate in rates:
                    await stage.open_loop(turn, rate)


async def torch_suite(results: Results, plan: Plan) -> None:
    from . import models

    everyone = contenders.starters()

    async def against_the_loop(model: models.Model, instances: int) -> Run:
        """Both started anew for each round: a process keeps the pages that it got, and
        with them up to 2 % of its speed."""
        workload = models.workload(model, instances)
        with floors.TorchLoop(model) as floor:
            async with Stage(results, plan, workload) as stage:
                await stage.open(some(everyone, "native"))
                return await stage.by_turns(floor, instances)

    with tempfile.TemporaryDirectory() as folder:
        for model in models.build(Path(folder)):
            say(model.name)
            one = Stage(results, plan, models.workload(model, instances=1))
            two = Stage(results, plan, models.workload(model, instances=2))
            noop = Stage(results, plan, await echo.workload(1, 0.0, one.workload.x))
            async with one, two, noop:
                await one.open(everyone)
                await two.open(some(everyone, "native", "bridge", "executor"))
                await noop.open(some(everyone, "direct"))
                rate = 0
                for turn in range(plan.rounds):
                    run = await against_the_loop(model, 1)
                    await against_the_loop(model, 2)
                    rate = rate or int(OPEN_SHARE * run.rps)
                    for in_flight in IN_FLIGHT:
                        await one.closed(turn, in_flight)
                        if in_flight == 64:
                            await two.closed(turn, in_flight)
                            await noop.closed(turn, in_flight)
                    await one.open_loop(turn, rate)


async def batching_suite(results: Results, plan: Plan) -> None:
    from . import models

    with tempfile.TemporaryDirectory() as folder:
        for model in models.build(Path(folder)):
            if model.name not in BATCHED:
                continue
            workload = models.workload(model, instances=1)
            workload = replace(workload, name=f"{model.name}, batches")
            say(workload.name)
            noop = await echo.workload(1, 0.0, workload.x)
            noop = replace(noop, name=f"{model.name}, no-op")
            stages = Stage(results, plan, workload), Stage(results, plan, noop)
            async with stages[0], stages[1]:
                await stages[0].open(contenders.batchers())
                await stages[1].open(contenders.no_ops())
                for turn in range(plan.rounds):
                    for in_flight in (64, 512):
                        stages[0].ceiling(in_flight)
                        for stage in stages:
                            await stage.closed(turn, in_flight)


async def overload_suite(results: Results, plan: Plan) -> None:
    from . import models

    with tempfile.TemporaryDirectory() as folder:
        mlp = next(m for m in models.build(Path(folder)) if m.name == "MLP")
        for workload in (await overload.waiting_echo(), overload.mlp(mlp)):
            say(f"{workload.name}: {overload.TIMES_CAPACITY} times its capacity")
            # In a closed loop nobody is late: what can be served at all.
            async with (
                Stage(results, plan, workload) as closed,
                AsyncExitStack() as stack,
            ):
                await closed.open({"native, batched": overload.native_batched})
                ready = {}
                for name, start in overload.CONTENDERS.items():
                    ready[name] = await start(workload)
                    stack.push_async_callback(ready[name].close)
                for turn in range(plan.rounds):
                    await closed.closed(turn, overload.CLOSED)
                    cell = Cell(
                        workload.name, 1, "closed", overload.CLOSED, "native, batched"
                    )
                    rate = overload.TIMES_CAPACITY * results.cells[cell][-1].rps
                    for name, contender in rotated(ready, turn):
                        run = await overload.overload(
                            contender,
                            workload.x,
                            rate,
                            plan.overload_seconds / plan.rounds,
                            seed=turn,
                        )
                        mode, amount = "overload", overload.TIMES_CAPACITY
                        results.add(Cell(workload.name, 1, mode, amount, name), run)


async def streams_suite(results: Results, plan: Plan) -> None:
    path = streams.detector()
    if path is None:
        say("streams: skipped, for want of silero-vad (benchmarks/README.md)")
        return
    say(streams.WORKLOAD)
    seconds = streams.LONGER * plan.seconds
    trials = 100 if plan.seconds > 0.05 else 2  # a smoke run need not find the end
    everyone = list(streams.contenders(path).items())
    for turn in range(plan.rounds):
        start = turn % len(everyone)
        for name, opening in everyone[start:] + everyone[:start]:
            count, run = await streams.most(opening, seconds, trials)
            cell = Cell(streams.WORKLOAD, 2, "streams", 0, name)
            results.add(cell, replace(run, streams=count))


async def onnx_suite(results: Results, plan: Plan) -> None:
    if missing := filetypes.missing():
        say(f"onnx: skipped, for want of {', '.join(missing)} (benchmarks/README.md)")
        return
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        tiny = Path(name) / "tiny.onnx"
        tiny.write_bytes(filetypes.TINY)
        x = np.ones((1, 4), np.float32)
        await _onnx(results, plan, Path(name), tiny, 1, [x], filetypes.TINY_NAME)
        inputs = [filetypes.features(path) for path in filetypes.files()]
        longer = replace(plan, seconds=filetypes.SLOWER * plan.seconds)
        model = filetypes.model()
        await _onnx(results, longer, Path(name), model, 6, inputs, filetypes.NAME)


async def _onnx(
    results: Results,
    plan: Plan,
    folder: Path,
    model: Path,
    element: int,
    inputs: list[Any],
    name: str,
) -> None:
    """One ONNX model, `inputs` in turn; `element` is ONNX's number of their type."""
    import numpy as np

    say(name)
    turns = minilm.Texts([(x,) for x in inputs])
    one, two = (
        Stage(results, plan, filetypes.workload(model, turns, instances, name))
        for instances in (1, 2)
    )
    expected = one.workload.run((inputs[0],))
    rows = np.stack(inputs)
    async with one, two:
        with floors.OnnxLoop(model, element, rows, folder, expected) as loop:
            for stage in (one, two):
                await stage.open(filetypes.starters(model, stage.workload.instances))
            for turn in range(plan.rounds):
                for threads in (1, 2):
                    how = "plain" if threads == 1 else "sessions"
                    one.floor(threads, loop.ask(how, threads, plan.seconds), "C loop")
                one.floor(
                    1, loop.ask("backend", 1, plan.seconds), "backend in a C loop"
                )
                for in_flight in (1, 64):
                    await one.closed(turn, in_flight)
                await two.closed(turn, 64)
                await one.idle()


async def graph_suite(results: Results, plan: Plan) -> None:
    quick = plan.seconds <= 0.05
    with tempfile.TemporaryDirectory() as folder:
        say("compiling")
        for program in graph.programs(Path(folder), quick):
            say(program.name)
            async with Stage(results, plan, graph.workload(program)) as stage:
                await stage.open(graph.contenders(program))
                for turn in range(plan.rounds):
                    await stage.idle()
                    for in_flight in graph.in_flight(program.name):
                        await stage.closed(turn, in_flight)


async def tensorflow_suite(results: Results, plan: Plan) -> None:
    if missing := savedmodels.missing():
        say(f"tensorflow: skipped, for want of {', '.join(missing)}")
        return
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, function in savedmodels.write(folder).items():
            say(model)
            x = np.ones(savedmodels.SHAPES[model], np.float32)
            one, two = (
                Stage(
                    results,
                    plan,
                    savedmodels.workload(model, folder, function, x, instances),
                )
                for instances in (1, 2)
            )
            expected = one.workload.run(x)
            async with one, two:
                with floors.TensorflowLoop(folder / model, x, folder, expected) as loop:
                    for stage in (one, two):
                        await stage.open(savedmodels.starters())
                    for turn in range(plan.rounds):
                        for threads in (1, 2):
                            run = loop.ask("plain", threads, plan.seconds)
                            one.floor(threads, run, "C loop")
                        run = loop.ask("backend", 1, plan.seconds)
                        one.floor(1, run, "backend in a C loop")
                        for in_flight in (1, 64):
                            await one.closed(turn, in_flight)
                        await two.closed(turn, 64)
                        await one.idle()


async def keras_suite(results: Results, plan: Plan) -> None:
    if missing := keras_digits.missing():
        say(f"keras: skipped, for want of {', '.join(missing)}")
        return
    say(keras_digits.WORKLOAD)
    quick = plan.seconds <= 0.05
    epochs = 1 if quick else keras_digits.EPOCHS
    seconds = keras_digits.LONGER * plan.seconds
    digits = keras_digits.Digits()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "digits"
        digits.write(path)
        for _ in range(plan.rounds):
            async with keras_digits.Training.open(digits, path) as training:
                served = (keras_digits.SERVED, 1, "closed", keras_digits.CLIENTS)
                trained = (keras_digits.WORKLOAD, 1, "train", keras_digits.BATCH)
                idle = Cell(keras_digits.SERVED, 1, "idle", 0, "idle loop")
                results.add(idle, await load.idle(seconds))
                run = await training.clients(None, seconds)
                results.add(Cell(*served, keras_digits.NOTHING), run)
                fit = asyncio.create_task(training.fit(epochs))
                run = await training.clients(fit, 0.0)
                results.add(Cell(*served, keras_digits.FIT), run)
                run, losses = await fit
                run = replace(run, accuracy=await training.accuracy())
                results.add(Cell(*trained, keras_digits.BESIDE), run)
                run, _ = await training.fit(epochs)
                results.add(Cell(*trained, keras_digits.FIT), run)
            for name, compiled in keras_digits.LOOPS.items():
                run = keras_digits.own_loop(digits, compiled, epochs, losses)
                results.add(Cell(*trained, name), run)


async def text_suite(results: Results, plan: Plan) -> None:
    if missing := minilm.missing():
        say(f"text: skipped, for want of {', '.join(missing)} (benchmarks/README.md)")
        return
    with tempfile.TemporaryDirectory() as folder:
        workload, texts = minilm.workload(Path(folder))
        say(workload.name)
        plan = replace(plan, seconds=text.SLOWER * plan.seconds)
        async with Stage(results, plan, replace(workload, x=texts)) as stage:
            await stage.open(text.starters(say))
            rate = 0
            for turn in range(plan.rounds):
                await stage.closed(turn, text.IN_FLIGHT)
                if not rate:
                    cell = Cell(workload.name, 1, "closed", text.IN_FLIGHT, "greedy")
                    rate = int(text.OPEN_SHARE * results.cells[cell][0].rps) or 1
                await stage.open_loop(turn, rate)


async def train_suite(results: Results, plan: Plan) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the native runs have it
    try:
        nets = train.nets()
        for net in nets:
            say(net.name)
            ready = list(train.contenders(net).items())
            for _, contender in ready:
                await contender.run(plan.warm)
            for turn in range(plan.rounds):
                start = turn % len(ready)
                for name, contender in ready[start:] + ready[:start]:
                    cell = Cell(net.name, 1, "train", train.BATCH, name)
                    results.add(cell, await contender.run(plan.seconds))
            for _, contender in ready:
                await contender.close()
        say(train.ECHO)
        workload = await echo.workload(1, 0.0)
        native = await contenders.starters()["native"](workload)
        await load.closed(native, workload.x, train.CLIENTS, plan.warm)
        for turn in range(plan.rounds):
            start = turn % len(train.BESIDE)
            for name in train.BESIDE[start:] + train.BESIDE[:start]:
                async with train.beside(name, nets[1]):
                    run = await load.closed(
                        native,
                        workload.x,
                        train.CLIENTS,
                        train.BESIDE_TIMES * plan.seconds,
                    )
                results.add(Cell(train.ECHO, 1, "closed", train.CLIENTS, name), run)
        await native.close()
        await workload.close()
    finally:
        torch.set_num_threads(threads)


async def xla_suite(results: Results, plan: Plan) -> None:
    if missing := xla.missing():
        say(f"xla: skipped, for want of {', '.join(missing)} (benchmarks/README.md)")
        return
    with tempfile.TemporaryDirectory() as folder:
        for workload in xla.workloads(Path(folder)):
            say(workload.name)
            async with Stage(results, plan, workload) as stage:
                await stage.open(xla.starters())
                for turn in range(plan.rounds):
                    for in_flight in xla.IN_FLIGHT:
                        await stage.closed(turn, in_flight)


async def devices_suite(results: Results, plan: Plan) -> None:
    if missing := devices.missing():
        say(f"devices: skipped, for want of {', '.join(missing)}")
    else:
        say("simulated devices")
        with floors.Devices("devices") as peer:
            _feed(results, plan, peer, 2, (devices.FED, devices.WAITING))
            _overlap(results, plan, peer, "a simulated device", "devices.png")
    if reason := gpus.missing():
        say(f"GPUs: skipped, {reason}")
        return
    say("GPUs")
    count = gpus.count()
    with floors.Devices("gpus") as peer:
        _feed(results, plan, peer, count, (gpus.FED, gpus.WAITING))
        _train(results, plan, peer, count)
        _overlap(results, plan, peer, "a GPU", "gpus.png")


def _feed(
    results: Results, plan: Plan, peer: floors.Devices, count: int, names: Sequence[str]
) -> None:
    fed, waiting = names
    for _ in range(plan.rounds):
        for several in range(1, count + 1):
            run = peer.ask(f"{several} {plan.seconds}")
            cell = Cell(fed, several, "closed", devices.IN_FLIGHT, "native")
            results.add(cell, run)
        for name in devices.WAITS:
            run = peer.ask(f"{name} {plan.seconds}")
            results.add(Cell(waiting, 1, "alone", 1, name), run)


def _train(results: Results, plan: Plan, peer: floors.Devices, count: int) -> None:
    jobs = [("native", several) for several in range(1, count + 1)]
    for _ in range(plan.rounds):
        for name, several in (("eager", 1), *jobs):
            run = peer.ask(f"train-{name}{several} {plan.seconds}")
            cell = Cell(gpus.TRAINING, several, "train", train.BATCH, name)
            results.add(cell, run)


def _overlap(
    results: Results, plan: Plan, peer: floors.Devices, what: str, plot: str
) -> None:
    timelines = {}
    for instances in (1, 2):
        timeline = peer.timeline(instances, 0.02)
        share = devices.under_kernels(timeline)
        text = f"{instances} instance" + ("s" if instances > 1 else "")
        timelines[f"{text}: {share:.0%} of the copies beside a kernel"] = timeline
    results.settings[what] = "; ".join(timelines)
    if plan.plots is not None:
        plots.plot_timelines(what, timelines, plan.plots / plot)
