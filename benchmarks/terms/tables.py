"""The table and the figure of the survey-wide experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from benchmarks import harness
from benchmarks.teaching.cells import Cells
from benchmarks.terms import ways
from modelzip_jax import evaluation, trace
from modelzip_jax.evaluation.report import Report, TensorReport

__all__ = ["draw", "report"]

FIGURE = Path(__file__).parents[2] / "docs" / "survey.svg"
DENSE = 4 * 431_080
"""Bytes of LeNet-5 in float32."""
COLUMNS = [
    "family", "way", "seeds", "steps", "file, bytes", "times smaller", "test, %", "above the float network",
    "before training, %", "train − test", "call, weights decoded in it ÷ float", "energy of a call, estimated, µJ",
]  # fmt: skip


def report(cells: Cells, out: harness.Report) -> None:
    """The table of what is done, and the figure if there is anything to draw."""
    rows, points = [], []
    for way in ways.WAYS:
        found = _of(cells, way)
        if not found:
            continue
        rows.append(_row(way, found, _of(cells, ways.WAYS[0])))
        points.append((way, _mean(found, "bytes"), _mean(found, "test")))
    missing = sum(len(_of(cells, way)) < out.chosen.repeats for way in ways.WAYS)
    if missing and not out.chosen.quick:
        out.note(f"{missing} ways are not yet done with all {out.chosen.repeats} seeds: run it again")
    if not rows:
        return
    out.table("Fashion-MNIST LeNet-5, 431,080 weights", COLUMNS, rows)
    out.note(
        "Accuracy is of the file, read back. Half an epoch of training from the float network (quarter width: two, "
        "from scratch), one rate for all: no way is at its best here, see the studies of each. Test accuracy ± its "
        "standard error over seeds; train is of the first 5,000 training images."
    )
    out.note(
        "Energy is an estimate by mz.evaluation.energy, batch 1, float32 products, weights moved as the file's bits, "
        "constants of Horowitz 2014 (45 nm): no meter was read."
    )
    if not out.chosen.quick:
        matplotlib.rcParams.update({"svg.hashsalt": "modelzip_jax", "svg.fonttype": "none"})
        draw(points).savefig(FIGURE, metadata={"Date": None})
        print(f"wrote docs/{FIGURE.name}")


def _of(cells: Cells, way: ways.Way) -> dict[int, dict[str, Any]]:
    """The cells of a way that are done, by seed."""
    names = {seed: f"{way.name}/seed={seed}" for seed in range(3)}
    return {seed: cells.found[name] for seed, name in names.items() if name in cells.found}


def _mean(found: dict[int, dict[str, Any]], field: str) -> float:
    return float(np.mean([cell[field] for cell in found.values()]))


def _row(way: ways.Way, found: dict[int, dict[str, Any]], floats: dict[int, dict[str, Any]]) -> list[Any]:
    size, cells = _mean(found, "bytes"), list(found.values())
    paired = [found[seed]["test"] - floats[seed]["test"] for seed in found if seed in floats]
    gaps = [cell["train"] - cell["test"] for cell in cells]
    return [
        way.family, way.title, len(cells), way.steps, round(size), DENSE / size,
        _said([cell["test"] for cell in cells]), _said(paired) if paired and floats is not found else "–",
        "–" if way.from_scratch else _mean(found, "at_once"), _said(gaps),
        found[0]["call"] if 0 in found else float("nan"), 1e6 * _energy(way, cells[0]),
    ]  # fmt: skip


def _said(values: list[float]) -> str:
    return harness.said(values, digits=2) if len(values) > 1 else f"{values[0]:.2f}"


def _energy(way: ways.Way, cell: dict[str, Any]) -> float:
    """Joules of one image's call, estimated."""
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")
    module = ways.lenet(way)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    costs = trace.cost(lambda params, x: module.apply({"params": params}, x), shapes, image)
    rows = tuple(
        TensorReport(name, (size,), "float32", "", size, zeros, 4 * size, round(bits / 8), round(bits / 8))
        for name, (size, bits, zeros) in cell["layers"].items()
    )
    return evaluation.energy(costs, Report(rows, 0, None, 0, {})).total


def draw(points: list[tuple[ways.Way, float, float]]) -> Figure:
    """Bytes against test accuracy, a colour a family; the line joins what no other beats."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    families = list(dict.fromkeys(way.family for way, *_ in points))
    colours = dict(zip(families, matplotlib.colormaps["tab10"].colors, strict=False))  # type: ignore[attr-defined]
    best = evaluation.pareto([size for _, size, _ in points], [test for *_, test in points])
    for family in families:
        here = [(size / 1000, test) for way, size, test in points if way.family == family]
        axes.scatter(*zip(*here, strict=True), label=family, color=colours[family], s=30, zorder=3)
    front = sorted((size, test, way.title) for (way, size, test), on in zip(points, best, strict=True) if on)
    axes.plot([size / 1000 for size, *_ in front], [test for _, test, _ in front], color="0.7", zorder=1)
    for size, test, title in front:
        axes.annotate(
            title, (size / 1000, test), textcoords="offset points", xytext=(4, -10), fontsize="x-small"
        )
    axes.set(xscale="log", xlabel="file, kB", ylabel="test accuracy, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_xticks([], minor=True)
    axes.margins(0.15)
    axes.grid(color="0.92")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
