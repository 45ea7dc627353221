"""The table and the figure of the survey-wide experiment."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.teaching.cells import Cells

__all__ = ["report"]


def report(cells: Cells, out: harness.Report) -> None:
    """The table of what is done."""
    del cells, out
