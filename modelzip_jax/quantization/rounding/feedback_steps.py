"""The program of `error_feedback` on one leaf: factor, round a column, pass its error on."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.factoring import damped, inverse_factor
from modelzip_jax.quantization.fits import LevelLeaf, UniformLeaf
from modelzip_jax.quantization.rounding.strategy import Problem
from modelzip_jax.quantization.rounding.two_sided_lines import rounded_by_lines
from modelzip_jax.quantization.rounding.two_sided_steps import rounded_two_sided
from modelzip_jax.quantization.scaled_leaf import ScaledLeaf
from modelzip_jax.quantization.trellis.leaf import TrellisLeaf
from modelzip_jax.trace.measures.layer_matrices import Layout

__all__ = ["Matrices", "fed_back"]

_TOGETHER = 1 << 22
"""Numbers in the Gram matrices of layers that are taken at once; of larger ones one factor is in memory at a time."""


class _Columns(NamedTuple):
    """Weights, steps, zero points and what is kept: `(inputs, outputs)` each, a row being a column of the matrix."""

    w: jax.Array
    step: jax.Array
    zero: jax.Array
    kept: jax.Array


class Matrices(NamedTuple):
    """What errors cost. gram: H, `(layers, inputs, inputs)`. outputs: G, `(layers, outputs, outputs)`, or None.

    damping, outputs_damping: of each, as shares of the means of their diagonals.
    """

    gram: jax.Array
    outputs: jax.Array | None
    damping: jax.Array
    outputs_damping: jax.Array


@functools.partial(jax.jit, static_argnames=("layout", "block", "order"))
def fed_back(
    leaf: UniformLeaf | LevelLeaf | ScaledLeaf, w: jax.Array, support: jax.Array | None, matrices: Matrices,
    layout: Layout, block: int, order: bool,
) -> jax.Array:  # fmt: skip
    """The rounded weights of a leaf, in its shape; one program for all leaves of a shape, whatever their values.

    Args:
      leaf, w, support: as of `Problem`. layout: of the leaf. block, order: as of `error_feedback`.
    """
    step, zero = Problem("", w, leaf).steps()
    kept = jnp.ones(w.shape, bool) if support is None else support
    parts = (jnp.where(kept, w, 0.0), step, zero, kept)
    columns = _Columns(*(jnp.swapaxes(layout.stack(x), 1, 2) for x in parts))
    dtype = jnp.promote_types(w.dtype, jnp.float32)
    gram, outputs, damping, outputs_damping = jax.tree.map(lambda x: x.astype(dtype), matrices)

    def one(layer: tuple[_Columns, jax.Array, jax.Array | None]) -> jax.Array:
        columns, gram, outputs = layer
        if outputs is None or len(outputs) == 1:
            return _rounded_matrix(leaf, columns, gram, damping, block, order)
        entries = tuple(x.T for x in columns)
        both = damped(outputs, outputs_damping), damped(gram, damping)
        if isinstance(leaf, TrellisLeaf):
            return rounded_by_lines(leaf, entries, *both, order).T
        return rounded_two_sided(leaf, entries, *both, order).T

    layers = columns, gram, outputs
    if len(gram) == 1:
        new = one(jax.tree.map(lambda x: x[0], layers))[None]
    else:
        new = jax.vmap(lambda *x: one(x))(*layers) if gram.size <= _TOGETHER else jax.lax.map(one, layers)
    return layout.leaf(jnp.swapaxes(new, 1, 2), w.shape).astype(w.dtype)


def _rounded_matrix(
    leaf: Any, columns: _Columns, gram: jax.Array, damping: jax.Array, block: int, order: bool
) -> jax.Array:
    """One matrix, `(inputs, outputs)`."""
    count, outputs = columns.w.shape
    block = min(block, count)
    blocks = -(-count // block)
    width = blocks * block
    place = jnp.argsort(-jnp.diagonal(gram)) if order else jnp.arange(count)
    h = damped(gram, damping)[place][:, place]
    # Padded inputs stand apart: nothing goes into them or comes from them.
    u = inverse_factor(jnp.eye(width, dtype=h.dtype).at[:count, :count].set(h))
    held = _Columns(*(_padded(x[place], width) for x in columns))

    def over_block(b: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w, rounded = carry
        start = b * block
        rows = jax.lax.dynamic_slice_in_dim(u, start, block)
        square = jax.lax.dynamic_slice_in_dim(rows, start, block, axis=1)
        own = _Columns(*(jax.lax.dynamic_slice_in_dim(x, start, block) for x in held._replace(w=w)))
        values, errors = _rounded_block(leaf, own, square)
        # Later blocks take all of this block's errors in one product.
        later = jnp.where(jnp.arange(width) >= start + block, rows, 0.0)
        w = w - jnp.matmul(later.T, errors, precision=jax.lax.Precision.HIGHEST)
        return w, jax.lax.dynamic_update_slice_in_dim(rounded, values, start, axis=0)

    _, rounded = jax.lax.fori_loop(0, blocks, over_block, (held.w, jnp.zeros_like(held.w)))
    # The nearest code of NaN is a number: what a factor that is none has made of weights must not pass for some.
    rounded = jnp.where(jnp.all(jnp.isfinite(u)), rounded, jnp.nan)
    return jnp.zeros((count, outputs), rounded.dtype).at[place].set(rounded[:count])


def _padded(x: jax.Array, width: int) -> jax.Array:
    return jnp.pad(x, ((0, width - len(x)), (0, 0)), mode="edge" if x.dtype != bool else "constant")


def _rounded_block(leaf: Any, own: _Columns, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A block's values, and the errors (w - ŵ) / U_qq that later blocks make up for."""

    def over_column(c: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        values, errors = carry
        # Errors are gathered when a column's turn comes: they are zero yet from it on.
        w = own.w[c] - jnp.matmul(u[:, c], errors, precision=jax.lax.Precision.HIGHEST)
        near = leaf.values(leaf.codes(w, own.step[c], own.zero[c]), own.step[c], own.zero[c])
        value = jnp.where(own.kept[c], near, 0.0)
        return values.at[c].set(value), errors.at[c].set((w - value) / u[c, c])

    nothing = jnp.zeros_like(own.w)
    return jax.lax.fori_loop(0, len(u), over_column, (nothing, nothing))
