"""The program of `error_feedback` where errors of outputs make up for each other, too: tile by tile.

With H = G ⊗ A the cost of errors E, `(outputs, inputs)`, is

    tr(G E A Eᵀ) = Σ_ij d_i f_j (R E Sᵀ)_ij²,   G = Rᵀ diag(d) R,   A = Sᵀ diag(f) S,

R and S lower triangular with a unit diagonal: each weight is rounded to the code nearest to what makes its term zero,
given the errors of rows and columns before it. Tseng et al. 2025 (YAQA), arXiv:2505.22988, section 3.2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["rounded_two_sided", "unit_lower_factor"]

_TILE = 64


class _Entries(NamedTuple):
    """Weights, steps, zero points and what is kept, `(rows, columns)` each."""

    w: jax.Array
    step: jax.Array
    zero: jax.Array
    kept: jax.Array


class _Side(NamedTuple):
    """Which index comes when, and the strictly lower part of the triangular factor, in that order and padded."""

    place: jax.Array
    factor: jax.Array


def rounded_two_sided(
    leaf: Any, entries: tuple[jax.Array, ...], outputs: jax.Array, inputs: jax.Array, order: bool
) -> jax.Array:
    """The values of one matrix's codes, `(outputs, inputs)`.

    Args:
      leaf: has `codes` and `values`, as of `Problem`. entries: weights, steps, zero points, and booleans of those that
        are kept. outputs, inputs: G and A, damped and positive definite. order: those of the largest diagonal first.
    """
    rows, columns = _side(outputs, order), _side(inputs, order)
    count = entries[0].shape
    held = _Entries(*(_arranged(x, rows, columns) for x in entries))
    blocks = len(columns.factor) // _TILE

    def over_tile(t: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        errors, seen, values = carry
        i, j = (t // blocks) * _TILE, (t % blocks) * _TILE
        own = _Entries(*(jax.lax.dynamic_slice(x, (i, j), (_TILE, _TILE)) for x in held))
        s = jax.lax.dynamic_slice_in_dim(columns.factor, j, _TILE)
        r = jax.lax.dynamic_slice_in_dim(rows.factor, i, _TILE)
        # What is not rounded yet has no errors: sums over all are sums over what came before.
        along = _product(jax.lax.dynamic_slice_in_dim(errors, i, _TILE), s.T)
        down = _product(r, jax.lax.dynamic_slice_in_dim(seen, j, _TILE, axis=1))
        corners = (jax.lax.dynamic_slice_in_dim(x, a, _TILE, axis=1) for x, a in ((r, i), (s, j)))
        made = _rounded_tile(leaf, own, along, down, *corners)
        return tuple(
            jax.lax.dynamic_update_slice(x, new, (i, j))
            for x, new in zip((errors, seen, values), made, strict=True)
        )

    nothing = jnp.zeros_like(held.w)
    tiles = blocks * (len(rows.factor) // _TILE)
    *_, values = jax.lax.fori_loop(0, tiles, over_tile, (nothing, nothing, nothing))
    # The nearest code of NaN is a number: what a factor that is none has made of weights must not pass for some.
    known = jnp.all(jnp.isfinite(rows.factor)) & jnp.all(jnp.isfinite(columns.factor))
    values = jnp.where(known, values[: count[0], : count[1]], jnp.nan)
    return jnp.zeros(count, values.dtype).at[rows.place[:, None], columns.place[None, :]].set(values)


def _side(h: jax.Array, order: bool) -> _Side:
    place = jnp.argsort(-jnp.diagonal(h)) if order else jnp.arange(len(h))
    factor = unit_lower_factor(h[place][:, place])
    width = -len(h) % _TILE
    return _Side(place, jnp.pad(factor, ((0, width), (0, width))))


def unit_lower_factor(h: jax.Array) -> jax.Array:
    """What is below the unit diagonal of R in h = Rᵀ diag(d) R."""
    upper = jnp.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    return (upper / jnp.diagonal(upper)[None]).T - jnp.eye(len(h), dtype=h.dtype)


def _arranged(x: jax.Array, rows: _Side, columns: _Side) -> jax.Array:
    x = x[rows.place][:, columns.place]
    padding = [(0, len(side.factor) - n) for side, n in zip((rows, columns), x.shape, strict=True)]
    return jnp.pad(x, padding, mode="edge" if x.dtype != bool else "constant")


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _rounded_tile(
    leaf: Any, own: _Entries, along: jax.Array, down: jax.Array, r: jax.Array, s: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """E, E Sᵀ and values of a tile: entries of a diagonal depend on none of each other and are rounded together."""
    size = len(own.w)
    index = jnp.arange(size)

    def over_diagonal(t: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        errors, seen, values = carry
        j = t - index
        inside = (j >= 0) & (j < size)
        j = jnp.where(inside, j, 0)
        # Row i of these is what entry (i, j_i) is made of.
        before = along[index, j] + jnp.sum(errors * s[j], axis=1)
        target = own.w[index, j] + before + down[index, j] + jnp.sum(r * seen.T[j], axis=1)
        step, zero = own.step[index, j], own.zero[index, j]
        near = leaf.values(leaf.codes(target, step, zero), step, zero)
        value = jnp.where(own.kept[index, j], near, 0.0)
        error = own.w[index, j] - value
        at = (index, jnp.where(inside, j, size))
        return tuple(
            x.at[at].set(new, mode="drop")
            for x, new in ((errors, error), (seen, error + before), (values, value))
        )

    nothing = jnp.zeros_like(own.w)
    return jax.lax.fori_loop(0, 2 * size - 1, over_diagonal, (nothing, nothing, nothing))  # type: ignore[no-any-return]
