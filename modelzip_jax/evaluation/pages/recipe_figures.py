"""The figure of recipes: bytes against quality, and the front of those that none other beats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelzip_jax.evaluation.estimate import Estimate
from modelzip_jax.evaluation.pages.drawing import AFTER, BEFORE, GRID, canvas, svg
from modelzip_jax.evaluation.pages.markup import Markup
from modelzip_jax.evaluation.recipe_comparison import ComparedRecipe

__all__ = ["front_figure"]


def front_figure(compared: Sequence[ComparedRecipe], on_front: Sequence[bool], score: str) -> Markup:
    """Bytes (log scale) against one number of the task, with standard errors; the front joined by a line.

    Raises:
      MissingExtraError: matplotlib is not installed.
      EvaluationError: the task gave no such number.
    """
    sizes = np.array([one.file_bytes for one in compared], np.float64)
    values = np.array([one.value(score) for one in compared])
    with canvas(6.4, 3.6, f"front {score}") as figure:
        axes = figure.subplots()
        for one, x, y, best in zip(compared, sizes, values, on_front, strict=True):
            change = next(change for change in one.scores if change.name == score)
            error = change.after.standard_error if isinstance(change.after, Estimate) else None
            error = None if error is None or np.isnan(error) else error
            colour = AFTER if best else BEFORE
            axes.errorbar(x, y, error, fmt="o" if best else "x", color=colour, capsize=3)
            axes.annotate(one.name, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=8)
        front = sorted((i for i, best in enumerate(on_front) if best), key=lambda i: (sizes[i], values[i]))
        axes.plot(sizes[front], values[front], color=AFTER, linewidth=0.8)
        before = next((c.before for c in compared[0].scores if c.name == score), None)
        if before is not None:
            axes.axhline(float(before), color=GRID, linestyle="--")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set(xlabel="bytes in the file", ylabel=score)
        return svg(figure, f"Bytes against {score} of {len(compared)} recipes")
