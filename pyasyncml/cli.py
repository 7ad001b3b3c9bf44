"""`python -m pyasyncml`: the demo, the devices, and building a backend ahead."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    args = _parser().parse_args(argv)
    if args.command == "demo":
        return _demo(quick=args.quick, plot=args.plot)
    if args.command == "devices":
        return _devices()
    return _build_torch()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyasyncml",
        description="Native awaitables for machine learning.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo", help="two real models awaited on one loop, beside asyncio.to_thread"
    )
    demo.add_argument("--quick", action="store_true", help="a few seconds of work only")
    demo.add_argument(
        "--plot",
        type=Path,
        default=Path("demo.png"),
        metavar="FILE",
        help="where the plot of the loop's lag goes (default: demo.png)",
    )
    commands.add_parser("devices", help="what each installed backend can run on")
    build = commands.add_parser(
        "build", help="build a backend now instead of at its first use"
    )
    build.add_argument("backend", choices=["torch"])
    return parser


# Each command imports what it needs when it runs: --help should not load a framework.


def _demo(*, quick: bool, plot: Path) -> int:
    folder = plot.absolute().parent
    if not folder.is_dir() or plot.is_dir():
        what = (
            f"{plot} is a folder" if plot.is_dir() else f"there is no folder {folder}"
        )
        print(
            f"--plot: {what}; expected a file in a folder that exists", file=sys.stderr
        )
        return 2
    from .demo import main as demo

    return demo(quick=quick, plot=plot)


def _devices() -> int:
    from . import devices

    for device in devices():
        memory = f"{device.memory / 2**30:.1f} GiB" if device.memory else ""
        told = ", ".join(filter(None, (device.name, memory, device.reason)))
        print(f"{device.backend:12} {device.device or '-':16} {told}")
    return 0


def _build_torch() -> int:
    from . import LoadError
    from .backends import torch

    try:
        print(torch.build())
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
