"""Synthetic tones of known pitch, for networks that hear it."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

__all__ = ["RATE", "SAMPLES", "Tones", "draw"]

RATE, SAMPLES = 16_000, 1024
_LOWEST, _HIGHEST = 60.0, 1000.0


class Tones(NamedTuple):
    """frames: float32 (n, 1024), of mean 0 and standard deviation 1. cents: float64 (n,), pitch above 10 Hz."""

    frames: np.ndarray
    cents: np.ndarray


def draw(count: int, source: tuple[str | int, ...]) -> Tones:
    """`count` tones from 60 to 1,000 Hz; another `source`, a part or a part and a seed, gives other ones.

    A tone has all harmonics below 8 kHz in random phases; they fall by 3 to 12 dB an octave, each by a random part
    more or less, and white noise lies 10 to 40 dB below.
    """
    rng = np.random.default_rng(zlib.crc32(repr(source).encode()))
    time = np.arange(SAMPLES) / RATE
    frames, cents = [], []
    for _ in range(count):
        f0 = float(np.exp(rng.uniform(np.log(_LOWEST), np.log(_HIGHEST))))
        numbers = np.arange(1, int(RATE / 2 / f0) + 1)
        levels = numbers ** -rng.uniform(0.5, 2.0) * np.exp(rng.normal(0.0, 0.5, len(numbers)))
        phases = rng.uniform(0, 2 * np.pi, len(numbers))
        tone = levels @ np.sin(2 * np.pi * f0 * numbers[:, None] * time + phases[:, None])
        noise = rng.normal(size=SAMPLES) * np.std(tone) * 10 ** -rng.uniform(0.5, 2.0)
        heard = tone + noise
        frames.append((heard - heard.mean()) / heard.std())
        cents.append(1200 * np.log2(f0 / 10))
    return Tones(np.array(frames, np.float32), np.array(cents))
