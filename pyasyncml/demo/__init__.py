"""The demo: two real models awaited on one event loop, beside `asyncio.to_thread`.

    python -m pyasyncml demo

scores scikit-learn's held-out digits with a small convolutional net trained on the
spot, and runs silero-vad's speech detector over a stream of synthesised audio, while a
1 ms heartbeat ticks on the same loop. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# Module to distribution.
_NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "silero_vad": "silero-vad",
}


def main(*, quick: bool = False, plot: Path = Path("demo.png")) -> int:
    """Runs the demo, prints its table, writes its plot. Returns the exit status:
    0; 1 where the accuracy on the held-out digits is below 0.95; 2 where something
    that the demo needs isn't installed."""
    missing = [
        dist for module, dist in _NEEDED.items() if not importlib.util.find_spec(module)
    ]
    if missing:
        print(
            f"The demo needs {', '.join(missing)}. Install with:\n"
            "  pip install 'pyasyncml[demo]'\n"
            "  pip install --no-deps silero-vad",
            file=sys.stderr,
        )
        return 2
    from .run import run  # these packages take seconds to import

    return run(quick=quick, plot=plot)
