"""k-centre: examples that no other one is far from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.distillation.array_checks import as_numbers
from modelzip_jax.distillation.subsets.class_by_class import choose_greedily, feature_rows
from modelzip_jax.errors import DistillationError

__all__ = ["covering_radius", "k_centre"]

_ROWS = 8192
"""Rows whose distances to all candidates are in memory at once."""

_CANDIDATES = 64
"""Farthest examples among which the next centres are sought before all distances are brought up to date."""

_CHOSEN = -1.0
"""Stands for the distance of what cannot be chosen any more."""


def k_centre(
    features: Any, size: float | int, labels: Any = None, *, pool: Sequence[int] | np.ndarray = ()
) -> np.ndarray:
    """Chooses centres by going, each time, to the example that is farthest from all centres so far.

        u = argmax_i min_{j in s} |φ(x_i) - φ(x_j)|,    s = s ∪ {u}

    Sener & Savarese 2018 (https://arxiv.org/abs/1708.00489, algorithm 1). The largest distance of an example to its
    nearest centre, `covering_radius`, is at most twice the least possible one (Gonzalez 1985). Outliers are chosen
    early: that is what the criterion asks for.

    Distances only shrink. So the next centres are those of the 64 farthest examples alone, as long as they are
    farther than all others were; then all distances are renewed by one matrix product. The result is that of going
    one by one, to rounding, with a fraction of the passes over the features.

    Args:
      features: floats `(n, ...)`, such as a teacher's last hidden layer.
      size: a float in (0, 1] is a fraction of the examples, an int their number.
      labels: integers `(n,)`, at least 0; each class gets its share and covers itself. None to cover all together.
      pool: indices of examples that are centres already, such as the labelled ones; they are not chosen again.
        Without any, the first centre is the example nearest to the mean (of its class).

    Returns:
      Indices int32 `(size,)` in the order of choice (class after class, with labels): the beginning is a smaller
      subset.

    Raises:
      DataError: the size is neither a fraction nor a number of examples there are.
      DistillationError, NonFiniteError: features or labels of a wrong shape, a pool with other indices, more asked
        for than the pool leaves; NaN or infinite features.

    >>> points = np.array([[0.0], [1.0], [2.0], [7.0], [8.0]])
    >>> k_centre(points, 2), k_centre(points, 2, pool=[4])
    (array([2, 4], dtype=int32), array([0, 2], dtype=int32))
    """
    pool = np.asarray(as_numbers(pool, "k_centre: pool"))
    rows = feature_rows(features)
    rows = rows - rows.mean(axis=0)  # Distances by products lose what the mean's square has in digits.
    distances = np.full(len(rows), np.inf, np.float32)
    if pool.ndim != 1 or len(pool):
        centres = _checked_pool(pool, len(rows))
        distances = _distances_to(rows, rows[centres])
        distances[centres] = _CHOSEN
    chosen = choose_greedily(_farthest, rows, distances, _CHOSEN, size, labels)
    if np.isin(chosen, pool).any() or len(np.unique(chosen)) < len(chosen):
        raise DistillationError(f"size={size} is more than the pool of {len(pool)} leaves to choose from")
    return chosen


def covering_radius(features: Any, chosen: Sequence[int] | np.ndarray) -> float:
    """The largest distance of an example to the nearest chosen one: max_i min_{j in s} |φ(x_i) - φ(x_j)|.

    Args:
      features: floats `(n, ...)`. chosen: at least one index.

    Raises:
      DistillationError, NonFiniteError: as for `k_centre`.

    >>> covering_radius(np.array([[0.0], [1.0], [2.0], [7.0], [8.0]]), [1, 4])
    1.0
    """
    rows = feature_rows(features)
    rows = rows - rows.mean(axis=0)
    return float(np.sqrt(np.max(_distances_to(rows, rows[_checked_pool(chosen, len(rows))]))))


class _Cover(NamedTuple):
    """order: int32, the centres so far, `count` of them. distances: squared, of each row to the nearest."""

    order: jax.Array
    count: jax.Array
    distances: jax.Array


@functools.partial(jax.jit, static_argnums=2)
def _farthest(features: jax.Array, distances: jax.Array, count: int) -> jax.Array:
    width = min(_CANDIDATES, len(features))
    present = (distances >= 0.0)[:, None]
    features = features - jnp.sum(features, axis=0, where=present) / jnp.maximum(jnp.sum(present), 1)
    blocks = _blocked(features)
    norms = jnp.sum(jnp.square(features), axis=1)

    # Where nothing is covered yet, all distances are infinite: the middle comes first.
    middle = jnp.argmin(jnp.where(distances == jnp.inf, norms, jnp.inf))
    first = jnp.where(jnp.max(distances) == jnp.inf, middle, jnp.argmax(distances)).astype(jnp.int32)
    cover = _Cover(jnp.full(count, first), jnp.int32(1), distances)

    def renewed(cover: _Cover, centres: jax.Array, used: jax.Array) -> _Cover:
        nearest = _nearest(blocks, features[centres], used)[: len(features)]
        nearest = jnp.minimum(cover.distances, nearest)
        at = jnp.where(used, centres, len(features))
        return cover._replace(distances=nearest.at[at].set(_CHOSEN, mode="drop"))

    def more(cover: _Cover) -> _Cover:
        farthest, candidates = jax.lax.top_k(cover.distances, min(width + 1, len(features)))
        # No example outside can be farther than this, now or later.
        bound = farthest[width] if width < len(features) else jnp.float32(-jnp.inf)
        candidates = candidates[:width].astype(jnp.int32)
        between = _squared(features[candidates], features[candidates])

        def next_one(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            order, chosen, near, used = carry
            best = jnp.argmax(near)
            near = jnp.minimum(near, between[best]).at[best].set(_CHOSEN)
            return order.at[chosen].set(candidates[best]), chosen + 1, near, used.at[best].set(True)

        def certain(carry: tuple[jax.Array, ...]) -> jax.Array:
            _, chosen, near, used = carry
            return (chosen < count) & ((jnp.max(near) > bound) | ~jnp.any(used))

        start = cover.order, cover.count, farthest[:width], jnp.zeros(width, bool)
        order, chosen, _, used = jax.lax.while_loop(certain, next_one, start)
        return renewed(cover._replace(order=order, count=chosen), candidates, used)

    cover = renewed(cover, first[None], jnp.ones(1, bool))
    return jax.lax.while_loop(lambda cover: cover.count < count, more, cover).order


@jax.jit
def _within(blocks: jax.Array, centres: jax.Array) -> jax.Array:
    return _nearest(blocks, centres, jnp.ones(len(centres), bool))


def _distances_to(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distance of each row to the nearest of any number of centres."""
    blocks, nearest = _blocked(jnp.asarray(rows)), np.full(len(rows), np.inf, np.float32)
    for start in range(0, len(centres), _CANDIDATES):
        part = centres[np.minimum(np.arange(start, start + _CANDIDATES), len(centres) - 1)]
        nearest = np.minimum(nearest, np.asarray(_within(blocks, jnp.asarray(part)))[: len(rows)])
    return nearest


def _blocked(features: jax.Array) -> jax.Array:
    """Rows in blocks of one size, the last filled up: a loop over them copies nothing."""
    rows = min(_ROWS, len(features))
    filled = jnp.pad(features, ((0, -len(features) % rows), (0, 0)))
    return filled.reshape(-1, rows, features.shape[1])


def _nearest(blocks: jax.Array, centres: jax.Array, used: jax.Array) -> jax.Array:
    """Squared distance of each row to the nearest of the centres that are used."""

    def of_block(block: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(used, _squared(block, centres), jnp.inf), axis=1)

    return jax.lax.map(of_block, blocks).reshape(-1)


def _squared(a: jax.Array, b: jax.Array) -> jax.Array:
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(jnp.square(a), axis=1)[:, None] + jnp.sum(jnp.square(b), axis=1)
    return jnp.maximum(norms - 2.0 * products, 0.0)


def _checked_pool(pool: Sequence[int] | np.ndarray, examples: int) -> np.ndarray:
    indices = np.asarray(pool)
    if indices.ndim != 1 or not len(indices) or not np.issubdtype(indices.dtype, np.integer):
        raise DistillationError(
            f"chosen examples are given by a list of indices, not {indices.dtype} {indices.shape}"
        )
    if indices.min() < 0 or indices.max() >= examples:
        raise DistillationError(f"chosen examples must be indices from 0 to {examples - 1:,}")
    return indices
