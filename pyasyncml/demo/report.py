"""What the demo shows at its end: a table, and a plot of the loop's lag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.table import Table

from .audio import CHUNK, RATE, Stream
from .speech import SPEECH

COLOURS = ("#1f6fb4", "#d9622b")
INK = "#33383f"


@dataclass(frozen=True)
class Result:
    """One contender's figures. `due` and `lag` in seconds, one entry a beat."""

    name: str
    accuracy: float
    agreement: float
    requests: int
    elapsed: float
    due: npt.NDArray[np.float64]
    lag: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]

    @property
    def rate(self) -> float:
        return self.requests / self.elapsed

    def lag_ms(self, percent: float) -> float:
        return float(np.percentile(self.lag, percent)) * 1e3

    @property
    def missed(self) -> float:
        """Share of beats answered after the next one was due."""
        return float(np.mean(self.lag > 1e-3))


def table(native: Result, peer: Result, *, cores: int) -> Table:
    """The two results side by side, and the first over the second."""
    out = Table(title=f"The same work, on {cores} cores", title_style="bold")
    out.add_column("")
    out.add_column(native.name, justify="right", style="bold")
    out.add_column(peer.name, justify="right")
    out.add_column("ratio", justify="right")
    for label, a, b in (
        ("digits: accuracy, held out", native.accuracy, peer.accuracy),
        ("audio: chunks called right", native.agreement, peer.agreement),
    ):
        out.add_row(label, f"{a:.3f}", f"{b:.3f}")
    out.add_section()
    out.add_row(
        "requests per second",
        f"{native.rate:,.0f}",
        f"{peer.rate:,.0f}",
        _ratio(native.rate, peer.rate),
    )
    for label, percent in (("p50", 50.0), ("p99", 99.0), ("max", 100.0)):
        a, b = native.lag_ms(percent), peer.lag_ms(percent)
        out.add_row(f"loop lag {label}", f"{a:.2f} ms", f"{b:.2f} ms", _ratio(a, b))
    out.add_row("1 ms beats missed", f"{native.missed:.1%}", f"{peer.missed:.1%}")
    return out


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b > 0 else ""


def plot(results: Sequence[Result], audio: Stream, path: Path) -> None:
    """Each beat's lag over the time of the work, and what the detector heard."""
    with matplotlib.rc_context({"text.color": INK, "axes.labelcolor": INK}):
        # A figure without pyplot draws with Agg and asks for no display.
        figure = Figure(figsize=(10, 11), layout="constrained")
        axes = figure.subplots(4, 1, height_ratios=(2, 2, 1.7, 1.1))
        first, second, share, heard = axes
        second.sharex(first)
        second.sharey(first)
        for panel, result, colour in zip(
            (first, second), results, COLOURS, strict=True
        ):
            _plot_lag(panel, result, colour)
        first.set_yscale("log")
        first.set_xlim(0.0, max(result.elapsed for result in results))
        first.set_ylim(0.01, 2e3 * max(float(result.lag.max()) for result in results))
        first.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        first.tick_params(labelbottom=False)
        second.set_xlabel("seconds into the work")
        _plot_share(share, results)
        _plot_heard(heard, results[0], audio)
        for panel in axes:
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(colors=INK)
        figure.suptitle(
            "How late the event loop answers a 1 ms heartbeat while two models run",
            x=0.01,
            ha="left",
            fontweight="bold",
            fontsize=13,
        )
        figure.savefig(path, dpi=120)


def _plot_lag(axes: Axes, result: Result, colour: str) -> None:
    axes.plot(
        result.due,
        result.lag * 1e3,
        ".",
        color=colour,
        markersize=3.5,
        alpha=0.5,
        markeredgewidth=0,
        rasterized=True,
    )
    p99 = result.lag_ms(99.0)
    axes.axhline(p99, color=colour, linewidth=1.3)
    axes.set_title(
        f"{result.name}: p50 {result.lag_ms(50.0):.2f} ms, p99 {p99:.2f} ms (line), "
        f"max {result.lag_ms(100.0):.1f} ms, {result.rate:,.0f} requests per second",
        loc="left",
        color=colour,
        fontsize=10,
        fontweight="bold",
    )
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylabel("lag of a beat, ms")


def _plot_share(axes: Axes, results: Sequence[Result]) -> None:
    for result, colour in zip(results, COLOURS, strict=True):
        lag = np.sort(result.lag) * 1e3
        above = 1.0 - np.arange(len(lag)) / len(lag)
        axes.step(
            lag, above, where="post", color=colour, linewidth=1.8, label=result.name
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y * 100:g}%"))
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("lag, ms")
    axes.set_ylabel("beats later than that")
    axes.set_xlim(left=0.01)
    axes.legend(loc="lower left", frameon=False)


def _plot_heard(axes: Axes, result: Result, audio: Stream) -> None:
    n = len(result.probabilities)
    seconds = np.arange(n) * CHUNK / RATE
    axes.fill_between(
        seconds,
        0.0,
        1.0,
        where=audio.babble[:n] > 0.5,
        step="mid",
        color="#dfe5ea",
        label="babble in the synthesised audio",
    )
    axes.plot(
        seconds,
        result.probabilities,
        color=INK,
        linewidth=1.0,
        label="probability of speech (silero-vad)",
    )
    axes.axhline(SPEECH, color=INK, linewidth=0.6, linestyle=":")
    axes.set_xlim(0.0, min(30.0, seconds[-1]))
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("seconds of audio")
    axes.set_ylabel("speech")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, borderpad=0
    )
