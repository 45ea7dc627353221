"""Classifiers of MNIST and Fashion-MNIST: calibration and scores.

The quality is whether an image's class is the likeliest one. Its log-likelihood stands beside it: paired differences
of it are less noisy, but a network that was trained to certainty may gain by compression.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.tasks.task import Batch, Measure, chosen_rows, in_batches
from modelzip_jax.evaluation import classification
from modelzip_jax.training import data
from modelzip_jax.tree import PyTree

__all__ = ["MEASURES", "calibration", "scores"]

MEASURES = (Measure("accuracy"), Measure("log-likelihood", "nats"))
_BATCH = 100


@functools.cache
def _split(dataset: str, split: str) -> dict[str, np.ndarray]:
    return data.load_split(dataset, split)


def _standardised(dataset: str, levels: np.ndarray) -> np.ndarray:
    """Levels 0 to 255 as the networks were trained on them, float32."""
    spec = data.spec(dataset)
    return np.asarray(data.normalize(levels, spec.mean, spec.std))


def calibration(dataset: str) -> Callable[..., list[Batch]]:
    """`(count, seed)` to batches of the images that the networks were trained on."""

    def batches(count: int, seed: int = 0) -> list[Batch]:
        levels = _split(dataset, "train")["inputs"]
        rows = chosen_rows(len(levels), count, seed)
        return in_batches((_standardised(dataset, levels[rows]),), _BATCH)

    return batches


def scores(
    dataset: str, predict: Callable[[PyTree, Any], Any], quick: bool
) -> Callable[[PyTree, str], dict[str, np.ndarray]]:
    """`(params, part)` to scores of each image; `predict`: jitted, from params and images to logits."""

    def of_part(params: PyTree, part: str) -> dict[str, np.ndarray]:
        arrays = {name: array[: 500 if quick else None] for name, array in _split(dataset, part).items()}
        found = classification.score_batches(
            lambda levels: predict(params, _standardised(dataset, levels)),
            arrays["inputs"],
            arrays["labels"],
            batch_size=500,
        )
        return {"accuracy": (found.rank == 1).astype(np.float64), "log-likelihood": -found.nll}

    return of_part
