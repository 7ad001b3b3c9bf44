"""The figures that decide: ratios between runs of one round, against their targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import (
    devices,
    filetypes,
    gpus,
    graph,
    keras_digits,
    overload,
    savedmodels,
    streams,
    train,
    xla,
)
from .load import Run
from .models import NATIVE_ROWS as BATCH_ROWS
from .quantiles import Spread
from .results import Cell, Results

AT_MOST, AT_LEAST = "≤", "≥"


@dataclass(frozen=True)
class Figure:
    """`spread`: over the rounds; the median is what meets the target or doesn't."""

    text: str
    spread: Spread
    unit: str = ""
    sense: str | None = None
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """None for a figure that is there to be read, without a target."""
        if self.target is None:
            return None
        if self.sense == AT_MOST:
            return self.spread.median <= self.target
        return self.spread.median >= self.target


def time_per_request(run: Run) -> float:
    return run.us_per_request


def cpu_per_request(run: Run) -> float:
    return run.cpu_us


def throughput(run: Run) -> float:
    return run.rps


def p50(run: Run) -> float:
    assert run.p50_us is not None
    return run.p50_us


def p99(run: Run) -> float:
    assert run.p99_us is not None
    return run.p99_us


def lag_p50(run: Run) -> float:
    assert run.lag is not None
    return run.lag.p50_us


def lag_p99(run: Run) -> float:
    assert run.lag is not None
    return run.lag.p99_us


def goodput(run: Run) -> float:
    assert run.goodput is not None
    return run.goodput


def growth(run: Run) -> float:
    assert run.growth is not None
    return run.growth


def accuracy(run: Run) -> float:
    assert run.accuracy is not None
    return run.accuracy


def differing(run: Run) -> float:
    assert run.differing is not None
    return run.differing


def kept_up(run: Run) -> float:
    assert run.streams is not None
    return run.streams


def waiting(run: Run) -> float:
    assert run.waiting is not None
    return run.waiting


class _Reader:
    def __init__(self, results: Results) -> None:
        self._results = results
        self.figures: list[Figure] = []

    def rounds(
        self,
        read: Callable[[Run], float],
        contender: str,
        workload: str,
        in_flight: int,
        instances: int = 1,
        mode: str = "closed",
    ) -> list[float]:
        cell = Cell(workload, instances, mode, in_flight, contender)
        return self._results.values(cell, read)

    def add(
        self,
        text: str,
        values: list[float],
        sense: str | None = None,
        target: float | None = None,
        unit: str = "",
    ) -> None:
        self.figures.append(Figure(text, Spread.of(values), unit, sense, target))

    def loads(self, workload: str, mode: str) -> list[int]:
        cells = [cell for cell in self._results.cells if cell.workload == workload]
        return sorted({cell.load for cell in cells if cell.mode == mode})

    def contenders(self, workload: str) -> list[str]:
        cells = [cell for cell in self._results.cells if cell.workload == workload]
        return list(dict.fromkeys(cell.contender for cell in cells))

    def workloads(self) -> list[str]:
        return list(dict.fromkeys(cell.workload for cell in self._results.cells))

    def has(self, workload: str, instances: int = 1) -> bool:
        """Whether it was measured, with that many instances or more."""
        return any(
            cell.workload == workload and cell.instances >= instances
            for cell in self._results.cells
        )


def figures(results: Results) -> list[Figure]:
    reader = _Reader(results)
    if reader.has("echo"):
        for placement in ("free", "apart"):
            if reader.has(f"alone, {placement}"):
                _alone(reader, placement)
        _echo(reader)
        _delayed_echo(reader)
    for model in ("tiny MLP", "MLP", "transformer"):
        if reader.has(model):
            _model(reader, model)
    for name in dict.fromkeys(cell.workload for cell in results.cells):
        if name.endswith(", exported"):
            _graph(reader, name)
    for model, in_flight, target in (("tiny MLP", 512, 2.0), ("MLP", 64, 1.5)):
        if reader.has(f"{model}, batches"):
            _batches(reader, model, in_flight, target)
    for workload, target in ((overload.ECHO, 0.9), (overload.MLP, 0.75)):
        if reader.has(workload):
            _overload(reader, workload, target)
    for model in (filetypes.TINY_NAME, filetypes.NAME):
        if reader.has(model):
            _onnx(reader, model)
    for model in (savedmodels.TINY_NAME, savedmodels.NAME):
        if reader.has(model):
            _tensorflow(reader, model)
    if reader.has(keras_digits.WORKLOAD):
        _keras(reader)
    if reader.has("MiniLM"):
        _text(reader)
    if reader.has(streams.WORKLOAD):
        _streams(reader)
    for workload in reader.workloads():
        if workload.startswith("training "):
            _train(reader, workload)
    if reader.has(train.ECHO):
        _beside_training(reader)
    for workload, instances in ((xla.TINY, 1), (xla.LARGE, 1), (xla.FOUR, xla.DEVICES)):
        if reader.has(workload):
            _xla(reader, workload, instances)
    if reader.has(devices.FED):
        _devices(reader)
    if reader.has(gpus.FED):
        _gpus(reader)
    return reader.figures


def _divided(over: list[float], under: list[float]) -> list[float]:
    return [a / b if b else float("inf") for a, b in zip(over, under, strict=True)]


def _minus(values: list[float], base: list[float]) -> list[float]:
    return [a - b for a, b in zip(values, base, strict=True)]


def _alone(reader: _Reader, placement: str) -> None:
    workload = f"alone, {placement}"
    names = ("native", "native, PYASYNCML_SPIN=0")
    floor = reader.rounds(p50, "C ping-pong", workload, 1, mode="alone")
    for name, target in zip(names, (1.25, None), strict=True):
        times = reader.rounds(p50, name, workload, 1, mode="alone")
        sense = AT_MOST if target else None
        text = f"{workload}: p50 of {name} / C ping-pong"
        reader.add(text, _divided(times, floor), sense, target)
    for name in (*names, "C ping-pong"):
        cpu = reader.rounds(cpu_per_request, name, workload, 1, mode="alone")
        reader.add(f"{workload}: CPU a request, {name}", cpu, unit="µs")


def _echo(reader: _Reader) -> None:
    each = {
        name: reader.rounds(time_per_request, name, "echo", 512)
        for name in ("native", "bridge", "to_thread", "direct")
    }
    native = _minus(each["native"], each["direct"])
    for peer, target in (("to_thread", 1 / 20), ("bridge", 0.65)):
        ratio = _divided(native, _minus(each[peer], each["direct"]))
        text = f"echo, 512 in flight, time added to direct: native / {peer}"
        reader.add(text, ratio, AT_MOST, target)
    reader.add("echo, 512 in flight, time added to direct: native", native, unit="µs")
    _lag_against_to_thread(reader, "echo")


def _delayed_echo(reader: _Reader) -> None:
    name = "echo 1 ms"
    served = reader.rounds(throughput, "native", name, 64, instances=2)
    full = [2000.0] * len(served)
    text = "echo of 1 ms, 2 instances, 64 in flight: requests per second / 2,000"
    reader.add(text, _divided(served, full), AT_LEAST, 0.99)
    one_thread = reader.rounds(throughput, "direct", name, 64, instances=2)
    text = "echo of 1 ms, 2 instances, 64 in flight: requests per second / 2 x direct"
    reader.add(text, _divided(served, [2 * rate for rate in one_thread]))
    for which, read in (("p50", lag_p50), ("p99", lag_p99)):
        lag = reader.rounds(read, "native", name, 64, instances=2)
        idle = reader.rounds(read, "idle loop", name, 0, instances=2, mode="idle")
        text = f"echo of 1 ms, 64 in flight, loop lag {which}: native / idle loop"
        reader.add(text, _divided(lag, idle), AT_MOST, 1.25)


def _cpp_loop(
    reader: _Reader, read: Callable[[Run], float], model: str, threads: int
) -> list[float]:
    return reader.rounds(read, "C++ loop", model, threads, threads, mode="floor")


def _by_turns(
    reader: _Reader, read: Callable[[Run], float], model: str, instances: int
) -> list[float]:
    """`native`, with the C++ loop before and after."""
    return reader.rounds(read, "native", model, 64, instances, mode="by turns")


def _model(reader: _Reader, model: str) -> None:
    for instances, target in ((1, 0.95), (2, 0.90)):
        served = _by_turns(reader, throughput, model, instances)
        floor = _cpp_loop(reader, throughput, model, instances)
        text = f"{model}, 64 in flight, requests per second: native / C++ loop"
        text += f", {instances} thread" + ("s" if instances > 1 else "")
        if model == "tiny MLP":
            reader.add(text, _divided(served, floor))
        else:
            reader.add(text, _divided(served, floor), AT_LEAST, target)
    if model == "tiny MLP":
        native = _by_turns(reader, cpu_per_request, model, 1)
        floor = _cpp_loop(reader, cpu_per_request, model, 1)
        noop = reader.rounds(cpu_per_request, "direct", "echo, shape (1, 32)", 64)
        above = _minus(_minus(native, floor), noop)
        text = "tiny MLP, 64 in flight, CPU a request: native - C++ loop - direct no-op"
        reader.add(text, above, AT_MOST, 3.0, "µs")
    _lag_against_to_thread(reader, model)


def _lag_against_to_thread(reader: _Reader, workload: str) -> None:
    native = reader.rounds(lag_p99, "native", workload, 512)
    thread = reader.rounds(lag_p99, "to_thread", workload, 512)
    text = f"{workload}, 512 in flight, loop lag p99: native / to_thread"
    reader.add(text, _divided(native, thread), AT_MOST, 0.2)


def _batches(reader: _Reader, model: str, in_flight: int, target: float) -> None:
    workload, noop = f"{model}, batches", f"{model}, no-op"
    load = f"{workload}, {in_flight} in flight"
    served = reader.rounds(throughput, "native, batched", workload, in_flight)
    for peer in reader.contenders(workload):
        if peer in ("native, batched", "model alone"):
            continue
        at_least = target if peer == "greedy" else None
        ratio = _divided(served, reader.rounds(throughput, peer, workload, in_flight))
        text = f"{load}, requests per second: native, batched / {peer}"
        reader.add(text, ratio, AT_LEAST if at_least else None, at_least)
    rows = min(in_flight, BATCH_ROWS)
    most = reader.rounds(throughput, "model alone", workload, rows, mode="ceiling")
    text = f"{load}, requests per second: native, batched / model alone, {rows} rows"
    reader.add(text, _divided(served, most))
    nothing = reader.rounds(time_per_request, "nothing", noop, in_flight)
    native, greedy = (
        _minus(reader.rounds(time_per_request, name, workload, in_flight), nothing)
        for name in ("native, batched", "greedy")
    )
    text = f"{load}, time added to the client's own: native, batched / greedy"
    reader.add(text, _divided(native, greedy))
    lag = reader.rounds(lag_p99, "native, batched", workload, 512)
    echo = reader.rounds(lag_p99, "native", noop, 512)
    text = f"{workload}, 512 in flight, loop lag p99: native, batched / native no-op"
    reader.add(text, _divided(lag, echo), AT_MOST, 1.5)


def _overload(reader: _Reader, workload: str, target: float) -> None:
    times = overload.TIMES_CAPACITY
    capacity = reader.rounds(throughput, "native, batched", workload, overload.CLOSED)

    def rounds(read: Callable[[Run], float], name: str) -> list[float]:
        return reader.rounds(read, name, workload, times, mode="overload")

    text = f"{workload}, {times} x capacity"
    with_deadlines = ("native, deadlines", "native, deadlines, reject")
    for name in overload.CONTENDERS:
        decisive = name in with_deadlines
        reader.add(
            f"{text}, answered in time / capacity: {name}",
            _divided(rounds(goodput, name), capacity),
            AT_LEAST if decisive else None,
            target if decisive else None,
        )
    for name in with_deadlines:
        what = "resident memory, most / a quarter in"
        reader.add(f"{text}, {what}: {name}", rounds(growth, name), AT_MOST, 1.02)
    rejecting = with_deadlines[1]
    rows = [most / overload.BOUND for most in rounds(waiting, rejecting)]
    reader.add(f"{text}, rows waiting, most / bound: {rejecting}", rows, AT_MOST, 1.0)


def _graph(reader: _Reader, name: str) -> None:
    idle = reader.rounds(lag_p99, "idle loop", name, 0, mode="idle")
    for in_flight in graph.in_flight(name):
        served = reader.rounds(throughput, graph.GRAPH, name, in_flight)
        for peer in reader.contenders(name):
            if peer in (graph.GRAPH, "idle loop"):
                continue
            text = f"{name}, {in_flight} in flight, requests per second: graph / {peer}"
            other = reader.rounds(throughput, peer, name, in_flight)
            reader.add(text, _divided(served, other))
        for contender in (graph.GRAPH, graph.COMPILED, graph.BINDING):
            text = f"{name}, {in_flight} in flight, loop lag p99: {contender} / idle"
            lag = reader.rounds(lag_p99, contender, name, in_flight)
            target = None if contender == graph.BINDING else 2.0
            ratio = _divided(lag, idle)
            reader.add(text, ratio, AT_MOST if target else None, target)


def _streams(reader: _Reader) -> None:
    name = streams.WORKLOAD
    most = reader.rounds(kept_up, "native, sessions in batches", name, 0, 2, "streams")
    for peer, target in (("executor, a call a chunk", 2.0), ("native, sessions", None)):
        other = reader.rounds(kept_up, peer, name, 0, 2, "streams")
        text = f"{name} under a p99 of 32 ms: native, sessions in batches / {peer}"
        comparison = AT_LEAST if target else None
        reader.add(text, _divided(most, other), comparison, target)


def _onnx(reader: _Reader, model: str) -> None:
    for instances in (1, 2):
        served = reader.rounds(throughput, "native", model, 64, instances)
        floor = reader.rounds(
            throughput, "C loop", model, instances, instances, mode="floor"
        )
        text = f"{model}, 64 in flight, requests per second: native / C loop"
        text += f", {instances} thread" + ("s" if instances > 1 else "")
        target = 0.95 if model == filetypes.NAME and instances == 1 else None
        reader.add(text, _divided(served, floor), AT_LEAST if target else None, target)
        for peer in ("bridge", "to_thread", "run_async")[: 3 if instances > 1 else 1]:
            other = reader.rounds(throughput, peer, model, 64, instances)
            text = f"{model}, 64 in flight, {instances} instances, requests per second"
            reader.add(f"{text}: native / {peer}", _divided(served, other))
    lag = reader.rounds(lag_p99, "native", model, 64, 2)
    for peer in ("to_thread", "run_async"):
        text = f"{model}, 64 in flight, loop lag p99: native / {peer}"
        reader.add(text, _divided(lag, reader.rounds(lag_p99, peer, model, 64, 2)))
    if model == filetypes.TINY_NAME:
        _call_of_the_backend(reader, model)


def _call_of_the_backend(reader: _Reader, model: str) -> None:
    backend, plain = (
        reader.rounds(cpu_per_request, name, model, 1, 1, mode="floor")
        for name in ("backend in a C loop", "C loop")
    )
    more = [1e3 * value for value in _minus(backend, plain)]
    text = f"{model}, CPU of a backend's call above the library's own"
    reader.add(text, more, unit="ns")


def _tensorflow(reader: _Reader, model: str) -> None:
    for instances in (1, 2):
        served = reader.rounds(throughput, "native", model, 64, instances)
        floor = reader.rounds(
            throughput, "C loop", model, instances, instances, mode="floor"
        )
        text = f"{model}, 64 in flight, requests per second: native / C loop"
        text += f", {instances} thread" + ("s" if instances > 1 else "")
        reader.add(text, _divided(served, floor))
        for peer in ("bridge", "to_thread"):
            other = reader.rounds(throughput, peer, model, 64, instances)
            text = f"{model}, 64 in flight, {instances} instances, requests per second"
            reader.add(f"{text}: native / {peer}", _divided(served, other))
    for what, measured in (("p99", p99), ("loop lag p99", lag_p99)):
        mine = reader.rounds(measured, "native", model, 64, 2)
        for peer in ("bridge", "to_thread"):
            text = f"{model}, 64 in flight, {what}: native / {peer}"
            other = reader.rounds(measured, peer, model, 64, 2)
            reader.add(text, _divided(mine, other))
    if model == savedmodels.TINY_NAME:
        _call_of_the_backend(reader, model)


def _keras(reader: _Reader) -> None:
    def trained(read: Callable[[Run], float], name: str) -> list[float]:
        return reader.rounds(
            read, name, keras_digits.WORKLOAD, keras_digits.BATCH, mode="train"
        )

    fit = keras_digits.FIT
    for name in keras_digits.LOOPS:
        text = f"{keras_digits.WORKLOAD}, losses other than {name}'s"
        reader.add(text, trained(differing, name), AT_MOST, 0.0)
        text = f"{keras_digits.WORKLOAD}, steps per second: {fit} / {name}"
        reader.add(text, _divided(trained(throughput, fit), trained(throughput, name)))
    text = f"{keras_digits.WORKLOAD}, accuracy on held-out images"
    reader.add(text, trained(accuracy, keras_digits.BESIDE), AT_LEAST, 0.95)
    served = keras_digits.SERVED
    beside = reader.rounds(lag_p99, fit, served, keras_digits.CLIENTS)
    alone = reader.rounds(lag_p99, keras_digits.NOTHING, served, keras_digits.CLIENTS)
    idle = reader.rounds(lag_p99, "idle loop", served, 0, mode="idle")
    for what, lags in ((keras_digits.NOTHING, alone), ("an idle loop", idle)):
        text = f"{served}, {keras_digits.CLIENTS} clients, loop lag p99: {fit} / {what}"
        reader.add(text, _divided(beside, lags))


def _text(reader: _Reader) -> None:
    name, native = "MiniLM", "native, batched"
    peers = [peer for peer in reader.contenders(name) if peer != native]
    served = reader.rounds(throughput, native, name, 64)
    for peer in peers:
        text = f"{name}, 64 in flight, texts per second: {native} / {peer}"
        reader.add(text, _divided(served, reader.rounds(throughput, peer, name, 64)))
    for rate in reader.loads(name, "open"):
        late = reader.rounds(p99, native, name, rate, mode="open")
        for peer in peers:
            text = f"{name}, {rate} arrivals a second, p99: {native} / {peer}"
            other = reader.rounds(p99, peer, name, rate, mode="open")
            reader.add(text, _divided(late, other))


def _train(reader: _Reader, workload: str) -> None:
    def rates(name: str) -> list[float]:
        return reader.rounds(throughput, name, workload, train.BATCH, mode="train")

    # The best of each round: one may have been disturbed.
    best = [max(values) for values in zip(*map(rates, train.EAGER), strict=True)]
    for name, target in (("native, fused", 1.0), ("native", None)):
        text = f"{workload}, steps per second: {name} / best eager loop"
        sense = AT_LEAST if target else None
        reader.add(text, _divided(rates(name), best), sense, target)
    text = f"{workload}, steps per second: native / eager (the same arithmetic)"
    reader.add(text, _divided(rates("native"), rates("eager")), AT_LEAST, 1.0)


def _beside_training(reader: _Reader) -> None:
    nothing, *trainings = train.BESIDE
    alone = reader.rounds(lag_p99, nothing, train.ECHO, train.CLIENTS)
    for name in trainings:
        lag = reader.rounds(lag_p99, name, train.ECHO, train.CLIENTS)
        text = (
            f"{train.ECHO}, {train.CLIENTS} clients, loop lag p99: {name} / {nothing}"
        )
        target = 2.0 if name == "trainer.fit" else None
        reader.add(text, _divided(lag, alone), AT_MOST if target else None, target)


def _xla(reader: _Reader, workload: str, instances: int) -> None:
    for in_flight in xla.IN_FLIGHT:
        for ours in ("native", "native, batched"):
            for peer in ("to_thread", "greedy"):
                reader.add(
                    f"{workload}, {in_flight} in flight: {ours} / jax.jit in {peer}, "
                    "requests per second",
                    _divided(
                        reader.rounds(throughput, ours, workload, in_flight, instances),
                        reader.rounds(throughput, peer, workload, in_flight, instances),
                    ),
                )
        reader.add(
            f"{workload}, {in_flight} in flight: loop lag p99, native / to_thread",
            _divided(
                reader.rounds(lag_p99, "native", workload, in_flight, instances),
                reader.rounds(lag_p99, "to_thread", workload, in_flight, instances),
            ),
        )


def _devices(reader: _Reader) -> None:
    one, two = (
        reader.rounds(throughput, "native", devices.FED, devices.IN_FLIGHT, count)
        for count in (1, 2)
    )
    text = f"{devices.FED}, requests per second: two devices / one"
    reader.add(text, _divided(two, one), AT_LEAST, 1.8)
    text = f"{devices.FED}, requests per second: one device / 1,000"
    reader.add(text, [rate / 1000 for rate in one])
    _waiting(reader, devices.WAITING)


def _waiting(reader: _Reader, workload: str) -> None:
    cpu = {
        name: reader.rounds(cpu_per_request, name, workload, 1, mode="alone")
        for name in devices.WAITS
    }
    for name, values in cpu.items():
        reader.add(f"{workload}, a worker's CPU: {name}", values, unit="µs")
    for peer in ("blocking", "spinning"):
        text = f"{workload}, a worker's CPU: native / {peer}"
        reader.add(text, _divided(cpu["native"], cpu[peer]))


def _gpus(reader: _Reader) -> None:
    def fed(count: int) -> list[float]:
        return reader.rounds(throughput, "native", gpus.FED, devices.IN_FLIGHT, count)

    def steps(name: str, count: int) -> list[float]:
        return reader.rounds(
            throughput, name, gpus.TRAINING, train.BATCH, count, mode="train"
        )

    text = f"{gpus.FED}, requests per second: one GPU / 1,000"
    reader.add(text, [rate / 1000 for rate in fed(1)])
    text = f"{gpus.TRAINING}, steps per second: native / eager"
    reader.add(text, _divided(steps("native", 1), steps("eager", 1)))
    if reader.has(gpus.FED, 2):
        text = f"{gpus.FED}, requests per second: two GPUs / one"
        reader.add(text, _divided(fed(2), fed(1)), AT_LEAST, 1.8)
        text = f"{gpus.TRAINING}, steps per second: two GPUs / one"
        reader.add(text, _divided(steps("native", 2), steps("native", 1)))
    _waiting(reader, gpus.WAITING)
