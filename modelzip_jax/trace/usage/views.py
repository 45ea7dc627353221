"""Which elements of a parameter leaf a variable of the jaxpr holds: strided views, as symbols.

A variable made from a leaf by reshapes, transposes, slices and concatenations is described axis by
axis. Each axis is a product of *factors*, each a walk along one axis of the leaf, so that splitting
768 features into 12 heads of 64 and merging them again is exact (the idea of CuTe's layouts,
https://docs.nvidia.com/cutlass). What cannot be described so raises `Misaligned`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Axis", "Factor", "Layer", "Misaligned", "View", "along", "split_axis", "whole"]


class Misaligned(Exception):
    """The result is no strided view of the leaf."""


class Factor(NamedTuple):
    """A walk of `size` steps along a leaf's axis, `step` elements each; axis None repeats one element."""

    axis: int | None
    size: int
    step: int


class Axis(NamedTuple):
    """One axis of a variable.

    size: of the variable. origin: where the leaf's elements begin in it; other leaves or constants
    may fill the rest. factors: outermost first; the product of their sizes is the length they fill.
    """

    size: int
    origin: int
    factors: tuple[Factor, ...]

    @property
    def length(self) -> int:
        return math.prod(f.size for f in self.factors)

    @property
    def full(self) -> bool:
        """Whether the leaf fills all of the axis."""
        return self.length == self.size


def repeated(size: int) -> Axis:
    """An axis along which nothing of the leaf changes, or nothing is known."""
    return Axis(size, 0, _tidy([Factor(None, size, 0)]))


def _tidy(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """Without factors of size 1, and with those joined that walk on where the outer one steps."""
    done: list[Factor] = []
    for f in factors:
        if f.size == 1:
            continue
        if done and done[-1].axis == f.axis and done[-1].step == f.step * f.size:
            done[-1] = Factor(f.axis, done[-1].size * f.size, f.step)
        else:
            done.append(f)
    return tuple(done)


def _cut(factors: tuple[Factor, ...], inner: int) -> tuple[tuple[Factor, ...], tuple[Factor, ...]]:
    """The factors as outer ones and inner ones of the given product."""
    outer, taken = list(factors), []
    while inner > 1:
        f = outer.pop()
        if inner % f.size == 0:
            taken.append(f)
            inner //= f.size
        elif f.size % inner == 0:
            outer.append(Factor(f.axis, f.size // inner, f.step * inner))
            taken.append(Factor(f.axis, inner, f.step))
            inner = 1
        else:
            raise Misaligned
    return tuple(outer), tuple(reversed(taken))


def split_axis(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """One axis as several, of the given sizes.

    >>> split_axis(Axis(6, 0, (Factor(1, 6, 1),)), (2, 3))
    [Axis(size=2, origin=0, factors=(Factor(axis=1, size=2, step=3),)),
     Axis(size=3, origin=0, factors=(Factor(axis=1, size=3, step=1),))]
    """
    found: list[Axis] = []
    for size in reversed(sizes[1:]):
        outer, offset = divmod(axis.origin, size)
        if offset == 0 and axis.length % size == 0:
            outside, inside = _cut(axis.factors, size)
            found.append(Axis(size, 0, inside))
            axis = Axis(axis.size // size, outer, outside)
        elif offset + axis.length <= size:
            found.append(Axis(size, offset, axis.factors))
            axis = Axis(axis.size // size, outer, ())
        else:
            raise Misaligned
    return [axis, *reversed(found)]


def merge_axes(axes: Sequence[Axis]) -> Axis:
    """Several neighbouring axes as one."""

    def pair(a: Axis, b: Axis) -> Axis:
        size = a.size * b.size
        if b.full:
            return Axis(size, a.origin * b.size, _tidy((*a.factors, *b.factors)))
        if a.length == 1:
            return Axis(size, a.origin * b.size + b.origin, b.factors)
        raise Misaligned

    return functools.reduce(pair, axes)


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """The smallest runs of axes of equal product before and after a reshape; nothing of size 1.

    >>> blocks((2, 6, 5), (4, 3, 5))
    [(range(0, 2), range(0, 2)), (range(2, 3), range(2, 3))]
    """
    found, i, j = [], 0, 0
    while i < len(before):
        start, other = i, j
        i, j = i + 1, j + 1
        have, want = before[start], after[other]
        while have != want:
            if have < want:
                have, i = have * before[i], i + 1
            else:
                want, j = want * after[j], j + 1
        found.append((range(start, i), range(other, j)))
    return found


def along(axes: Iterable[Axis]) -> tuple[int, ...]:
    """The leaf's axes that these walk along."""
    found = {f.axis for axis in axes for f in axis.factors}
    return tuple(sorted(a for a in found if a is not None))


class Layer(NamedTuple):
    """An axis that a scan has taken apart: the scan's path, and the axis as it was."""

    scan: str
    axis: Axis


@dataclasses.dataclass(frozen=True)
class View:
    """What a variable holds of one leaf.

    leaf: its name. shape: its shape. axes: one `Axis` for each axis of the variable. starts: the first
    index along each axis of the leaf. layers: axes that enclosing scans have taken apart, one layer an
    iteration, outermost first. indexed: axes of the leaf of which a loop's counter picks a slice. scattered: axes
    of which several indices are held, nobody knows which: a block that a counter picks, rows that constants pick.
    """

    leaf: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    starts: tuple[int, ...]
    layers: tuple[Layer, ...] = ()
    indexed: tuple[int, ...] = ()
    scattered: tuple[int, ...] = ()

    def axes_of(self, positions: Iterable[int]) -> tuple[int, ...]:
        """The leaf's axes that these axes of the variable walk along."""
        return along(self.axes[p] for p in positions)

    @property
    def layer_axes(self) -> tuple[int, ...]:
        """The leaf's axes of which each iteration of a scan or loop sees one slice."""
        return tuple(sorted({*along(layer.axis for layer in self.layers), *self.indexed}))

    @property
    def complete(self) -> bool:
        """Whether every element of the leaf is in the variable, over all iterations."""
        axes = (*self.axes, *(layer.axis for layer in self.layers))
        walked = [f for axis in axes for f in axis.factors if f.axis is not None]
        covered = math.prod(f.size for f in walked)
        return not self.indexed and not self.scattered and covered == math.prod(self.shape)

    def unknown(self, shape: Sequence[int]) -> View:
        """Something of this leaf, no more is known."""
        return dataclasses.replace(
            self, axes=tuple(map(repeated, shape)), starts=(0,) * len(self.shape), indexed=(), scattered=()
        )

    def pick(self, positions: Sequence[int | None], shape: Sequence[int]) -> View:
        """A variable whose axis i is axis `positions[i]` of this one; None, or a size of 1, is repeated."""
        axes = tuple(
            repeated(size) if p is None or self.axes[p].size != size else self.axes[p]
            for p, size in zip(positions, shape, strict=True)
        )
        return dataclasses.replace(self, axes=axes)

    def reshape(self, shape: Sequence[int]) -> View:
        """Raises `Misaligned` where a split or merge crosses the leaf's own axes."""
        if 0 in shape:
            raise Misaligned
        kept = [a for a in self.axes if a.size != 1]
        wide = [size for size in shape if size != 1]
        made: list[Axis] = []
        for old, new in blocks([a.size for a in kept], wide):
            made += split_axis(merge_axes([kept[i] for i in old]), [wide[i] for i in new])
        left = iter(made)
        return dataclasses.replace(
            self, axes=tuple(Axis(1, 0, ()) if size == 1 else next(left) for size in shape)
        )

    def reverse(self, positions: Sequence[int]) -> View:
        """The variable reversed along some of its axes."""
        axes, starts = list(self.axes), list(self.starts)
        for p in positions:
            size, origin, factors = axes[p]
            for f in factors:
                if f.axis is not None:
                    starts[f.axis] += (f.size - 1) * f.step
            turned = tuple(Factor(f.axis, f.size, -f.step) for f in factors)
            axes[p] = Axis(size, size - origin - axes[p].length, turned)
        return dataclasses.replace(self, axes=tuple(axes), starts=tuple(starts))

    def cut(self, position: int, start: int, limit: int, stride: int = 1) -> View | None:
        """The elements `start:limit:stride` along one axis; None if there are none of the leaf."""
        axis = self.axes[position]
        if (start, limit, stride) == (0, axis.size, 1):
            return self
        low = max(start, axis.origin) - axis.origin
        high = min(limit, axis.origin + axis.length) - axis.origin
        if low >= high:
            return None
        if stride != 1:
            if not axis.full or len(axis.factors) != 1:
                raise Misaligned
            count = -(-(limit - start) // stride)
            factors, moved = _range(axis.factors, start, limit)
            factors = _tidy([Factor(f.axis, count, f.step * stride) for f in factors])
            made = Axis(count, 0, factors)
        else:
            factors, moved = _range(axis.factors, low, high)
            made = Axis(limit - start, low + axis.origin - start, factors)
        starts = list(self.starts)
        for leaf_axis, by in moved:
            starts[leaf_axis] += by
        axes = (*self.axes[:position], made, *self.axes[position + 1 :])
        return dataclasses.replace(self, axes=axes, starts=tuple(starts))

    def shifted(self, position: int, low: int, size: int) -> View:
        """The variable inside a larger one, `low` elements from its beginning along one axis."""
        old = self.axes[position]
        axes = (*self.axes[:position], Axis(size, old.origin + low, old.factors), *self.axes[position + 1 :])
        return dataclasses.replace(self, axes=axes)

    def layer(self, scan: str) -> View:
        """What one iteration of the scan sees: without the first axis."""
        return dataclasses.replace(self, axes=self.axes[1:], layers=(*self.layers, Layer(scan, self.axes[0])))

    def counted(self, shape: Sequence[int]) -> View:
        """A slice of this shape, at a place that only a loop's counter knows."""
        moved = [p for p, size in enumerate(shape) if size != self.axes[p].size]
        axes = tuple(repeated(s) if p in moved else self.axes[p] for p, s in enumerate(shape))
        one, several = (
            self.axes_of(p for p in moved if (shape[p] == 1) is single) for single in (True, False)
        )
        return dataclasses.replace(self, axes=axes).lost(one, "indexed").lost(several, "scattered")

    def lost(self, axes: Iterable[int], how: str) -> View:
        """The same, "indexed" or "scattered" along more axes of the leaf."""
        return dataclasses.replace(self, **{how: tuple(sorted({*getattr(self, how), *axes}))})  # type: ignore[arg-type]


def _range(
    factors: tuple[Factor, ...], low: int, high: int
) -> tuple[tuple[Factor, ...], list[tuple[int, int]]]:
    """The elements `low:high` of a product of factors, and how far the leaf's axes have moved."""
    if not factors or (low, high) == (0, math.prod(f.size for f in factors)):
        return factors, []
    first, rest = factors[0], factors[1:]
    inner = math.prod(f.size for f in rest)
    moved = [] if first.axis is None else [(first.axis, low // inner * first.step)]
    if low % inner == 0 and high % inner == 0:
        return _tidy([Factor(first.axis, (high - low) // inner, first.step), *rest]), moved
    if low // inner != (high - 1) // inner:
        raise Misaligned
    inside, more = _range(rest, low % inner, (high - 1) % inner + 1)
    return inside, moved + more


def whole(leaf: str, shape: Sequence[int]) -> View:
    """A leaf as it is.

    >>> whole("w", (2, 6)).reshape((2, 2, 3)).axes_of([1, 2])
    (1,)
    """
    axes = tuple(Axis(size, 0, (Factor(i, size, 1),)) for i, size in enumerate(shape))
    return View(leaf, tuple(shape), axes, (0,) * len(shape))
