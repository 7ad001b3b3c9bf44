"""How often the tests of chance repeat."""

from __future__ import annotations

import os


def runs(usual: int) -> int:
    """So many times, or as often as the environment asks: PYASYNCML_RUNS=100."""
    return int(os.environ.get("PYASYNCML_RUNS", usual))
