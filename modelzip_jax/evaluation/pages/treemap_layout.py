"""A treemap's rectangles: areas in proportion, each as near to a square as may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Rectangle", "squarified"]


class Rectangle(NamedTuple):
    """Left and lower edge, width and height."""

    x: float
    y: float
    width: float
    height: float


def squarified(sizes: Sequence[float], width: float, height: float) -> list[Rectangle]:
    """Rectangles that fill `width` by `height`, of areas in proportion to positive sizes, largest first.

    The squarified treemap of Bruls, Huizing and van Wijk (2000, https://doi.org/10.1007/978-3-7091-6783-0_4): rows
    along the shorter side, each filled as long as its worst aspect ratio falls.

    >>> squarified([3, 1], 4.0, 1.0)
    [Rectangle(x=0.0, y=0.0, width=3.0, height=1.0), Rectangle(x=3.0, y=0.0, width=1.0, height=1.0)]
    """
    total = sum(sizes)
    areas = [size * width * height / total for size in sizes]
    found: list[Rectangle] = []
    x = y = 0.0
    while len(found) < len(areas):
        side = min(width, height)
        row = areas[len(found) : len(found) + 1]
        for area in areas[len(found) + 1 :]:
            if _worst([*row, area], side) > _worst(row, side):
                break
            row.append(area)
        depth = sum(row) / side
        along = 0.0
        for area in row:
            length = area / depth
            found.append(
                Rectangle(x, y + along, depth, length) if width >= height
                else Rectangle(x + along, y, length, depth)
            )  # fmt: skip
            along += length
        if width >= height:
            x, width = x + depth, width - depth
        else:
            y, height = y + depth, height - depth
    return found


def _worst(row: list[float], side: float) -> float:
    """The largest aspect ratio of rectangles side by side."""
    depth = sum(row) / side
    return max(max(area / depth / depth, depth * depth / area) for area in row)
