"""What was measured: a flat list of runs, and questions to it."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from .beat import Lag
from .load import Run


class Cell(NamedTuple):
    """What the rounds repeat. `load`: tasks in flight, or arrivals a second."""

    workload: str
    instances: int
    mode: str  # "closed", "open", "idle", "floor", "alone"
    load: int
    contender: str


@dataclass
class Results:
    machine: dict[str, Any]
    settings: dict[str, Any]
    cells: dict[Cell, list[Run]] = field(default_factory=dict)

    def add(self, cell: Cell, run: Run) -> None:
        self.cells.setdefault(cell, []).append(run)

    def values(self, cell: Cell, read: Callable[[Run], float]) -> list[float]:
        """One value a round; KeyError where the cell was not measured."""
        return [read(run) for run in self.cells[cell]]

    def save(self, path: Path) -> None:
        runs = [
            {**cell._asdict(), "rounds": [dataclasses.asdict(run) for run in rounds]}
            for cell, rounds in self.cells.items()
        ]
        document = {"machine": self.machine, "settings": self.settings, "runs": runs}
        path.write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        document = json.loads(path.read_text())
        results = cls(document["machine"], document["settings"])
        for entry in document["runs"]:
            rounds = entry.pop("rounds")
            for fields in rounds:
                lag = fields.pop("lag")
                run = Run(**fields, lag=Lag(**lag) if lag else None)
                results.add(Cell(**entry), run)
        return results


def machine() -> dict[str, Any]:
    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "pyasyncml": installed("pyasyncml"),
        "numpy": installed("numpy"),
        "torch": installed("torch"),
        "onnxruntime": installed("onnxruntime"),
        "tensorflow": installed("tensorflow-cpu") or installed("tensorflow"),
        "switch_interval_s": sys.getswitchinterval(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


class OtherLoad:
    """How many cores other processes kept busy, which a reader of figures must know."""

    def __init__(self) -> None:
        self._machine, self._own = _busy_seconds(), _own_seconds()
        self._wall = os.times().elapsed

    def cores(self) -> float:
        machine, own = _busy_seconds() - self._machine, _own_seconds() - self._own
        return max(0.0, (machine - own) / max(1e-9, os.times().elapsed - self._wall))


def _busy_seconds() -> float:
    total = Path("/proc/stat").read_text().partition("\n")[0]
    fields = [int(part) for part in total.split()[1:]]
    idle, iowait, steal = fields[3], fields[4], fields[7]
    busy = sum(fields[:8]) - idle - iowait - steal
    return busy / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """This process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
