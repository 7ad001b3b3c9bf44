"""A progress bar, in terminals and notebooks."""

from __future__ import annotations

from typing import Any

from ._run import TrainingRun


def find() -> Any:
    """The bar's class. Raises `ImportError` where tqdm isn't installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError(
            "progress=True needs tqdm: pip install 'pyasyncml[progress]'"
        ) from None
    return tqdm


async def show(bar: Any, run: TrainingRun) -> None:
    """Draws the run until it ends, in whatever way."""
    with bar(total=run.steps, unit="step") as drawn:
        try:
            async for progress in run:
                drawn.update(progress.step - drawn.n)
                drawn.set_postfix(
                    {
                        "epoch": progress.epoch,
                        "loss": f"{progress.loss:.4g}",
                        **{
                            name: f"{value:.4g}"
                            for name, value in progress.metrics.items()
                        },
                        **{
                            f"val_{name}": f"{value:.4g}"
                            for name, value in progress.validation.items()
                        },
                    }
                )
        except Exception:
            return  # whoever awaits the run is told
