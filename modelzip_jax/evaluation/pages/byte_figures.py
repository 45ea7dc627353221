"""Figures of where the bytes go: a treemap of the file, and bits and sparsity of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelzip_jax.evaluation.compression_findings import LayerFinding
from modelzip_jax.evaluation.pages.drawing import AFTER, GRID, INK, canvas, plain_axes, svg
from modelzip_jax.evaluation.pages.markup import Markup, concatenated
from modelzip_jax.evaluation.pages.treemap_layout import Rectangle, squarified

__all__ = ["bars", "treemap"]

_MOST = 150
_LETTER, _LINE = 0.077, 0.16
"""Inches of a letter and of a line at nine points."""


def treemap(layers: Sequence[LayerFinding]) -> Markup:
    """Area: bytes in the file; strength of the colour: bits a weight. One for wide screens and one for narrow ones."""
    order = sorted(
        (i for i, layer in enumerate(layers) if layer.row.file_bytes), key=lambda i: _bytes(layers, i)
    )
    if not order:
        return Markup("")
    return concatenated(
        _treemap(layers, order, 9.6, 4.4, "wide"), _treemap(layers, order, 4.4, 5.6, "narrow")
    )


def _bytes(layers: Sequence[LayerFinding], index: int) -> tuple[int, int]:
    return -layers[index].row.file_bytes, index


def _treemap(
    layers: Sequence[LayerFinding], order: list[int], width: float, height: float, class_: str
) -> Markup:
    shown, others = order[:_MOST], order[_MOST:]
    sizes = [float(layers[i].row.file_bytes) for i in shown]
    rest = sum(layers[i].row.file_bytes for i in others)
    # Of the few numbers of a layer norm, side information makes many bits: they are as strong as the largest.
    large = [i for i in shown if layers[i].row.file_bytes * 200 >= sum(sizes)]
    most = max(layers[i].row.bits_per_weight for i in large or shown)
    told = {}
    with canvas(width, height, f"treemap {class_}") as figure:
        axes = plain_axes(figure, width, height)
        rectangles = squarified([*sizes, rest] if rest else sizes, width, height)
        for i, rectangle in zip(shown, rectangles, strict=False):
            row = layers[i].row
            gid = f"{class_}-{i}"
            told[gid] = f"{row.name}: {row.file_bytes:,} bytes, {row.bits_per_weight:.2f} bits a weight"
            shade = 0.12 + 0.5 * min(row.bits_per_weight / most, 1.0) if most else 0.12
            lines = (row.name, f"{row.file_bytes:,} bytes")
            _box(axes, rectangle, lines, shade, gid, f"#layer-{i}")
        if rest:
            told[f"{class_}-others"] = f"{len(others)} smaller tensors: {rest:,} bytes"
            lines = (f"{len(others)} others", "")
            _box(axes, rectangles[-1], lines, 0.05, f"{class_}-others", None)
        names = ", ".join(f"{layers[i].row.name} {layers[i].row.file_bytes:,}" for i in shown[:5])
        return svg(figure, f"Treemap of the file's bytes, largest first: {names}", told, class_)


def _box(axes: Any, at: Rectangle, lines: tuple[str, str], shade: float, gid: str, link: str | None) -> None:
    from matplotlib.patches import Rectangle as Patch

    room = 0.015
    patch = Patch(
        (at.x + room, at.y + room), max(at.width - 2 * room, 0.005), max(at.height - 2 * room, 0.005),
        facecolor=AFTER, alpha=shade, edgecolor="none", gid=gid, url=link,
    )  # fmt: skip
    axes.add_patch(patch)
    letters, fits = int((at.width - 0.12) / _LETTER), int((at.height - 0.06) / _LINE)
    if letters < 6:
        return
    name = _wrapped(lines[0], letters) if letters > 7 else [lines[0].rpartition("/")[2][:letters]]
    told = name[-fits:] if fits else []
    if len(told) < len(name) and told:
        told[0] = "…" + told[0][-letters + 1 :]
    for number, line in enumerate(told):
        axes.text(at.x + 0.06, at.y + 0.06 + number * _LINE, line, va="top", color=INK)
    if len(told) < fits and len(lines[1]) <= letters:
        axes.text(at.x + 0.06, at.y + 0.06 + len(told) * _LINE, lines[1], va="top", size=8, color=INK)


def _wrapped(path: str, letters: int) -> list[str]:
    """A path in lines of so many letters, broken behind slashes where that can be."""
    lines = [""]
    for part in path.replace("/", "/\0").split("\0"):
        if lines[-1] and len(lines[-1] + part) > letters:
            lines.append("")
        lines[-1] += part
    return [line[start : start + letters] for line in lines for start in range(0, len(line), letters)]


def bars(
    layers: Sequence[LayerFinding], values: Sequence[float], label: str, unit: str, digits: int
) -> Markup:
    """A bar for each layer, in the order of the file; the largest layers alone if there are very many."""
    chosen = sorted(sorted(range(len(layers)), key=lambda i: _bytes(layers, i))[: 3 * _MOST])
    told = {}
    with canvas(5.2, 2.3, label) as figure:
        axes = figure.subplots()
        for place, i in enumerate(chosen):
            gid = f"bar-{i}"
            told[gid] = f"{layers[i].row.name}: {values[i]:.{digits}f}{unit}"
            # A bar of nothing would have no place for the mouse.
            (bar,) = axes.bar(place, values[i], width=0.8, color=AFTER, linewidth=0)
            bar.set_gid(gid)
            bar.set_url(f"#layer-{i}")
        axes.set(xlim=(-0.6, len(chosen) - 0.4), ylabel=label, xlabel="layers, in the order of the file")
        axes.set_ylim(bottom=0.0)
        axes.set_xticks([])
        axes.grid(axis="y", color=GRID, linewidth=0.4)
        axes.set_axisbelow(True)
        return svg(figure, f"{label} of {len(chosen)} layers", told)
