"""The figure of a mixed precision: bits of each leaf, and error over cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelzip_jax.errors import MissingExtraError

if TYPE_CHECKING:
    from modelzip_jax.quantization.mixed_result import MixedPrecision

__all__ = ["drawn"]


def drawn(found: MixedPrecision) -> Any:
    """Left bits of each leaf, right the least error of the relaxation for every cost, the uniform choices and this one.

    Raises:
      MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("figures need matplotlib: pip install 'modelzip_jax[notebooks]'") from error
    rows, problem, steps = found.rows, found.problem, found.problem.steps
    figure = Figure(figsize=(11, 2.0 + 0.2 * max(len(rows), 12)), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.barh(range(len(rows)), [row.bits for row in rows])
    left.set_yticks(range(len(rows)), [row.name for row in rows], fontsize="x-small")
    left.invert_yaxis()
    left.set(xlabel="bits a value, side information included")
    right.plot(steps.costs + problem.fixed, steps.errors, "-", label="least error, relaxed")
    for name, totals in found.uniform.items():
        right.plot(totals.cost, totals.error, "x", color="black")
        right.annotate(name, (totals.cost, totals.error), fontsize="x-small")
    right.plot(found.cost, found.error, "o", label="chosen")
    right.set(xlabel=problem.unit, ylabel="error")
    if min(steps.errors.min(), found.error) > 0:
        right.set_yscale("log")
    right.legend()
    return figure
