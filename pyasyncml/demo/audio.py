"""A synthesised audio stream: formant babble between stretches that aren't speech.

Nothing here was recorded. The babble is made as Klatt's synthesiser makes vowels
("Software for a cascade/parallel formant synthesizer", JASA 67, 1980): a train of
glottal pulses through a cascade of second-order resonators at the formants of
Peterson and Barney's vowels (JASA 24, 1952), each syllable opened by a burst of
fricative noise. It says nothing, but has what a speech detector listens for. Between
the stretches of babble come near silence, a steady tone and white noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

RATE = 16_000
CHUNK = 512

Samples = npt.NDArray[np.float64]

# Hz: the first three formants of a man's vowel.
_VOWELS = (
    (730.0, 1090.0, 2440.0),  # father
    (270.0, 2290.0, 3010.0),  # heed
    (300.0, 870.0, 2240.0),  # who
    (530.0, 1840.0, 2480.0),  # head
    (570.0, 840.0, 2410.0),  # hawed
)
_BANDWIDTHS = (80.0, 100.0, 140.0)


@dataclass(frozen=True)
class Stream:
    """`chunks`: float32 [n, 512] at 16 kHz; `babble`: for each chunk the share of
    its samples that are babble, 0 to 1."""

    chunks: npt.NDArray[np.float32]
    babble: Samples

    @property
    def seconds(self) -> float:
        return self.chunks.size / RATE


def synthesise(seconds: float, *, seed: int = 0) -> Stream:
    """Babble alternating with silence, a tone and noise, `seconds` long in all."""
    rng = np.random.default_rng(seed)
    between = (_silence, _tone, _noise)
    parts: list[Samples] = []
    labels: list[Samples] = []
    length = 0
    while length < seconds * RATE:
        quiet = between[len(parts) // 2 % len(between)](rng, rng.uniform(0.8, 1.2))
        babble = _babble(rng, syllables=int(rng.integers(6, 10)))
        parts += [quiet, babble]
        labels += [np.zeros(len(quiet)), np.ones(len(babble))]
        length += len(quiet) + len(babble)
    n = int(seconds * RATE) // CHUNK
    samples = np.concatenate(parts)[: n * CHUNK].astype(np.float32)
    share = np.concatenate(labels)[: n * CHUNK].reshape(n, CHUNK).mean(axis=1)
    return Stream(samples.reshape(n, CHUNK), share)


def _silence(rng: np.random.Generator, seconds: float) -> Samples:
    return 0.001 * rng.standard_normal(int(seconds * RATE))


def _noise(rng: np.random.Generator, seconds: float) -> Samples:
    return 0.05 * rng.standard_normal(int(seconds * RATE))


def _tone(rng: np.random.Generator, seconds: float) -> Samples:
    t = np.arange(int(seconds * RATE)) / RATE
    tone: Samples = 0.2 * np.sin(2 * np.pi * rng.uniform(400, 1000) * t)
    return tone + _silence(rng, seconds)


def _babble(rng: np.random.Generator, *, syllables: int) -> Samples:
    return np.concatenate([_syllable(rng) for _ in range(syllables)])


def _syllable(rng: np.random.Generator) -> Samples:
    n = int(rng.uniform(0.12, 0.25) * RATE)
    t = np.arange(n) / RATE
    vibrato = 1 + 0.03 * np.sin(2 * np.pi * 5 * t)
    pitch = rng.uniform(100, 160) * (vibrato - 0.15 * t / t[-1])
    pulses = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0.0)
    voice = lfilter([1.0], [1.0, -0.97], pulses) + 0.01 * rng.standard_normal(n)
    formants = _VOWELS[rng.integers(len(_VOWELS))]
    for frequency, bandwidth in zip(formants, _BANDWIDTHS, strict=True):
        voice = _resonator(voice, frequency, bandwidth)
    voice = np.diff(voice, prepend=0.0)
    envelope = np.clip(np.minimum(t / 0.03, (t[-1] - t) / 0.06), 0.0, 1.0)
    hiss = _resonator(rng.standard_normal(int(0.07 * RATE)), 4500.0, 1200.0)
    hiss *= np.hanning(len(hiss))
    return np.concatenate(
        [0.15 * hiss / np.abs(hiss).max(), 0.6 * envelope * voice / np.abs(voice).max()]
    )


def _resonator(x: Samples, frequency: float, bandwidth: float) -> Samples:
    """Klatt's two-pole resonator with unit gain at zero frequency."""
    r = np.exp(-np.pi * bandwidth / RATE)
    poles = [1.0, -2.0 * r * np.cos(2.0 * np.pi * frequency / RATE), r * r]
    y: Samples = lfilter([sum(poles)], poles, x)
    return y
