"""Draws bytes against quality, all methods on all networks, as `benchmarks.rate_distortion` recorded them.

    python -m benchmarks.rate_distortion_figure

Writes `docs/rate_distortion.svg`, and for the README three of its panels, `docs/three_networks.svg`. Needs matplotlib
(extra `notebooks`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from benchmarks.harness import RESULTS
from benchmarks.rates.curves import front
from benchmarks.rates.goals import Goals
from benchmarks.rates.methods import METHODS
from benchmarks.rates.records import curve
from benchmarks.rates.summary import groups

__all__ = ["draw", "main"]

DOCS = Path(__file__).parent.parent / "docs"
_THREE = ("g2p", "kjv_model", "resnet20-fashion_mnist")
_COLUMNS = 3
_COLOURS = dict(zip(METHODS, matplotlib.colormaps["tab10"].colors, strict=True))  # type: ignore[attr-defined]


def draw(networks: list[dict[str, Any]]) -> Figure:
    """A panel for each network: of every method the files that no other of its own beats on the validation part."""
    rows = math.ceil(len(networks) / _COLUMNS)
    figure = Figure(figsize=(4.5 * _COLUMNS, 3.2 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in panels[len(networks) :]:
        axes.set_axis_off()
    for axes, data in zip(panels, networks, strict=False):
        _panel(axes, data)
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=5, fontsize="small")
    return figure


def _panel(axes: Axes, data: dict[str, Any]) -> None:
    goals = Goals(**data["goals"][0])
    for method in METHODS:
        found = curve(data, method, goals.measure)
        best = [found[i][1] for i in front([point for _, point in found])]
        shown = [point for point in best if point.drop <= 2 * goals.drops[-1]]
        # What is better than the float network, or no worse, stands at the edge.
        drops = [max(point.drop, goals.drops[0] / 4) for point in shown]
        style = "-" if METHODS[method].calibrated else "--"
        wide = 2.2 if method in ("calibrated", "data_free") else 1.1
        axes.plot(
            [point.bytes / 1000 for point in shown], drops, style, marker=".", linewidth=wide,
            color=_COLOURS[method], label=METHODS[method].title,
        )  # fmt: skip
    for drop in goals.drops:
        axes.axhline(drop, color="0.85", linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="kB", ylabel=f"drop of {goals.measure}", title=data["task"])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_xticks([], minor=True)
    axes.set_ylim(goals.drops[0] / 5, 2.5 * goals.drops[-1])


def main() -> None:
    """Draws one network of those that differ by a seed."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("rate_distortion_*.json"))]
    by_name = {record["data"]["task"]: record["data"] for record in records}
    # The same bytes each time that the same is drawn, and text that can be found.
    matplotlib.rcParams.update({"svg.hashsalt": "modelzip_jax", "svg.fonttype": "none"})
    shown = {
        "rate_distortion": [names[0] for names in groups(list(by_name)).values()],
        "three_networks": [name for name in _THREE if name in by_name],
    }
    for name, tasks in shown.items():
        draw([by_name[task] for task in tasks]).savefig(DOCS / f"{name}.svg", metadata={"Date": None})
        print(f"wrote docs/{name}.svg")


if __name__ == "__main__":
    main()
