"""How much worse a compressed model is, example by example."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs, running_on
from modelzip_jax.tree import PyTree

__all__ = ["Drop", "Measure", "drop_of", "output_power", "output_scores", "scores_by"]

Measure = Callable[[PyTree], Any]


class Drop(NamedTuple):
    """The mean by which scores are lower than the float model's, and the standard error of that mean.

    >>> Drop(0.25, 0.25).worst
    0.5
    """

    mean: float
    error: float

    @property
    def worst(self) -> float:
        """The mean and a standard error."""
        return self.mean + self.error


def drop_of(scores: np.ndarray, reference: np.ndarray) -> Drop:
    """Paired: example by example.

    Raises:
      TransformError: not as many scores as before, or some that are no numbers.

    >>> drop_of(np.array([1.0, 0.0]), np.array([1.0, 1.0]))
    Drop(mean=0.5, error=0.5)
    """
    if scores.shape != reference.shape or not np.isfinite(scores).all():
        raise TransformError(
            f"measure= gave {scores.shape} scores, {np.count_nonzero(~np.isfinite(scores))} of them no number, and of "
            f"the float model {reference.shape}: it takes params and gives a score for each of the same examples"
        )
    lost = reference - scores
    error = float(np.std(lost, ddof=1)) / math.sqrt(lost.size) if lost.size > 1 else 0.0
    return Drop(float(lost.mean()), error)


def scores_by(measure: Measure, params: PyTree) -> np.ndarray:
    """What a user's measure gives, as a 1-D array.

    Raises:
      TransformError: it gives no numbers.
    """
    given = measure(params)
    try:
        found = np.asarray(given, np.float64).reshape(-1)
    except (TypeError, ValueError):
        found = None
    if found is None or not found.size:
        raise TransformError(f"measure= must give a score, or one for each example, not {given!r:.100}")
    return found


def output_scores(
    apply_fn: Callable[..., Any], params: PyTree, batches: Sequence[Any], likelihood: str
) -> Measure:
    """How well outputs agree with the float model's on these inputs, a score for each example.

    "categorical": 1 where the likeliest class is the same, the share of such positions if there are several.
    "gaussian": the cosine between the outputs of both, each as one vector.
    """
    run = jax.jit(lambda p, x: apply_fn(p, *x))
    inputs = [batch_inputs(batch, number) for number, batch in enumerate(batches)]
    wanted = []
    for number, x in enumerate(inputs):
        with running_on(f"batch {number} of those held out", x):
            wanted.append(_outputs(run(params, x)))

    def measure(other: PyTree) -> np.ndarray:
        return np.concatenate(
            [
                _agreement(_outputs(run(other, x)), float_, likelihood)
                for x, float_ in zip(inputs, wanted, strict=True)
            ]
        )

    return measure


def output_power(apply_fn: Callable[..., Any], params: PyTree, batches: Sequence[Any]) -> float:
    """The mean over examples of the sum of the squares of what the model gives; 1 where it gives nothing but zeros.

    >>> output_power(lambda p, x: p * x, jnp.float32(2.0), [jnp.array([[1.0], [3.0]])])
    20.0
    """
    run = jax.jit(lambda p, x: apply_fn(p, *x))
    found = [_outputs(run(params, batch_inputs(batch, number))) for number, batch in enumerate(batches)]
    total = sum(float(np.sum(np.square(x, dtype=np.float64))) for x in found)
    return total / sum(len(x) for x in found) or 1.0


def _outputs(found: Any) -> np.ndarray:
    leaves = jax.tree.leaves(found)
    if len(leaves) != 1:
        raise TransformError(
            f"the model returns {len(leaves)} arrays, of which none can be compared by itself: give max_drop= a "
            "measure=, or let apply_fn return one array"
        )
    return np.asarray(jnp.asarray(leaves[0], jnp.float32))


def _agreement(outputs: np.ndarray, wanted: np.ndarray, likelihood: str) -> np.ndarray:
    count = len(wanted)
    if likelihood == "categorical":
        same = outputs.argmax(-1) == wanted.argmax(-1)
        return same.reshape(count, -1).mean(1, dtype=np.float64)
    a, b = (x.reshape(count, -1).astype(np.float64) for x in (outputs, wanted))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.sum(a * b, axis=1) / np.where(norms > 0, norms, 1.0)
