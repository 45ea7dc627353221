"""All that a report page tells of one compression, as numbers: nothing is drawn or written here."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

from modelzip_jax.evaluation.report import Report, TensorReport, inspect
from modelzip_jax.evaluation.task_scores import ScoreChange, TaskScore, named_scores, score_changes
from modelzip_jax.evaluation.weight_errors import WeightError, leaves_like, weight_error
from modelzip_jax.evaluation.weight_histograms import WeightHistogram, weight_histogram
from modelzip_jax.packed import Dense, is_packed
from modelzip_jax.packing import Packed, unpack
from modelzip_jax.tree import PyTree, named_leaves

__all__ = ["Findings", "LayerFinding", "findings"]

MOST_HISTOGRAMS = 120
"""Of the layers that take most bytes: a page of a thousand figures opens on no phone."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerFinding:
    """A tensor of the file; error and histogram are None without the weights before, histogram of lossless leaves."""

    row: TensorReport
    error: WeightError | None = None
    histogram: WeightHistogram | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """What `findings` found.

    report: as of `inspect`. layers: a tensor each, in the order of the file. scores: what a task found.
    versions: of what wrote this.
    """

    report: Report
    layers: tuple[LayerFinding, ...]
    scores: tuple[ScoreChange, ...]
    versions: Mapping[str, str]

    @property
    def ratio(self) -> float:
        """Dense bytes over bytes of the file."""
        return self.report.dense_bytes / max(self.report.file_bytes, 1)

    @property
    def sparsity(self) -> float:
        """Share of all values that masks set to zero."""
        rows = self.report.tensors
        return sum(row.sparsity * row.size for row in rows) / max(self.report.size, 1)

    @property
    def error(self) -> WeightError | None:
        """Of all layers together; None without the weights before."""
        errors = [layer.error for layer in self.layers if layer.error is not None]
        if not errors:
            return None
        largest = max(error.largest for error in errors)
        return WeightError(sum(e.squared for e in errors), sum(e.norm for e in errors), largest)


def findings(
    model: Packed,
    report: Report | None = None,
    *,
    against: PyTree = None,
    task: Callable[[PyTree], Any] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Findings:
    """Measures a compressed model, and what it was made of if that is given.

    Args:
      model: what `mz.compress`, `mz.pack` and `mz.load` give.
      report: what `mz.inspect` found of its file, if that is known.
      against: the params before compression, with the same names and shapes; `{"params": …}` around them may stay.
      task: from params, or `{"params": …, **variables}` where the model has variables, to a dict of numbers, estimates,
        or arrays with a score for each example. It runs on the compressed model, then on `against`.
      progress: called with a leaf's name and the bytes of its values, once it is compared.

    Raises:
      TreeError: `against` lacks a leaf, or has one of another shape.
      EvaluationError: the task returned something else.

    >>> import modelzip_jax as mz
    >>> params = {"w": np.eye(64, dtype=np.float32)}
    >>> found = findings(mz.compress(params, mz.quantize(4)), against=params, task=lambda p: {"sum": p["w"].sum()})
    >>> found.error.relative, found.scores[0].change
    (0.0, 0.0)
    """
    report = inspect(model) if report is None else report
    stored = dict(named_leaves(model.params, is_packed))
    params = unpack(model)
    layers = [LayerFinding(row) for row in report.tensors]
    if against is not None:
        names = [name for name in stored if _is_float(stored[name])]
        before = leaves_like(names, [stored[name].shape for name in names], against)
        compared = dict(zip(names, before, strict=True))
        after = dict(named_leaves(params))
        drawn = _drawn(report, stored)
        layers = []
        for row in report.tensors:
            if row.name not in compared:
                layers.append(LayerFinding(row))
                continue
            old, new = compared[row.name], np.asarray(after[row.name])
            histogram = weight_histogram(stored[row.name], old, new) if row.name in drawn else None
            layers.append(LayerFinding(row, weight_error(old, new), histogram))
            if progress is not None:
                progress(row.name, new.nbytes)
        del after, compared, before
    scores = () if task is None else _scores(task, model, params, against)
    return Findings(report, tuple(layers), scores, _versions())


def _is_float(packed: Any) -> bool:
    dtype = packed.array.dtype if isinstance(packed, Dense) else None
    return dtype is None or bool(jax.numpy.issubdtype(dtype, np.floating))


def _drawn(report: Report, stored: Mapping[str, Any]) -> set[str]:
    rows = [row for row in report.tensors if row.name in stored and not isinstance(stored[row.name], Dense)]
    return {row.name for row in sorted(rows, key=lambda row: -row.file_bytes)[:MOST_HISTOGRAMS]}


def _scores(
    task: Callable[[PyTree], Any], model: Packed, params: PyTree, against: PyTree
) -> tuple[ScoreChange, ...]:
    variables = dict(model.variables or {})
    after = named_scores(task({"params": params, **variables} if variables else params))
    before: dict[str, TaskScore] | None = None
    if against is not None:
        bare = variables and not (isinstance(against, Mapping) and "params" in against)
        before = named_scores(task({"params": against, **variables} if bare else against))
    return score_changes(after, before)


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in ("modelzip_jax", "jax", "jaxlib", "numpy", "matplotlib"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
