"""Layer sensitivity: each layer compressed alone, and what that costs the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import EvaluationError, MissingExtraError
from modelzip_jax.evaluation.task_scores import named_scores, summary
from modelzip_jax.quantization.bit_allocation import leaf_measurements
from modelzip_jax.quantization.leaf_candidates import Measurements
from modelzip_jax.quantization.sensitivity import LeafCost, Sensitivity
from modelzip_jax.transform import Transform
from modelzip_jax.tree import PyTree

__all__ = [
    "LayerCost",
    "SensitivityTable",
    "TaskDrop",
    "draw_sensitivities",
    "layer_sensitivity",
    "task_drop",
]


class LayerCost(NamedTuple):
    """One layer compressed by one candidate, all others as they were.

    name: of the leaf. size: values. candidate: its name. dense_bytes: of the leaf before. file_bytes: its payload in a
    file. error: by the sensitivity.
    """

    name: str
    size: int
    candidate: str
    dense_bytes: int
    file_bytes: int
    error: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SensitivityTable:
    """See `layer_sensitivity`; `print` shows the table. dense_bytes: of each leaf. unit: what errors are called."""

    measured: Measurements
    dense_bytes: tuple[int, ...]
    unit: str

    @property
    def rows(self) -> list[LayerCost]:
        """A row for each layer and candidate; candidates that leave a layer out have none."""
        m = self.measured
        assert m.stored is not None
        return [
            LayerCost(leaf, m.sizes[i], name, self.dense_bytes[i], int(m.stored[i, j]), float(m.errors[i, j]))
            for i, leaf in enumerate(m.leaves)
            for j, name in enumerate(m.candidates)
            if np.isfinite(m.errors[i, j])
        ]

    @property
    def order(self) -> list[int]:
        """Places of the layers, the most sensitive first: by their largest error."""
        errors = np.where(np.isfinite(self.measured.errors), self.measured.errors, -np.inf)
        return np.argsort(-errors.max(axis=1), kind="stable").tolist()

    def table(self) -> str:
        """Markdown: a row for each layer, the most sensitive first."""
        m = self.measured
        assert m.stored is not None
        head = ["layer", "values", "bytes"]
        for name in m.candidates:
            head += [f"{name}: bytes", self.unit]
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        for i in self.order:
            line = [m.leaves[i], f"{m.sizes[i]:,}", f"{self.dense_bytes[i]:,}"]
            for j in range(len(m.candidates)):
                known = np.isfinite(m.errors[i, j])
                line += [f"{m.stored[i, j]:,}", f"{m.errors[i, j]:.4g}"] if known else ["–", "–"]
            lines.append(line)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def figure(self) -> Any:
        """A matplotlib figure: errors of each layer, the most sensitive on top, and the bytes that are saved for them.

        Raises:
          MissingExtraError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtraError(
                "figures need matplotlib: pip install 'modelzip_jax[notebooks]'"
            ) from error
        figure = Figure(figsize=(11, 1.5 + 0.22 * max(len(self.order), 8)), layout="constrained")
        draw_sensitivities(figure, self)
        return figure

    def __repr__(self) -> str:
        worst = self.measured.leaves[self.order[0]]
        return f"SensitivityTable({len(self.order)} layers, the most sensitive {worst!r})"

    def __str__(self) -> str:
        return self.table()


def draw_sensitivities(figure: Any, found: SensitivityTable) -> None:
    """Left errors of each layer, right the bytes saved; a colour for each candidate."""
    m, order = found.measured, found.order
    left, right = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(m.candidates)
    assert m.stored is not None
    for j, name in enumerate(m.candidates):
        at = np.arange(len(order)) + (j - (len(m.candidates) - 1) / 2) * height
        left.barh(
            at, [m.errors[i, j] if np.isfinite(m.errors[i, j]) else 0.0 for i in order], height, label=name
        )
        saved = [max(found.dense_bytes[i] - int(m.stored[i, j]), 0) for i in order]
        right.barh(
            at, [x if np.isfinite(m.errors[i, j]) else 0 for i, x in zip(order, saved, strict=True)], height
        )
    left.set_yticks(range(len(order)), [m.leaves[i] for i in order], fontsize="x-small")
    left.invert_yaxis()
    finite = m.errors[np.isfinite(m.errors)]
    if finite.size and finite.min() >= 0 and finite.max() > 0:
        # Errors of layers differ by orders; 0 is drawn, too.
        left.set_xscale("symlog", linthresh=float(finite.max()) / 1e4)
    # As text, without many digits: a page shows no formulas, and shortens numbers.
    left.xaxis.set_major_formatter(
        lambda value, _: f"{value:g}" if abs(value) >= 0.1 or not value else f"{value:.0e}"
    )
    right.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    left.set(xlabel=found.unit)
    left.legend(fontsize="x-small")
    right.set(xlabel="bytes saved in the file")


def layer_sensitivity(
    params: PyTree,
    candidates: Mapping[str, Transform] | Sequence[Transform],
    *,
    sensitivity: Sensitivity,
    only: str | tuple[str, ...] = "**",
    min_ndim: int = 2,
    unit: str = "error",
    progress: Callable[[str, int], None] | None = None,
    **given: Any,
) -> SensitivityTable:
    """Compresses each layer by each candidate, all others as they are, and measures what that costs.

    It is what `mz.mixed_precision` chooses from. The network is one compiled program for all layers and candidates, its
    weights being arguments; what compresses a leaf is compiled once for each shape.

    Args:
      params: a pytree of arrays.
      candidates: transforms that encode each leaf by itself, by name or in a sequence, as for `mz.mixed_precision`.
      sensitivity: of `mz.sensitivity`, such as `output_kl(apply_fn, batches)`, or `task_drop(task, "accuracy")`.
      only, min_ndim: which leaves, as in `mz.only`; by default those of two axes and more.
      unit: what errors are called in table and figure.
      progress: called with a leaf's name and dense bytes once it is measured.
      **given: what candidates read beside the weights, as for `mz.compress`.

    Returns:
      `SensitivityTable`: `rows`, `table()`, `figure()`.

    Raises:
      As `mz.mixed_precision`, but for budgets.

    >>> import modelzip_jax as mz
    >>> rng = np.random.default_rng(0)
    >>> params = {"first": rng.normal(size=(64, 64)).astype("f4"), "last": rng.normal(size=(64, 8)).astype("f4")}
    >>> model = lambda p, x: (x @ p["first"]) @ p["last"] / 100
    >>> found = layer_sensitivity(
    ...     params, {"2 bits": mz.quantize(2), "6 bits": mz.quantize(6)},
    ...     sensitivity=mz.sensitivity.output_kl(model, [rng.normal(size=(32, 64)).astype("f4")]),
    ... )
    >>> [(row.name, row.candidate) for row in found.rows if row.error > 0.01]
    [('first', '2 bits'), ('last', '2 bits')]
    """
    found = leaf_measurements(
        params, candidates, sensitivity, given, only=only, min_ndim=min_ndim, in_files=True, progress=progress,
        called="layer_sensitivity()",
    )  # fmt: skip
    dense = {name: trees.nbytes(leaf) for name, leaf in trees.named_leaves(trees.plain(params))}
    return SensitivityTable(found, tuple(dense[name] for name in found.leaves), unit)


@dataclasses.dataclass(frozen=True, eq=False)
class TaskDrop(Sensitivity):
    """See `task_drop`."""

    task: Callable[[PyTree], Any]
    score: str | None
    lower: bool
    variables: Mapping[str, Any]

    def prepare(self, params: PyTree) -> LeafCost:
        leaves, treedef = jax.tree.flatten(trees.plain(params))
        place = {name: i for i, (name, _) in enumerate(trees.named_leaves(params))}
        before = self._value(treedef.unflatten(leaves))

        def measure(name: str, w: np.ndarray, changed: np.ndarray) -> float:
            i = place[name]
            own = [*leaves[:i], np.asarray(changed).astype(w.dtype), *leaves[i + 1 :]]
            drop = before - self._value(treedef.unflatten(own))
            return -drop if self.lower else drop

        return measure

    def _value(self, params: PyTree) -> float:
        tree = {"params": params, **self.variables} if self.variables else params
        scores = named_scores(self.task(tree))
        name = next(iter(scores), None) if self.score is None else self.score
        if name not in scores:
            raise EvaluationError(f"the task gives no {name!r}; it gives {', '.join(scores) or 'nothing'}")
        return float(summary(scores[name]))


def task_drop(
    task: Callable[[PyTree], Any],
    score: str | None = None,
    *,
    lower: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> TaskDrop:
    """By how much a number of a task becomes worse with one leaf changed; negative where it becomes better.

    The task is run once for each leaf and candidate: give it weights as arguments of a jitted function.

    Args:
      task: from params, or `{"params": …, **variables}` where there are variables, to a dict of numbers, estimates, or
        arrays with a score for each example.
      score: which of its numbers; the first if left out.
      lower: less of it is better, as of a loss.
      variables: what travels along, such as batch statistics.

    Raises (when it is used):
      EvaluationError: the task gives no such number.

    >>> drop = task_drop(lambda p: {"sum": p["w"].sum()}).prepare({"w": np.float32([1.0, 2.0])})
    >>> drop("w", np.float32([1.0, 2.0]), np.float32([1.0, 1.5]))
    0.5
    """
    return TaskDrop(task, score, lower, dict(variables or {}))
