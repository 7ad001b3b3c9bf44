"""silero-vad's speech detector, read as a TorchScript file from its package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

SPEECH = 0.5


def model_path() -> Path:
    """The detector's file. The package itself is never imported: its Python asks for
    torchaudio and onnxruntime, its TorchScript file needs neither."""
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("silero-vad is not installed")
    return Path(spec.submodule_search_locations[0], "data", "silero_vad.jit")


def agreement(
    probabilities: npt.NDArray[np.float64], babble: npt.NDArray[np.float64]
) -> float:
    """Share of chunks that the detector calls as they were made: speech where the
    whole chunk is babble, no speech where none of it is. Chunks that hold an edge,
    and the four after one (128 ms, the detector's own inertia), don't count."""
    whole = (babble == 0.0) | (babble == 1.0)
    steady = whole.copy()
    for shift in range(1, 5):
        steady[shift:] &= whole[:-shift] & (babble[shift:] == babble[:-shift])
    called = probabilities[steady] > SPEECH
    return float(np.mean(called == (babble[steady] == 1.0)))
