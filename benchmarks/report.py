"""The tables, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .figures import Figure, figures
from .load import Run
from .quantiles import Spread
from .results import Cell, Results

COLUMNS: tuple[tuple[str, Callable[[Run], float | None]], ...] = (
    ("req/s", lambda run: run.rps),
    ("µs/req", lambda run: run.us_per_request),
    ("CPU µs/req", lambda run: run.cpu_us),
    ("p50 µs", lambda run: run.p50_us),
    ("p99 µs", lambda run: run.p99_us),
    ("lag p50 µs", lambda run: None if run.lag is None else run.lag.p50_us),
    ("lag p99 µs", lambda run: None if run.lag is None else run.lag.p99_us),
    ("lag max µs", lambda run: None if run.lag is None else run.lag.max_us),
    ("beats missed", lambda run: None if run.lag is None else run.lag.missed),
    ("unfinished", lambda run: run.unfinished),
    ("in time/s", lambda run: run.goodput),
    ("failed", lambda run: run.refused),
    ("memory growth", lambda run: run.growth),
    ("streams", lambda run: run.streams),
    ("rows waiting", lambda run: run.waiting),
    ("accuracy", lambda run: run.accuracy),
    ("other losses", lambda run: run.differing),
)
SPREAD_COLUMNS = ("req/s", "lag p99 µs", "streams")  # shown with their ends

LOADS = {
    "closed": "{} in flight",
    "open": "Poisson, {:,}/s",
    "idle": "no requests",
    "floor": "{} threads",
    "by turns": "{} in flight, by turns with the C++ loop",
    "alone": "{} in flight",
    "train": "batches of {}, steps a second",
    "ceiling": "batches of {}",
    "overload": "{} x capacity",
    "streams": "as many as it keeps up with",
}


def markdown(results: Results) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in results.machine.items())
    settings = ", ".join(f"{key} {value}" for key, value in results.settings.items())
    parts = [
        "# Benchmarks",
        f"Machine: {machine}.",
        f"Settings: {settings}. Medians over the rounds, with (lowest..highest).",
        "## Figures that decide",
        _figures(figures(results)),
    ]
    for title, cells in _groups(results):
        parts += [f"## {title}", _runs(results, cells)]
    return "\n\n".join(parts) + "\n"


def _figures(found: Iterable[Figure]) -> str:
    rows = []
    for figure in found:
        spread = figure.spread
        value = f"{spread.median:.3g} {figure.unit}".rstrip()
        ends = f"{spread.low:.3g} .. {spread.high:.3g}"
        target = "" if figure.target is None else f"{figure.sense} {figure.target:.3g}"
        verdict = {True: "met", False: "**missed**", None: ""}[figure.met]
        rows.append((figure.text, value, ends, target, verdict))
    return _table(("figure", "median", "rounds", "target", ""), rows)


def _groups(results: Results) -> Iterable[tuple[str, list[Cell]]]:
    groups: dict[str, list[Cell]] = {}
    for cell in results.cells:
        instances = f"{cell.instances} instance" + ("s" if cell.instances > 1 else "")
        groups.setdefault(f"{cell.workload}, {instances}", []).append(cell)
    for title, cells in groups.items():
        # A round's order of turns is not the table's.
        loads = list(dict.fromkeys((cell.mode, cell.load) for cell in cells))
        yield title, sorted(cells, key=lambda cell: loads.index((cell.mode, cell.load)))


def _runs(results: Results, cells: list[Cell]) -> str:
    runs = [run for cell in cells for run in results.cells[cell]]
    columns = [
        (title, read)
        for title, read in COLUMNS
        if any(read(run) is not None for run in runs)
    ]
    rows = []
    for cell in cells:
        row = [LOADS[cell.mode].format(cell.load), cell.contender]
        for title, read in columns:
            values = [read(run) for run in results.cells[cell]]
            known = [value for value in values if value is not None]
            row.append(_cell(known, title in SPREAD_COLUMNS))
        rows.append(tuple(row))
    return _table(("load", "contender", *(title for title, _ in columns)), rows)


def _cell(values: list[float], ends: bool) -> str:
    if not values:
        return "-"
    spread = Spread.of(values)
    text = _number(spread.median)
    return f"{text} ({_number(spread.low)}..{_number(spread.high)})" if ends else text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
