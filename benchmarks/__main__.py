"""`python -m benchmarks [SUITE|all|plot]`: measure, or plot what was measured."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from . import plots, report, suites
from .results import OtherLoad, Results, machine

SUITES = {
    "echo": suites.echo_suite,
    "torch": suites.torch_suite,
    "graph": suites.graph_suite,
    "batching": suites.batching_suite,
    "overload": suites.overload_suite,
    "onnx": suites.onnx_suite,
    "tensorflow": suites.tensorflow_suite,
    "keras": suites.keras_suite,
    "text": suites.text_suite,
    "streams": suites.streams_suite,
    "train": suites.train_suite,
    "xla": suites.xla_suite,
    "devices": suites.devices_suite,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what", nargs="?", default="all", choices=("all", *SUITES, "plot")
    )
    parser.add_argument(
        "results", nargs="?", type=Path, help="for plot: a results.json"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one run")
    parser.add_argument(
        "--overload-seconds",
        type=float,
        default=60.0,
        help="of overload for each contender, over all rounds",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: figures mean nothing"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    parser.add_argument("--no-plot", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "plot":
        if arguments.results is None:
            parser.error("plot needs a results.json")
        plots.plot(
            Results.read(arguments.results), arguments.results.with_suffix(".png")
        )
        return 0
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 0.01
        arguments.overload_seconds = 0.1
    plotting = not arguments.no_plot and find_spec("matplotlib") is not None
    arguments.output.mkdir(parents=True, exist_ok=True)
    plan = suites.Plan(
        arguments.rounds,
        arguments.seconds,
        arguments.overload_seconds,
        arguments.output if plotting else None,
    )

    started, other = time.monotonic(), OtherLoad()
    settings = {
        "rounds": plan.rounds,
        "seconds a run": plan.seconds,
        "seconds of overload": plan.overload_seconds,
    }
    results = Results(machine(), settings)
    for name, suite in SUITES.items():
        if arguments.what in ("all", name):
            asyncio.run(suite(results, plan))
    results.settings["took s"] = round(time.monotonic() - started)
    results.settings["cores busy with other processes"] = round(other.cores(), 2)

    results.save(arguments.output / "results.json")
    text = report.markdown(results)
    (arguments.output / "results.md").write_text(text)
    print(text)
    if not arguments.no_plot:
        try:
            plots.plot(results, arguments.output / "results.png")
        except ImportError:
            print("no plot: matplotlib is not installed", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
