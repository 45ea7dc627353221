"""Which units of a group can change places: those that stand alike in every variable of the model."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np

from modelzip_jax.trace.coupling.labels import AxisLabels, Solution, expand

__all__ = ["numbered", "standings"]


def standings(axes: Iterable[AxisLabels], solution: Solution, wanted: Iterable[int]) -> dict[int, Hashable]:
    """How each class of labels stands in the model; two classes that stand alike can change places.

    A class is described by the axes it occurs on and, for each, by its positions relative to its first one. A slice
    that has some units of a group and not others tells them apart, since what follows may treat it differently:
    in `concatenate([relu(h[:4]), tanh(h[4:])])` all units go alike but only those of one half are interchangeable.
    Positions tell how the several elements of a unit correspond to those of another: as equal distances, so that
    the elements of an axis that is met by its own reverse are not interchangeable, although some could be.

    Args:
      axes: labels of axes of all variables; repetitions do not matter.
      wanted: classes to describe.
    """
    found: dict[int, list[Hashable]] = {each: [] for each in wanted}
    parts: dict[int, tuple[int, ...]] = {}
    seen: set[bytes] = set()
    for axis in axes:
        classes = np.where(axis >= 0, solution.of[np.maximum(axis, 0)], -1)
        key = repr(classes.shape).encode() + classes.tobytes()
        if key in seen:
            continue
        seen.add(key)
        places: dict[int, list[np.ndarray]] = {}
        for each, rows in _rows(classes):
            if each not in parts:
                parts[each] = tuple(part for part in expand(solution.combined, each) if part in found)
            for part in parts[each]:
                places.setdefault(part, []).append(rows)
        for part, lists in places.items():
            rows = np.unique(np.concatenate(lists))
            found[part].append((len(seen), (rows - rows[0]).tobytes()))
    return {each: tuple(description) for each, description in found.items()}


def _rows(classes: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    """Each class of an axis, and the elements that have it."""
    flat = classes.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[np.searchsorted(flat[order], 0) :]
    if order.size:
        ordered = flat[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        rows = np.split(order // classes.shape[1], starts[1:])
        yield from zip(ordered[starts].tolist(), rows, strict=True)


def numbered(descriptions: Iterable[Hashable]) -> np.ndarray:
    """int64 `(units,)`: equal numbers for equal descriptions, from 0 on as they appear."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(each, len(numbers)) for each in descriptions], np.int64)
