"""Draws every score's curve, as `benchmarks.pruning` recorded them, into `runs/pruning_curves.svg`.

    python -m benchmarks.pruning_figure

Needs matplotlib (extra `notebooks`).
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.harness import RESULTS

__all__ = ["draw", "main"]

PATH = Path("runs/pruning_curves.svg")


def draw(columns: list[str], rows: list[list[object]], title: str) -> Figure:
    """Error over sparsity. columns: "score", then sparsities such as "50%"; others are left out. rows: in %."""
    shown = [index for index, column in enumerate(columns) if column.endswith("%")]
    ratios = [1 / (1 - float(columns[index][:-1]) / 100) for index in shown]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)  # As many as there are scores, without repetition.
    for row in rows:
        line = "--" if "channels" in str(row[0]) else "-"
        axes.plot(ratios, [row[index] for index in shown], line, marker=".", label=row[0])
    axes.set(
        xscale="log", yscale="log", xlabel="weights or channels pruned", ylabel="test error, %", title=title
    )
    axes.set_xticks(ratios, [columns[index] for index in shown])
    axes.set_yticks(errors := [2, 5, 10, 20, 50, 90], [str(error) for error in errors])
    axes.set_xticks([], minor=True)
    axes.set_yticks([], minor=True)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def main() -> None:
    """Draws the table of curves."""
    record = json.loads((RESULTS / "pruning.json").read_text())
    (table,) = (t for t in record["tables"] if t["columns"][-1] == "largest standard error")
    PATH.parent.mkdir(exist_ok=True)
    draw(table["columns"], table["rows"], table["title"]).savefig(PATH)
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
