"""The exact k largest of many scores, by counting: no sort, no gather of the weights.

The search runs on the scores' bits, mapped to integers of the same order. A pass counts at three thresholds at
once: first around the wanted one by a small sample, then around where interpolation on the counts puts it, as far
to each side as it errs. So what is left between two thresholds falls to about its square root, and five passes find
one that keeps exactly k; a sort costs hundreds (docs/benchmarks.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.masking.counting import TOP, order_keys, total, totals
from modelzip_jax.meshes import is_sharded_in_type

__all__ = ["Kept", "keep_largest", "keep_largest_each"]

_SAMPLE = 4096
_NEAR = 1 << 16
"""A step of keys that is at most 1 % of a score."""
_SPREAD = 1.5
"""How many standard errors of an interpolation its outer thresholds are away."""
_FEW = 8
"""Keys of so small a number are told apart by thresholds less than one of them apart."""


class Kept(NamedTuple):
    """What `keep_largest` found.

    masks: boolean, of the arrays' shapes. threshold: uint32 scalar, the least key that was kept, or the one below
    it that is tied. passes: int32 scalar, how often the data was read to count.
    """

    masks: list[jax.Array]
    threshold: jax.Array
    passes: jax.Array


class _Data(NamedTuple):
    """Groups of arrays, each under a threshold of its own, and the pointwise function that scores them."""

    groups: list[list[jax.Array]]
    score: Callable[[jax.Array], jax.Array]

    def order(self) -> list[list[jax.Array]]:
        return [[order_keys(self.score(x)) for x in group] for group in self.groups]

    def sizes(self) -> list[int]:
        return [sum(x.size for x in group) for group in self.groups]


class _Search(NamedTuple):
    """`count(low) >= keep >= count(high)` in each group, where `count(t)` is the number of its keys >= t.

    All are `(groups,)`; keys are uint32, counts int32. before: how many keys were between the ends before the last
    pass.
    """

    low: jax.Array
    high: jax.Array
    at_low: jax.Array
    at_high: jax.Array
    passes: jax.Array
    before: jax.Array

    def unfinished(self, keep: jax.Array) -> jax.Array:
        return (self.at_low != keep) & (self.at_high != keep) & (self.high - self.low > 1)


def _counts(data: _Data, thresholds: jax.Array) -> jax.Array:
    """How many keys reach thresholds `(n, groups)`: int32 like them, from one pass over the data."""
    columns = []
    for g, keys in enumerate(data.order()):
        counts = [jnp.int32(0)] * len(thresholds)
        for key in keys:
            counts = list(map(jnp.add, counts, totals([key >= t[g] for t in thresholds])))
        columns.append(jnp.stack(counts))
    return jnp.stack(columns, axis=1)


def _probe(search: _Search, data: _Data, keep: jax.Array, thresholds: jax.Array) -> _Search:
    """Narrows the brackets by one pass over the data; thresholds outside them change nothing."""
    # The barrier keeps XLA from hoisting the keys out of the loop: a pass that recomputes them is as
    # fast, and a step whose scratch memory stays small is faster even when no refresh happens.
    groups, thresholds = jax.lax.optimization_barrier((data.groups, thresholds))
    low, high, at_low, at_high, passes, _ = search
    for threshold, found in zip(thresholds, _counts(data._replace(groups=groups), thresholds), strict=True):
        inside = (threshold > low) & (threshold < high)
        up, down = inside & (found >= keep), inside & (found <= keep)
        low, at_low = jnp.where(up, threshold, low), jnp.where(up, found, at_low)
        high, at_high = jnp.where(down, threshold, high), jnp.where(down, found, at_high)
    return _Search(low, high, at_low, at_high, passes + 1, search.at_low - search.at_high)


def _sample(arrays: list[jax.Array], score: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """About 4,096 keys, sorted, spread evenly over every axis of every array."""
    taken, size = [], sum(x.size for x in arrays)
    for x in arrays:
        stride = max(size // _SAMPLE, 1)
        index = []
        for axis, length in enumerate(x.shape):
            step = min(max(math.ceil(stride ** (1 / (x.ndim - axis))), 1), length)
            index.append(slice(step // 2, None, step))
            stride = max(stride // step, 1)
        taken.append(order_keys(score(x[tuple(index)])).reshape(-1))
    return jnp.sort(jnp.concatenate(taken))


def _around(sample: jax.Array, share: jax.Array) -> jax.Array:
    """`(3,)`: where by a sorted sample the threshold is that keeps a share, between two others that enclose it."""
    rank = (1.0 - share) * sample.size
    spread = 2.5 * jnp.sqrt(jnp.maximum(rank * (1.0 - rank / sample.size), 0.0)) + 2.0
    places = jnp.stack([rank - spread, rank, rank + spread])
    return sample[jnp.clip(places, 0, sample.size - 1).astype(jnp.int32)]


def _first_look(data: _Data, keep: jax.Array, near: jax.Array, start: _Search) -> jax.Array:
    """The thresholds of the first pass, uint32 `(3, groups)`: by samples, and where the last search ended."""
    beside = near[None] + jnp.array([[-_NEAR], [0], [_NEAR]]).astype(jnp.uint32)
    looks = jnp.where(near[None] > 0, beside, _next(start, keep))
    for g, (arrays, size) in enumerate(zip(data.groups, data.sizes(), strict=True)):
        if size > 4 * _SAMPLE and not any(is_sharded_in_type(x) for x in arrays):
            look = _around(_sample(arrays, data.score), keep[g].astype(jnp.float32) / size)
            looks = looks.at[:, g].set(look.at[1].set(jnp.where(near[g] > 0, near[g], look[1])))
    return looks


def _next(s: _Search, keep: jax.Array) -> jax.Array:
    """Three thresholds in each bracket, uint32 `(3, groups)`, around where its keys, if uniform, had the wanted one."""
    width, left = s.high - s.low, s.at_low - s.at_high
    above, below = (s.at_low - keep).astype(jnp.float32), (keep - s.at_high).astype(jnp.float32)
    error = jnp.sqrt(above * below / (above + below))
    apart = jnp.where(left < _FEW, 0.6, _SPREAD * error) / (above + below)
    # Interpolation fails where many keys are equal or far apart: divide the bracket itself until the counts fall again.
    stalled = (s.passes > 2) & (left > s.before // 2)
    middle = jnp.where(stalled, 0.5, above / (above + below))
    apart = jnp.where(stalled, 0.25, apart)
    shares = jnp.clip(jnp.stack([middle - apart, middle, middle + apart]), 0.0, 1.0 - 2.0**-24)
    inside = (shares * width.astype(jnp.float32)[None]).astype(jnp.uint32)
    return s.low[None] + jnp.clip(inside, 1, width[None] - 1)


def _search(data: _Data, keep: jax.Array, near: jax.Array) -> _Search:
    """All groups in one loop: how it narrows brackets is compiled once, not for each leaf of a network."""
    zeros = jnp.zeros_like(keep)
    size = jnp.array(data.sizes(), jnp.int32)
    start = _Search(jnp.zeros_like(near), jnp.full_like(near, TOP), size, zeros, zeros, zeros)
    first = _first_look(data, keep, near, start)

    def narrow(s: _Search) -> _Search:
        new = _probe(s, data, keep, jnp.where(s.passes == 0, first, _next(s, keep)))
        left = s.unfinished(keep)
        return jax.tree.map(lambda a, b: jnp.where(left, a, b), new, s)

    return jax.lax.while_loop(lambda s: jnp.any(s.unfinished(keep)), narrow, start)


def _before(cut: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Which elements have a C-order index below `cut` (uint32): a mask of `shape`.

    By row and column, as XLA would hoist one index array of the leaf's size out of the loop.
    """
    rows = shape or (1,)
    row = jnp.zeros((*rows[:-1], 1), jnp.uint32)
    for axis, length in enumerate(rows[:-1]):
        row = row * length + jax.lax.broadcasted_iota(jnp.uint32, row.shape, axis)
    column = jax.lax.broadcasted_iota(jnp.uint32, (*[1] * (len(rows) - 1), rows[-1]), len(rows) - 1)
    last_row, last_column = cut // rows[-1], cut % rows[-1]
    return ((row < last_row) | ((row == last_row) & (column < last_column))).reshape(shape)


def _cuts(data: _Data, ties: jax.Array, take: jax.Array) -> jax.Array:
    """Where in each group, by index in order of array, then C order, its first `take` keys of a value end.

    uint32 `(groups,)`, as are the values `ties`; bisects over the index. No pass where nothing is to be taken.
    """

    def halve(bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (low, high), groups = jax.lax.optimization_barrier((bracket, data.groups))
        middle = low + (high - low) // 2
        flags = _tied(data._replace(groups=groups), ties, middle)
        enough = jnp.stack([sum(map(total, group), jnp.int32(0)) for group in flags]) >= take
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    high = jnp.where(take > 0, jnp.array(data.sizes(), jnp.uint32), 0)
    return jax.lax.while_loop(lambda b: jnp.any(b[1] - b[0] > 1), halve, (jnp.zeros_like(high), high))[1]


def _tied(data: _Data, ties: jax.Array, cuts: jax.Array) -> list[list[jax.Array]]:
    """The keys of a value before a cut, as masks."""
    masks = []
    for keys, value, cut in zip(data.order(), ties, cuts, strict=True):
        begins = itertools.accumulate((key.size for key in keys), initial=0)
        each = (
            (key, jnp.maximum(cut, begin) - jnp.uint32(begin))
            for key, begin in zip(keys, begins, strict=False)
        )
        masks.append([(key == value) & _before(rest, key.shape) for key, rest in each])
    return masks


def keep_largest(
    arrays: list[jax.Array],
    keep: jax.Array,
    score: Callable[[jax.Array], jax.Array] = lambda x: x,
    near: jax.Array | None = None,
) -> Kept:
    """Masks of the `keep` largest scores over all arrays together, exactly that many.

    Equal scores at the threshold are kept in order of array, then C-order index.

    Args:
      arrays: float arrays of any shapes, fewer than 2**31 elements in all.
      keep: int32 scalar in [0, total], may be traced.
      score: a pointwise function of an array, computed anew in each pass instead of stored.
      near: the `threshold` of a search over similar scores, to start from; 0 for none. Changes no mask.

    Raises:
      TransformError: 2**31 scores or more under one threshold.

    >>> masks, *_ = keep_largest([jnp.array([1.0, 3.0]), jnp.array([[2.0, 2.0]])], jnp.int32(2))
    >>> masks
    [Array([False,  True], dtype=bool), Array([[ True, False]], dtype=bool)]
    """
    place = None if near is None else jnp.reshape(near, 1)
    masks, threshold, passes = keep_largest_each([arrays], jnp.reshape(keep, 1), score, place)
    return Kept(masks, threshold[0], passes)


def keep_largest_each(
    groups: list[list[jax.Array]],
    keep: jax.Array,
    score: Callable[[jax.Array], jax.Array] = lambda x: x,
    near: jax.Array | None = None,
) -> Kept:
    """`keep_largest` of several groups of arrays, searched in one loop.

    Args:
      groups: the arrays under each threshold. keep, near: `(groups,)`, of each.

    Returns:
      The masks of all groups' arrays in one list, the thresholds `(groups,)`, the passes of the longest search.

    >>> masks, *_ = keep_largest_each([[jnp.array([1.0, 3.0])], [jnp.array([5.0, 4.0])]], jnp.array([1, 1]))
    >>> masks
    [Array([False,  True], dtype=bool), Array([ True, False], dtype=bool)]
    """
    if any(sum(x.size for x in arrays) >= 1 << 31 for arrays in groups):
        raise TransformError(
            "one threshold over 2**31 weights or more is not supported: use allocation='uniform', or "
            "mz.partition to group the leaves"
        )
    near = jnp.zeros(len(groups), jnp.uint32) if near is None else near
    data = _Data([[x for x in arrays if x.size] for arrays in groups], score)
    search = _search(data, keep, near)
    above = jnp.where(search.at_low == keep, search.low, search.high)
    missing = jnp.where(search.at_low == keep, 0, keep - search.at_high)
    tied = _tied(data, above - 1, _cuts(data, above - 1, missing))
    found = iter([
        (key >= a) | t
        for keys, flags, a in zip(data.order(), tied, above, strict=True)
        for key, t in zip(keys, flags, strict=True)
    ])  # fmt: skip
    masks = [next(found) if x.size else jnp.zeros(x.shape, bool) for arrays in groups for x in arrays]
    return Kept(masks, above, jnp.max(search.passes, initial=0))
