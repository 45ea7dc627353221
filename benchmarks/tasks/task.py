"""What every network brings that rate and distortion are measured on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from modelzip_jax import tree
from modelzip_jax.errors import EvaluationError
from modelzip_jax.tree import PyTree

__all__ = ["Batch", "Measure", "Task", "chosen_rows", "in_batches"]

Batch = tuple[np.ndarray, ...]


class Measure(NamedTuple):
    """name: of what is measured example by example; larger is better. unit: "" where it has none."""

    name: str
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """A network, the examples that a compressor may see, and how what comes out of it is judged.

    name: one of `benchmarks.tasks.NAMES`.
    params: a pytree of float32 NumPy arrays: all that is compressed. What else a network stores, such as batch
      statistics, is part of `apply`.
    apply: `apply(params, *inputs)`, pure JAX, with products that `modelzip_jax.trace` sees. Examples lie along the
      first axis of inputs and outputs.
    likelihood: of the outputs, as `trace.fisher_information` takes it: "categorical" (logits) or "gaussian".
    calibration: `calibration(count, seed=0)` gives `count` examples of the training data, or nearly as many, in
      batches: tuples of NumPy inputs without labels.
    scores: `scores(params, part)` gives for each measure that the part has float64 `(examples,)`, of the same
      examples in the same order each time, so that differences are paired.
    measures: the first one is the task's quality, by which choices are made.
    parts: "validation" is for choices, the others are reported.
    at_once: of how many examples gradients are best taken together (`examples_at_once`).
    """

    name: str
    params: PyTree
    apply: Callable[..., Any]
    likelihood: str
    calibration: Callable[..., list[Batch]]
    scores: Callable[[PyTree, str], dict[str, np.ndarray]]
    measures: tuple[Measure, ...]
    parts: tuple[str, ...] = ("validation", "test")
    at_once: int = 8

    def quality(self, params: PyTree, part: str) -> np.ndarray:
        """The first measure of each example, float64 `(examples,)`; larger is better.

        Raises:
          EvaluationError: the task has no such part.
        """
        if part not in self.parts:
            raise EvaluationError(f"{self.name} has no part {part!r}: it has {', '.join(self.parts)}")
        return self.scores(params, part)[self.measures[0].name]

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return sum(int(np.size(leaf)) for _, leaf in tree.named_leaves(self.params))


def chosen_rows(total: int, count: int, seed: int) -> np.ndarray:
    """`count` different ones of `total` rows in random order; all of them if there are fewer.

    >>> sorted(chosen_rows(3, 5, seed=0).tolist())
    [0, 1, 2]
    """
    return np.random.default_rng(seed).permutation(total)[:count]


def in_batches(inputs: Batch, size: int) -> list[Batch]:
    """Arrays of one length as batches of `size` examples; the last one may be smaller.

    >>> [x.tolist() for (x,) in in_batches((np.arange(3),), 2)]
    [[0, 1], [2]]
    """
    return [tuple(x[i : i + size] for x in inputs) for i in range(0, len(inputs[0]), size)]
