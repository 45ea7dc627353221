"""Every family of the survey and the main chains on Fashion-MNIST LeNet-5: bytes, accuracy, gap, calls and energy.

    python -m benchmarks.survey [--repeats 3] [--seconds 1200] [--quick] [--finished]

A repeat is a seed: one of the three networks in `runs/tasks`, trained on for half an epoch as each way compresses it
(students of a quarter of the width: two epochs from scratch). Recipes are those of `configs/recipes`. Cells go to
`benchmarks/results/survey_cells.json` as each is done; after `--seconds` no further one begins, and the next run goes
on. With `--finished` only what is done is reported. Needs matplotlib for the figure, `docs/survey.svg`.
"""

from __future__ import annotations

import argparse
import math
import sys

from benchmarks import harness
from benchmarks.teaching import students
from benchmarks.teaching.cells import Cells, OutOfTimeError
from benchmarks.terms import fitting, tables, ways

__all__ = ["main"]


def _seconds() -> float:
    """Taken from the arguments, as the other options are of every benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seconds", type=float, default=math.inf)
    chosen, rest = parser.parse_known_args(sys.argv[1:])
    sys.argv[1:] = rest
    return chosen.seconds


def main() -> None:
    seconds = _seconds()
    chosen = harness.options(__doc__, repeats=3, flags={"finished": "report what is done, and train nothing"})
    rows = ways.WAYS
    if chosen.quick:
        students.QUICK.append(2)
        rows, chosen.repeats = rows[:4], 1
    path = None if chosen.quick else harness.RESULTS / "survey_cells.json"
    cells = Cells(path, 0.0 if chosen.finished else seconds)
    try:
        # A seed of every row, then the next one: what is stopped has them all.
        for seed in range(chosen.repeats):
            for way in rows:
                cells.get(f"{way.name}/seed={seed}", lambda way=way, seed=seed: fitting.fitted(way, seed))
    except OutOfTimeError:
        print("out of time; the next run goes on", flush=True)
    report = harness.Report("survey", "The survey's methods on one network", chosen)
    tables.report(cells, report)
    report.finish()


if __name__ == "__main__":
    main()
