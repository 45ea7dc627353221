"""From about eight bits a weight to where quality breaks: which points of a curve are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.rates.curves import Point, met
from benchmarks.rates.goals import Goals

__all__ = ["Line", "Made", "sweep"]

_FINEST = 7.5
"""Bits a weight."""
_ROUNDS, _FARTHEST, _MORE = 3, 60, 1.01


class Made(NamedTuple):
    """A file. bytes: of it. leaves: what it decodes to, by name; those that are missing are as they were.

    seconds: of encoding and of decoding, where the peer tells.
    """

    bytes: int
    leaves: dict[str, Any]
    seconds: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """Files of one setting but for one number, the coarseness k, in quarters of an octave of the step.

    label: the setting, for the record. make: from several k to files, None for one that is too coarse to be any.
    first: the k to begin with, rising. chunk: how many are best made at once. only: no others. whole: up to eight
    bits a weight, not just to where the least drop is reached.
    """

    label: str
    make: Callable[[Sequence[int]], Sequence[Made | None]]
    first: tuple[int, ...] = (0,)
    chunk: int = 1
    only: bool = False
    whole: bool = True


def sweep(
    line: Line,
    measured: Callable[[Sequence[int]], Sequence[Point | None]],
    goals: Goals,
    weights: int,
    near: float,
) -> None:
    """Asks for points of a line, each once, until both ends are reached and those around all goals are near.

    Args:
      line: all of which but `make` counts. measured: from several k to points, which it keeps.
      goals: drops to look around. weights: how many there are. near: a ratio of bytes.
    """
    known: dict[int, Point | None] = {}

    def ask(ks: Sequence[int]) -> None:
        new = [k for k in ks if k not in known]
        if new:
            known.update(zip(new, measured(new), strict=True))

    ask(line.first)
    if line.only:
        return
    while not _broken(known[max(known)], goals) and max(known) < max(line.first) + _FARTHEST:
        ask([max(known) + 2 * (i + 1) for i in range(line.chunk)])
    while _coarse(known[min(known)], _FINEST * weights / 8) and min(known) > min(line.first) - _FARTHEST:
        point = known[min(known)]
        if not line.whole and point and point.drop <= goals.drops[0]:
            break
        # Between the goals steps are half octaves; where quality is kept anyway, whole bits and two of them.
        stride = 2 if _broken(point, goals) or point.drop > goals.drops[0] else 4  # type: ignore[union-attr]
        ask([min(known) - stride * (i + 1) for i in range(line.chunk)])
        finer = known[min(known)]
        works = not all(_broken(other, goals) for other in known.values())
        if works and point and finer and (_broken(finer, goals) or finer.bytes < _MORE * point.bytes):
            break  # Its codes have a largest one.
    for _ in range(_ROUNDS):
        ask(_between(known, goals, near))


def _broken(point: Point | None, goals: Goals) -> bool:
    return point is None or not point.drop <= goals.broken


def _coarse(point: Point | None, enough: float) -> bool:
    return point is None or point.bytes < enough


def _between(known: dict[int, Point | None], goals: Goals, near: float) -> list[int]:
    """k halfway between points that a goal lies between and that are not near."""
    places = [k for k in sorted(known) if known[k] is not None]
    points: list[Point] = [known[k] for k in places]  # type: ignore[misc]
    found = set()
    for drop in goals.drops:
        at = met(points, drop, goals.logarithmic)
        if at is None:
            continue
        k, other = sorted((places[at.finer], places[at.coarser]))
        if other - k > 1 and points[at.finer].bytes > near * points[at.coarser].bytes:
            found.add((k + other) // 2)
    return sorted(found)
