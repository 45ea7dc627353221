"""Figures of what compression changed: weights before and after over their grid, and a task's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelzip_jax.evaluation.estimate import Estimate
from modelzip_jax.evaluation.pages.drawing import AFTER, BEFORE, GRID, canvas, svg
from modelzip_jax.evaluation.pages.markup import Markup
from modelzip_jax.evaluation.task_scores import ScoreChange
from modelzip_jax.evaluation.weight_histograms import WeightHistogram

__all__ = ["MOST_LEVELS", "histogram_figure", "score_figure"]

MOST_LEVELS = 300
"""Of a grid that is drawn: those of biases are finer than a screen."""
_WHOLE_LINES = 65


def histogram_figure(name: str, histogram: WeightHistogram) -> Markup:
    """Shares of the weights before (filled) and after (line), over the levels of the grid (thin lines)."""
    with canvas(5.2, 2.2, name) as figure:
        # A layout that is found by drawing everything twice would take most of the time.
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.13, 0.2, 0.85, 0.76))
        edges, levels = histogram.edges, histogram.levels
        if levels is not None and 0 < len(levels) <= MOST_LEVELS:
            _draw_levels(axes, levels)
        axes.stairs(histogram.before, edges, fill=True, color=BEFORE, alpha=0.55, linewidth=0, label="before")
        axes.stairs(histogram.after, edges, color=AFTER, linewidth=0.9, label="after")
        shares = np.concatenate([histogram.before, histogram.after])
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(shares[shares > 0].min() * 0.6, 1e-6))
        # Powers of ten would be set as formulas, each of them parsed for every figure.
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set(
            xlim=(edges[0], edges[-1]), ylabel="share of the weights",
            xlabel="weight, in steps of its own" if histogram.in_steps else "weight",
        )  # fmt: skip
        axes.legend(loc="upper right", fontsize=8)
        return svg(figure, f"Histogram of the weights of {name} before and after compression")


def _draw_levels(axes: Any, levels: np.ndarray) -> None:
    """Thin lines, short ones where they are many, in one stroke: an element for each would make pages large."""
    gaps = np.full_like(levels, np.nan)
    top = 1.0 if len(levels) <= _WHOLE_LINES else 0.05
    x = np.stack([levels, levels, gaps], axis=1).reshape(-1)
    y = np.tile([0.0, top, np.nan], len(levels))
    axes.plot(x, y, transform=axes.get_xaxis_transform(), color=GRID, linewidth=0.5)


def score_figure(change: ScoreChange) -> Markup:
    """One number of a task before and after, with bars of its standard error where that is known."""
    points = [("before", change.before, BEFORE), ("after", change.after, AFTER)]
    shown = [(label, value, colour) for label, value, colour in points if value is not None]
    with canvas(2.5, 1.7, f"score {change.name}") as figure:
        axes = figure.subplots()
        for place, (_, value, colour) in enumerate(shown):
            error = value.standard_error if isinstance(value, Estimate) else None
            error = None if error is None or np.isnan(error) else error
            axes.errorbar(place, float(value), error, fmt="o", color=colour, capsize=5, markersize=6)
        axes.set_xticks(range(len(shown)), [label for label, _, _ in shown])
        axes.set(xlim=(-0.6, len(shown) - 0.4), title="")
        axes.grid(axis="y", color=GRID, linewidth=0.4)
        return svg(figure, f"{change.name} before and after compression, with standard errors")
