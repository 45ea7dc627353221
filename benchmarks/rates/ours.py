"""Curves of `mz.smallest`: its recipes at many steps, each a real file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import modelzip_jax as mz
from benchmarks.rates.case import Case
from benchmarks.rates.sweep import Line, Made
from benchmarks.tasks.task import Batch
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import SilentLayerError
from modelzip_jax.smallest import recipes

__all__ = ["Told", "calibrated", "data_free", "line_of", "unit_step"]

Told = tuple[recipes.Recipe, dict[str, Any]]
"""From a step to the transform, and what `mz.compress` is to be given beside it."""


def data_free(case: Case) -> Told:
    """As without `calibrate=`."""
    return recipes.data_free(case.task.params, ()), {}


def calibrated(case: Case, batches: Sequence[Batch]) -> Told:
    """As with `calibrate=(task.apply, batches)`: the Fisher information is gathered once for all steps."""
    search = mz.smallest(likelihood=case.task.likelihood)  # type: ignore[arg-type]
    # The search for a target would gather it anew for each target: these are its own two halves.
    return search._calibrated(case.task.params, case.task.apply, list(batches), ())


def unit_step(case: Case) -> float:
    """A calibrated step whose errors cost about a hundredth of a nat in all: step² / 24 a weight."""
    return math.sqrt(24 * 0.01 / case.task.weights)


def line_of(case: Case, told: Callable[[], Told], first: float, label: str = "") -> Line:
    """Files at steps of `first` · 2^(k / 4)."""
    kept: list[Told] = []

    def made(k: int) -> Made | None:
        kept[:] = kept or [told()]
        recipe, given = kept[0]
        try:
            packed = mz.compress(case.task.params, recipe(first * 2 ** (k / 4)), **given)
        except SilentLayerError:
            return None
        leaves = {name: np.asarray(x) for name, x in mz.tree.named_leaves(mz.unpack(packed))}
        return Made(file_sizes(packed).total, leaves)

    return Line(label, lambda ks: [made(k) for k in ks])
