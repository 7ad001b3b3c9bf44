"""The demo's course: train, load, work in turns, compare."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

import pyasyncml as ml

from . import audio, digits, report, speech
from .work import Contender, Native, Outcome, ToThread, run_turn, warm_up

REQUIRED_ACCURACY = 0.97


@dataclass(frozen=True)
class Plan:
    """Each contender's work: `turns` times `passes` over the held-out digits, and
    the audio once, an equal part a turn. The contenders alternate."""

    epochs: int
    turns: int
    passes: int
    seconds_of_audio: float


FULL = Plan(epochs=60, turns=20, passes=6, seconds_of_audio=240.0)
QUICK = Plan(epochs=20, turns=2, passes=1, seconds_of_audio=8.0)


def run(*, quick: bool, plot: Path) -> int:
    """Runs the whole demo; 0, or 1 where the accuracy is too low."""
    plan = QUICK if quick else FULL
    console = Console()
    # One thread an operator for calls made from Python too. Set before any other
    # thread starts: each takes the number over at its first operator.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="pyasyncml-demo-") as folder:
            native, peer, stream = _measure(plan, Path(folder), console)
    finally:
        torch.set_num_threads(threads)
    report.plot((native, peer), stream, plot)
    console.print(report.table(native, peer, cores=len(os.sched_getaffinity(0))))
    console.print(f"Plot of the loop's lag: {plot.resolve()}", soft_wrap=True)
    if min(native.accuracy, peer.accuracy) < REQUIRED_ACCURACY:
        console.print(f"[bold red]Accuracy is below {REQUIRED_ACCURACY}.")
        return 1
    return 0


def _measure(
    plan: Plan, folder: Path, console: Console
) -> tuple[report.Result, report.Result, audio.Stream]:
    contenders = (Native(), ToThread())
    # Refreshed by hand, between turns: drawing takes the loop's time too.
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[note]}"),
        console=console,
        auto_refresh=False,
    )
    with progress:
        training = progress.add_task("training on digits", total=plan.epochs, note="")
        bars = [
            progress.add_task(contender.name, total=plan.turns, note="")
            for contender in contenders
        ]

        def on_progress(report: ml.Progress, served: int) -> None:
            progress.update(
                training,
                completed=report.epoch + 1,
                note=f"loss {report.loss:6.4f}, {report.steps_per_second:5,.0f} steps"
                f"/s, {served:6,} requests served meanwhile",
                refresh=True,
            )

        data = digits.load_data()
        trained = asyncio.run(
            digits.train(data, epochs=plan.epochs, on_progress=on_progress)
        )
        net = trained.net
        progress.console.print(
            f"trained on {len(data.train_labels):,} of scikit-learn's real 8x8 images "
            f"by await trainer.fit(...), {trained.served:,} requests served by the "
            "same process meanwhile, loop lag p99 "
            f"{1e3 * float(np.percentile(trained.lag, 99)):.2f} ms"
        )
        model = digits.export(net, folder / "digits.pt")
        stream = audio.synthesise(plan.seconds_of_audio)
        progress.console.print(
            f"{len(data.test_labels)} held-out digits; {stream.seconds:.0f} s of "
            "synthesised audio: formant babble between silence, tones and noise."
        )
        outcomes = asyncio.run(
            _alternate(plan, contenders, model, data, stream, progress, bars)
        )
    native, peer = (_result(outcome, data, stream) for outcome in outcomes)
    return native, peer, stream


async def _alternate(
    plan: Plan,
    contenders: tuple[Contender, Contender],
    model: Path,
    data: digits.Digits,
    stream: audio.Stream,
    progress: Progress,
    bars: list[TaskID],
) -> list[Outcome]:
    images = list(data.test_images.split(1))
    chunks = list(torch.from_numpy(stream.chunks).split(1))
    outcomes = [Outcome(contender.name) for contender in contenders]
    for contender in contenders:
        await contender.open(model, speech.model_path())
        await warm_up(contender, images)
    # Else the lag that shows is the collector's, walking what torch has imported.
    gc.collect()
    gc.freeze()
    try:
        for turn in range(plan.turns):
            part = slice(
                turn * len(chunks) // plan.turns,
                (turn + 1) * len(chunks) // plan.turns,
            )
            for contender, outcome, bar in zip(contenders, outcomes, bars, strict=True):
                await run_turn(contender, outcome, images * plan.passes, chunks[part])
                progress.update(bar, advance=1, note=_note(outcome), refresh=True)
    finally:
        gc.unfreeze()
        for contender in contenders:
            await contender.close()
    return outcomes


def _note(outcome: Outcome) -> str:
    p99 = float(np.percentile(outcome.lag, 99)) * 1e3
    rate = outcome.requests / outcome.elapsed
    return f"{rate:6,.0f} requests/s, loop lag p99 {p99:6.2f} ms"


def _result(
    outcome: Outcome, data: digits.Digits, stream: audio.Stream
) -> report.Result:
    called = torch.cat(outcome.logits).argmax(dim=1)
    labels = data.test_labels.repeat(len(called) // len(data.test_labels))
    probabilities = torch.cat(outcome.probabilities).flatten().double().numpy()
    return report.Result(
        name=outcome.name,
        accuracy=float((called == labels).double().mean()),
        agreement=speech.agreement(probabilities, stream.babble),
        requests=outcome.requests,
        elapsed=outcome.elapsed,
        due=np.array(outcome.due),
        lag=np.array(outcome.lag),
        probabilities=probabilities,
    )
