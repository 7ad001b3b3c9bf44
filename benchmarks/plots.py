"""Throughput and loop lag over the number of requests in flight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .devices import Timeline
from .figures import lag_p99, throughput
from .quantiles import Spread
from .results import Results


def plot(results: Results, path: Path) -> None:
    """Writes a PNG: a row a workload, medians with the rounds' ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    closed = [
        cell for cell in results.cells if cell.mode == "closed" and cell.instances == 1
    ]
    workloads = [
        name
        for name in dict.fromkeys(cell.workload for cell in closed)
        if len({cell.load for cell in closed if cell.workload == name}) > 1
    ]
    if not workloads:
        return  # nothing was measured under several loads
    figure, grid = pyplot.subplots(
        len(workloads),
        2,
        figsize=(11, 3.6 * len(workloads) + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for row, workload in zip(grid, workloads, strict=True):
        _draw(row[0], results, workload, throughput, "requests per second")
        _draw(row[1], results, workload, lag_p99, "loop lag p99 (µs)")
    lines = {line.get_label(): line for line in grid[0][0].containers}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines))
    machine = results.machine
    figure.suptitle(f"closed loop, {machine['cores']} cores, {machine['python']}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_timelines(what: str, timelines: Mapping[str, Timeline], path: Path) -> None:
    """Writes a PNG: what a device's copy engines and its kernels did, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        len(timelines),
        figsize=(11, 2.2 * len(timelines) + 0.4),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    lanes = ("to host", "kernel", "to device")
    for (axes,), (title, timeline) in zip(grid, timelines.items(), strict=True):
        for height, lane in enumerate(lanes):
            spans = [
                (1e3 * begin, 1e3 * (end - begin))
                for kind, begin, end in timeline
                if kind == lane
            ]
            axes.broken_barh(
                spans, (height - 0.4, 0.8), facecolor=f"C{height}", edgecolor="white"
            )
        axes.set(yticks=range(len(lanes)), yticklabels=lanes, title=title)
    grid[-1][0].set(xlabel="ms")
    figure.suptitle(f"{what} with requests waiting all the time")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw(axes: Any, results: Results, workload: str, read: Any, label: str) -> None:
    curves: dict[str, list[tuple[int, Spread]]] = {}
    for cell in results.cells:
        if (cell.workload, cell.mode, cell.instances) == (workload, "closed", 1):
            spread = Spread.of(results.values(cell, read))
            curves.setdefault(cell.contender, []).append((cell.load, spread))
    for index, (contender, points) in enumerate(sorted(curves.items())):
        points.sort(key=lambda point: point[0])
        middle = [spread.median for _, spread in points]
        below = [spread.median - spread.low for _, spread in points]
        above = [spread.high - spread.median for _, spread in points]
        axes.errorbar(
            [amount for amount, _ in points],
            middle,
            [below, above],
            label=contender,
            color=f"C{index}",
            linewidth=2.5 if contender == "native" else 1.2,
            linestyle="--" if contender == "direct" else "-",
            marker="o",
            markersize=3,
            capsize=2,
        )
    axes.set(
        xscale="log", yscale="log", xlabel="in flight", ylabel=label, title=workload
    )
    axes.grid(alpha=0.3, which="both")
