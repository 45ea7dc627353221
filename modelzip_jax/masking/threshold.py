"""The exact k largest of many scores, by counting: no sort, no gather of the weights.

The search runs on the scores' bits, mapped to integers of the same order. A pass counts at three thresholds at
once: first around the wanted one by a small sample, then around where interpolation on the counts puts it, as far
to each side as it errs. So what is left between two thresholds falls to about its square root, and five passes find
one that keeps exactly k; a sort costs hundreds (docs/benchmarks.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.by_shape import unstack
from modelzip_jax.errors import TransformError
from modelzip_jax.masking.counting import TOP, order_keys, totals
from modelzip_jax.masking.grouped_keys import GroupedKeys, KeyStack, beside_alike, numbers_at

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


def _counts(data: GroupedKeys, thresholds: jax.Array) -> list[jax.Array]:
    """How many keys reach each of the thresholds `(n, groups)`: int32, from one pass over the data."""
    pairs = zip(data.stacks, data.keys(), strict=True)
    return data.by_group([totals([keys >= one.each(t) for t in thresholds]) for one, keys in pairs])


def _probe(search: _Search, data: GroupedKeys, keep: jax.Array, thresholds: jax.Array) -> _Search:
    """Narrows the brackets by one pass over the data; thresholds outside them change nothing."""
    # The barrier keeps XLA from hoisting the keys out of the loop: a pass that recomputes them is as
    # fast, and a step whose scratch memory stays small is faster even when no refresh happens.
    data, thresholds = data.behind_barrier(thresholds)
    low, high, at_low, at_high, passes, _ = search
    for threshold, found in zip(thresholds, _counts(data, thresholds), strict=True):
        inside = (threshold > low) & (threshold < high)
        up, down = inside & (found >= keep), inside & (found <= keep)
        low, at_low = jnp.where(up, threshold, low), jnp.where(up, found, at_low)
        high, at_high = jnp.where(down, threshold, high), jnp.where(down, found, at_high)
    return _Search(low, high, at_low, at_high, passes + 1, search.at_low - search.at_high)


def _sample(one: KeyStack, size: int, score: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Keys of each array, `(arrays, n)`, spread evenly over its axes: about 4,096 of a group of so many."""
    stride = max(size // _SAMPLE, 1)
    index, shape = [slice(None)], one.values.shape[1:]
    for axis, length in enumerate(shape):
        step = min(max(math.ceil(stride ** (1 / (len(shape) - axis))), 1), length)
        index.append(slice(step // 2, None, step))
        stride = max(stride // step, 1)
    return order_keys(score(one.values[tuple(index)])).reshape(len(one.order), -1)


def _around(sample: jax.Array, share: jax.Array) -> jax.Array:
    """Where by samples `(k, n)` the thresholds `(3, k)` are that keep a share, between two others that enclose them."""
    size = sample.shape[1]
    rank = (1.0 - share) * size
    spread = 2.5 * jnp.sqrt(jnp.maximum(rank * (1.0 - rank / size), 0.0)) + 2.0
    places = jnp.clip(jnp.stack([rank - spread, rank, rank + spread], 1), 0, size - 1).astype(jnp.int32)
    return jnp.take_along_axis(jnp.sort(sample), places, axis=1).T


def _first_look(data: GroupedKeys, keep: jax.Array, near: jax.Array, start: _Search) -> jax.Array:
    """The thresholds of the first pass, uint32 `(3, groups)`: by samples, and where the last search ended."""
    beside = near[None] + jnp.array([[-_NEAR], [0], [_NEAR]]).astype(jnp.uint32)
    looks = [jnp.where(near[None] > 0, beside, _next(start, keep))]
    place = np.arange(len(data.sizes))
    for groups, stacks in data.larger(4 * _SAMPLE):
        size = data.sizes[groups[0]]
        rows = jnp.concatenate(
            [_sample(s, size, data.score).reshape(len(groups), -1) for s in stacks], axis=1
        )
        there = numbers_at(near, groups)
        look = _around(rows, numbers_at(keep, groups).astype(jnp.float32) / size)
        place[groups] = sum(x.shape[1] for x in looks) + np.arange(len(groups))
        looks.append(look.at[1].set(jnp.where(there > 0, there, look[1])))
    return jnp.concatenate(looks, axis=1)[:, place] if len(looks) > 1 else looks[0]


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


def _search(data: GroupedKeys, keep: jax.Array, near: jax.Array) -> _Search:
    """All groups in one loop: how it narrows brackets is compiled once, not for each leaf of a network."""
    zeros = jnp.zeros_like(keep)
    size = jnp.array(data.sizes, jnp.int32)
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


def _cuts(data: GroupedKeys, ties: jax.Array, take: jax.Array) -> jax.Array:
    """Where in each group, by index in order of array, then C order, its first `take` keys of a value end.

    uint32 `(groups,)`, as are the values `ties`; bisects over the index. No pass where nothing is to be taken.
    """

    def halve(bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        anew, (low, high) = data.behind_barrier(bracket)
        middle = low + (high - low) // 2
        enough = data.by_group([totals([flags]) for flags in _tied(anew, ties, middle)])[0] >= take
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    high = jnp.where(take > 0, jnp.array(data.sizes, jnp.uint32), 0)
    return jax.lax.while_loop(lambda b: jnp.any(b[1] - b[0] > 1), halve, (jnp.zeros_like(high), high))[1]


def _tied(data: GroupedKeys, ties: jax.Array, cuts: jax.Array) -> list[jax.Array]:
    """The keys of a value before a cut, as masks of each stack."""
    masks = []
    for one, keys in zip(data.stacks, data.keys(), strict=True):
        rest = jnp.maximum(numbers_at(cuts, one.groups), one.begins) - one.begins
        before = jax.vmap(functools.partial(_before, shape=keys.shape[1:]))(rest)
        masks.append((keys == one.each(ties)) & before)
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
    # Groups that are alike beside each other, as the arrays of a stack are: their numbers then are slices.
    order = beside_alike(groups)
    back = np.argsort(order)
    sorted_masks, thresholds, passes = _keep_each(
        [groups[g] for g in order], numbers_at(keep, order), score, numbers_at(near, order)
    )
    masks = [mask for g in back for mask in sorted_masks[g]]
    return Kept(masks, numbers_at(thresholds, back), passes)


def _keep_each(
    groups: list[list[jax.Array]], keep: jax.Array, score: Callable[[jax.Array], jax.Array], near: jax.Array
) -> tuple[list[list[jax.Array]], jax.Array, jax.Array]:
    """The masks of each group's arrays, the thresholds, and the passes."""
    masks = [[jnp.zeros(x.shape, bool) for x in arrays] for arrays in groups]
    filled = [(g, place) for g, arrays in enumerate(groups) for place, x in enumerate(arrays) if x.size]
    data = GroupedKeys.of([[x for x in arrays if x.size] for arrays in groups], score)
    if not data.stacks:
        return masks, near, jnp.int32(0)
    search = _search(data, keep, near)
    above = jnp.where(search.at_low == keep, search.low, search.high)
    missing = jnp.where(search.at_low == keep, 0, keep - search.at_high)
    tied = _tied(data, above - 1, _cuts(data, above - 1, missing))
    for one, keys, flags in zip(data.stacks, data.keys(), tied, strict=True):
        for at, mask in zip(one.order, unstack((keys >= one.each(above)) | flags), strict=True):
            g, place = filled[at]
            masks[g][place] = mask
    return masks, above, jnp.max(search.passes)
