"""Distillation on Fashion-MNIST: every loss, weak labels, subsets, compressed students, and what a step costs.

    python -m benchmarks.distillation [PART ...] [--seconds S] [--quick]

A network is trained once and what it comes to is kept in `benchmarks/results/distillation_cells.json`, so that a run
that was stopped, also by --seconds, goes on where it stood; the tables are made of what there is. Hyperparameters are
chosen on the validation split with seed 0; test figures are those of the last step. The seeds of a row share their
initial weights and batches with those of the other rows, so that differences are taken seed by seed.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from benchmarks import harness
from benchmarks.teaching import compressed, quarter, step_time, students, subsets, weak
from benchmarks.teaching.cells import Cells, OutOfTimeError

PARTS: dict[str, Any] = {
    "losses": quarter,
    "compressed": compressed,
    "weak": weak,
    "subsets": subsets,
    "step_time": step_time,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=math.inf, help="to stop after")
    parser.add_argument("--quick", action="store_true", help="few steps, written to no file")
    chosen = parser.parse_args()
    if chosen.quick:
        students.QUICK.append(5)
    report = harness.Report("distillation", "Distillation", chosen)
    report.command = "python -m benchmarks.distillation"
    cells = Cells(None if chosen.quick else harness.RESULTS / "distillation_cells.json", chosen.seconds)
    try:
        for part in chosen.parts or PARTS:
            PARTS[part].run(cells)
    except OutOfTimeError:
        print("the time is over")
    cells.end = -math.inf
    missing = [title for module in PARTS.values() for title in module.report(cells, report)]
    if missing:
        report.note(f"not finished: {', '.join(missing)}")
    report.finish()


if __name__ == "__main__":
    main()
