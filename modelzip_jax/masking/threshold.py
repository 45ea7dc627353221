"""The exact k largest of many scores, by counting: no sort, no gather of the weights.

The search runs on the scores' bits, mapped to integers of the same order. A pass counts at three thresholds at
once: first around the wanted one by a small sample, then around where interpolation on the counts puts it, as far
to each side as it errs. So what is left between two thresholds falls to about its square root, and five passes find
one that keeps exactly k; a sort costs hundreds (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num, UInt32

from modelzip_jax.errors import TransformError
from modelzip_jax.meshes import is_sharded_in_type

__all__ = ["Kept", "count_kept", "keep_largest", "order_keys"]

_SAMPLE = 4096
TOP = 0xFFFFFFFF
DIGITS = 10_000_000
_NEAR = 1 << 16
"""A step of keys that is at most 1 % of a score."""
_SPREAD = 1.5
"""How many standard errors of an interpolation its outer thresholds are away."""
_FEW = 8
"""Keys of so small a number are told apart by thresholds less than one of them apart."""


def count_kept(size: int, sparsity: jax.Array | float) -> jax.Array:
    """How many of `size` weights stay: `size - round(sparsity * size)`, counted in integers.

    The sparsity is read to seven decimals, so that a float32 0.9 means nine tenths of 50 million
    to the last weight; half a weight rounds towards pruning.

    Args:
      size: number of weights, below 2**31.
      sparsity: in [0, 1], may be traced.

    Returns:
      int32 scalar.

    >>> int(count_kept(50_000_000, jnp.float32(0.9)))
    5000000
    """
    parts = jnp.round(jnp.asarray(sparsity, jnp.float32) * DIGITS).astype(jnp.uint32)
    whole, rest = divmod(size, DIGITS)
    quotient, remainder = jnp.uint32(0), jnp.uint32(0)
    for place in (1_000_000, 10_000, 100, 1):
        digit = parts // place % 100
        carried = remainder * 100 + rest * digit
        quotient, remainder = quotient * 100 + carried // DIGITS, carried % DIGITS
    pruned = whole * parts + quotient + (remainder >= DIGITS // 2).astype(jnp.uint32)
    return jnp.int32(size) - pruned.astype(jnp.int32)


def order_keys(scores: Num[jax.Array, "*shape"]) -> UInt32[jax.Array, "*shape"]:
    """uint32 keys in the order of the scores as float32; -0.0 and 0.0 are equal, NaN is largest.

    >>> order_keys(jnp.array([1.0, -1.0, 0.0])).argsort()
    Array([1, 2, 0], dtype=int32)
    """
    scores = scores.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    # Compared as bits: devices that flush subnormals would take them all for zeros.
    bits = jnp.where(bits == jnp.uint32(1 << 31), jnp.uint32(0), bits)
    keys = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    return jnp.where(jnp.isnan(scores), jnp.uint32(TOP - 1), keys)


class Kept(NamedTuple):
    """What `keep_largest` found.

    masks: boolean, of the arrays' shapes. threshold: uint32 scalar, the least key that was kept, or the one below
    it that is tied. passes: int32 scalar, how often the data was read to count.
    """

    masks: list[jax.Array]
    threshold: jax.Array
    passes: jax.Array


class _Data(NamedTuple):
    """Arrays and the pointwise function that scores them."""

    arrays: list[jax.Array]
    score: Callable[[jax.Array], jax.Array]

    def order(self) -> list[jax.Array]:
        return [order_keys(self.score(x)) for x in self.arrays]

    def size(self) -> int:
        return sum(x.size for x in self.arrays)


class _Search(NamedTuple):
    """`count(low) >= keep >= count(high)`, where `count(t)` is the number of keys >= t.

    before: int32, how many keys were between the ends before the last pass.
    """

    low: jax.Array
    high: jax.Array
    at_low: jax.Array
    at_high: jax.Array
    passes: jax.Array
    before: jax.Array


def _total(flags: jax.Array) -> jax.Array:
    """The number of true flags, int32, exact.

    XLA:CPU vectorizes float sums but not integer ones (half the time), and float32 counts are exact
    below 2**24: so leading axes are summed in float where they are shorter, the rest in integers.
    """
    if flags.size < 1 << 24:
        return jnp.sum(flags, dtype=jnp.float32).astype(jnp.int32)
    if flags.ndim < 2 or math.prod(flags.shape[:-1]) >= 1 << 24:
        return jnp.sum(flags, dtype=jnp.int32)
    columns = jnp.sum(flags, axis=tuple(range(flags.ndim - 1)), dtype=jnp.float32)
    return jnp.sum(columns.astype(jnp.int32), dtype=jnp.int32)


def _totals(flags: list[jax.Array]) -> list[jax.Array]:
    """The number of true flags in each of several arrays of one shape.

    By one reduction of several operands, which XLA:CPU vectorizes: it does not vectorize an integer sum alone, so that
    three counts cost a fourth of one. Of sharded arrays it would gather every operand's part sums one by one,
    where a sum alone is one all-reduce.
    """
    if jax.device_count() > 1:
        return [_total(x) for x in flags]
    numbers, zeros = [x.astype(jnp.int32) for x in flags], [jnp.int32(0)] * len(flags)
    return jax.lax.reduce(
        numbers, zeros, lambda a, b: jax.tree.map(jnp.add, a, b), tuple(range(flags[0].ndim))
    )


def _counts(data: _Data, thresholds: jax.Array) -> list[jax.Array]:
    """The number of keys that reach each threshold, int32 scalars, from one pass over the data."""
    counts = [jnp.int32(0)] * len(thresholds)
    for key in data.order():
        counts = list(map(jnp.add, counts, _totals([key >= t for t in thresholds])))
    return counts


def _probe(search: _Search, data: _Data, keep: jax.Array, thresholds: jax.Array) -> _Search:
    """Narrows the bracket by one pass over the data; thresholds outside it change nothing."""
    # The barrier keeps XLA from hoisting the keys out of the loop: a pass that recomputes them is as
    # fast, and a step whose scratch memory stays small is faster even when no refresh happens.
    arrays, thresholds = jax.lax.optimization_barrier((data.arrays, thresholds))
    low, high, at_low, at_high, passes, _ = search
    for threshold, found in zip(thresholds, _counts(data._replace(arrays=arrays), thresholds), strict=True):
        inside = (threshold > low) & (threshold < high)
        up, down = inside & (found >= keep), inside & (found <= keep)
        low, at_low = jnp.where(up, threshold, low), jnp.where(up, found, at_low)
        high, at_high = jnp.where(down, threshold, high), jnp.where(down, found, at_high)
    return _Search(low, high, at_low, at_high, passes + 1, search.at_low - search.at_high)


def _sample(data: _Data) -> jax.Array:
    """About 4,096 keys, sorted, spread evenly over every axis of every array."""
    taken = []
    for x in data.arrays:
        stride = max(data.size() // _SAMPLE, 1)
        index = []
        for axis, length in enumerate(x.shape):
            step = min(max(math.ceil(stride ** (1 / (x.ndim - axis))), 1), length)
            index.append(slice(step // 2, None, step))
            stride = max(stride // step, 1)
        taken.append(order_keys(data.score(x[tuple(index)])).reshape(-1))
    return jnp.sort(jnp.concatenate(taken))


class _Guide(NamedTuple):
    """What a sample says of the order of the keys: where to look first.

    sample: uint32 `(s,)`, sorted; empty if there is none. total: the number of keys.
    """

    sample: jax.Array
    total: int

    def around(self, keep: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Where the wanted threshold should be, and two others with it between them, all but surely."""
        rank = (1.0 - keep.astype(jnp.float32) / self.total) * self.sample.size
        spread = 2.5 * jnp.sqrt(jnp.maximum(rank * (1.0 - rank / self.sample.size), 0.0)) + 2.0
        return self._at(rank - spread), self._at(rank), self._at(rank + spread)

    def _at(self, place: jax.Array) -> jax.Array:
        return self.sample[jnp.clip(place, 0, self.sample.size - 1).astype(jnp.int32)]


def _guide(data: _Data) -> _Guide | None:
    if data.size() <= 4 * _SAMPLE or any(is_sharded_in_type(x) for x in data.arrays):
        return None
    return _Guide(_sample(data), data.size())


def _next(s: _Search, keep: jax.Array) -> jax.Array:
    """Three thresholds within the bracket, uint32 `(3,)`, around where its keys, if uniform, had the wanted one."""
    width, left = s.high - s.low, s.at_low - s.at_high
    above, below = (s.at_low - keep).astype(jnp.float32), (keep - s.at_high).astype(jnp.float32)
    error = jnp.sqrt(above * below / (above + below))
    apart = jnp.where(left < _FEW, 0.6, _SPREAD * error) / (above + below)
    # Interpolation fails where many keys are equal or far apart: divide the bracket itself until the counts fall again.
    stalled = (s.passes > 2) & (left > s.before // 2)
    middle = jnp.where(stalled, 0.5, above / (above + below))
    apart = jnp.where(stalled, 0.25, apart)
    shares = jnp.clip(jnp.stack([middle - apart, middle, middle + apart]), 0.0, 1.0 - 2.0**-24)
    return s.low + jnp.clip((shares * width.astype(jnp.float32)).astype(jnp.uint32), 1, width - 1)


def _search(data: _Data, keep: jax.Array, near: jax.Array) -> _Search:
    zero = jnp.int32(0)
    start = _Search(jnp.uint32(0), jnp.uint32(TOP), jnp.int32(data.size()), zero, zero, zero)
    warm = near > 0
    if (guide := _guide(data)) is not None:
        low, middle, high = guide.around(keep)
        first = jnp.stack([low, jnp.where(warm, near, middle), high])
    else:
        first = jnp.where(warm, near + jnp.array([-_NEAR, 0, _NEAR]).astype(jnp.uint32), _next(start, keep))

    def unfinished(s: _Search) -> jax.Array:
        return (s.at_low != keep) & (s.at_high != keep) & (s.high - s.low > 1)

    def narrow(s: _Search) -> _Search:
        return _probe(s, data, keep, jnp.where(s.passes == 0, first, _next(s, keep)))

    return jax.lax.while_loop(unfinished, narrow, start)


def _before(cut: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Which elements have a C-order index below `cut` (uint32): a mask of `shape`.

    By row and column, as XLA would hoist one index array of the leaf's size out of the loop.
    """
    shape = shape or (1,)
    row = jnp.zeros((*shape[:-1], 1), jnp.uint32)
    for axis, length in enumerate(shape[:-1]):
        row = row * length + jax.lax.broadcasted_iota(jnp.uint32, row.shape, axis)
    column = jax.lax.broadcasted_iota(jnp.uint32, (*[1] * (len(shape) - 1), shape[-1]), len(shape) - 1)
    last_row, last_column = cut // shape[-1], cut % shape[-1]
    return (row < last_row) | ((row == last_row) & (column < last_column))


def _first(tied: jax.Array, take: jax.Array) -> jax.Array:
    """The first `take` true elements in C order, as a mask; bisects over the index."""
    if tied.size == 0:
        return tied

    def halve(bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = low + (high - low) // 2
        enough = _total(tied & _before(middle, tied.shape).reshape(tied.shape)) >= take
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    high = jnp.where(take > 0, jnp.uint32(tied.size), jnp.uint32(0))
    _, cut = jax.lax.while_loop(lambda b: b[1] - b[0] > 1, halve, (jnp.uint32(0), high))
    return tied & _before(cut, tied.shape).reshape(tied.shape)


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
    if sum(x.size for x in arrays) >= 1 << 31:
        raise TransformError(
            "one threshold over 2**31 weights or more is not supported: use allocation='uniform', or "
            "mz.partition to group the leaves"
        )
    search = _search(
        _Data([x for x in arrays if x.size], score), keep, jnp.uint32(0) if near is None else near
    )
    above = jnp.where(search.at_low == keep, search.low, search.high)
    missing = jnp.where(search.at_low == keep, 0, keep - search.at_high)

    def distinct(arrays: list[jax.Array]) -> list[jax.Array]:
        return [key >= above for key in _Data(arrays, score).order()]

    def with_ties(arrays: list[jax.Array]) -> list[jax.Array]:
        masks, left = [], missing
        for key in _Data(arrays, score).order():
            tied = key == above - 1
            take = jnp.minimum(left, _total(tied))
            masks.append((key >= above) | _first(tied, take))
            left = left - take
        return masks

    return Kept(jax.lax.cond(missing > 0, with_ties, distinct, arrays), above, search.passes)
