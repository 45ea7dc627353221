"""The steps of `surgeon` on one matrix: factor, choose, update, block by block of inputs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.factoring import damped, inverse_factor
from modelzip_jax.masking.structures import NOfM, Structure
from modelzip_jax.masking.threshold import keep_largest

__all__ = ["Padding", "prune_stack"]


@dataclasses.dataclass(frozen=True, eq=False)
class Padding:
    """Where inputs stand once they are padded to whole groups of m and whole blocks.

    place: each input's column. real: bool `(blocks * block,)`. group: m, or 0 for single weights. keep: how
    many weights of each output each group of m keeps (the last group of an axis may be shorter).
    """

    place: np.ndarray
    real: np.ndarray
    block: int
    blocks: int
    group: int
    keep: np.ndarray

    def _key(self) -> tuple[Any, ...]:
        return self.place.tobytes(), self.block, self.blocks, self.group, self.keep.tobytes()

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Padding) and self._key() == other._key()

    @staticmethod
    def of(count: int, inner: int, structure: Structure, block: int) -> Padding:
        """For `count` inputs whose last axis has the length `inner`."""
        n, m = (structure.n, structure.m) if isinstance(structure, NOfM) else (0, 1)
        padded = -(-inner // m) * m
        place = np.arange(count) // inner * padded + np.arange(count) % inner
        width = count // inner * padded
        block = min(max(block // m, 1) * m, width)
        blocks = -(-width // block)
        real = np.zeros(blocks * block, bool)
        real[place] = True
        keep = -(-n * real.reshape(-1, m).sum(1) // m)
        return Padding(place, real, block, blocks, m if n else 0, keep.astype(np.int32))


@functools.partial(jax.jit, static_argnames="padding")
def prune_stack(
    stack: jax.Array, grams: jax.Array, quota: jax.Array, damping: jax.Array, padding: Padding
) -> tuple[jax.Array, jax.Array]:
    """`_prune` of each layer in turn, so that only one layer's factor is in memory.

    Args:
      stack: float32 `(layers, outputs, inputs)`. grams: `(layers, inputs, inputs)`.
      quota: int32 `(layers, blocks)`, how many single weights go in each block; unread for n of m.
      damping: as for `surgeon`.

    Returns:
      Updated weights, zero where they went, and a boolean mask of those that stay.
    """

    def prune(layer: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w, gram, gone = layer
        return _prune(w, gram, gone, damping, padding)

    return jax.lax.map(prune, (stack, grams, quota))


def _factor(gram: jax.Array, damping: jax.Array, padding: Padding) -> jax.Array:
    """`inverse_factor` of the damped H; columns that are padding stand apart."""
    h = jnp.eye(padding.real.size).at[np.ix_(padding.place, padding.place)].set(damped(gram, damping))
    return inverse_factor(h)


def _prune(
    w: jax.Array, gram: jax.Array, quota: jax.Array, damping: jax.Array, padding: Padding
) -> tuple[jax.Array, jax.Array]:
    """Algorithm 1 on one matrix `(outputs, inputs)`: updated weights, and which stay."""
    u = _factor(gram, damping, padding)
    width, block = padding.real.size, padding.block
    w = jnp.zeros((w.shape[0], width)).at[:, padding.place].set(w)
    real = jnp.asarray(padding.real)

    def over_block(b: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w, kept = carry
        start = b * block
        own = jax.lax.dynamic_slice_in_dim(w, start, block, axis=1)
        here = jax.lax.dynamic_slice_in_dim(real, start, block)
        rows = jax.lax.dynamic_slice_in_dim(u, start, block)
        square = jax.lax.dynamic_slice_in_dim(rows, start, block, axis=1)
        own, stays, errors = _block(own, square, here, quota[b], b, padding)
        # Later blocks take all of this block's updates in one product.
        later = jnp.where(jnp.arange(width) >= start + block, rows, 0.0)
        w = jax.lax.dynamic_update_slice_in_dim(w, own, start, axis=1)
        w = w - jnp.matmul(errors, later, precision=jax.lax.Precision.HIGHEST)
        return w, jax.lax.dynamic_update_slice_in_dim(kept, stays, start, axis=1)

    start = (w, jnp.ones(w.shape, bool))
    w, kept = jax.lax.fori_loop(0, padding.blocks, over_block, start)
    w, kept = w[:, padding.place], kept[:, padding.place]
    return jnp.where(kept, w, 0.0), kept


def _block(
    w: jax.Array, u: jax.Array, real: jax.Array, quota: jax.Array, index: jax.Array, padding: Padding
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One block's weights, which of them stay, and the errors (w - ŵ) / U_qq that later blocks make up for."""
    saliency = jnp.diagonal(u) ** 2
    if padding.group:
        kept = jnp.ones(w.shape, bool)
    else:
        scores = jnp.where(real, w**2 / saliency, jnp.inf)
        kept = keep_largest([scores], scores.size - quota)[0][0]

    def group(w: jax.Array, kept: jax.Array, column: jax.Array) -> jax.Array:
        """n of m: chosen when the first of them is reached, as those before have changed them by then."""
        m = padding.group
        of = lambda x: jax.lax.dynamic_slice_in_dim(x, column, m, axis=-1)  # noqa: E731
        scores = jnp.where(of(real), of(w) ** 2 / of(saliency), -jnp.inf)
        mine, theirs = scores[:, :, None], scores[:, None, :]
        earlier = jnp.arange(m)[:, None] > jnp.arange(m)
        rank = jnp.sum((theirs > mine) | ((theirs == mine) & earlier), axis=-1)
        keep = jnp.asarray(padding.keep)[(index * padding.block + column) // m]
        return jax.lax.dynamic_update_slice_in_dim(kept, rank < keep, column, axis=1)

    def over_column(
        c: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        w, kept, errors = carry
        if padding.group:
            kept = jax.lax.cond(c % padding.group == 0, group, lambda w, kept, c: kept, w, kept, c)
        error = jnp.where(kept[:, c], 0.0, w[:, c]) / u[c, c]
        return w - error[:, None] * u[c], kept, errors.at[:, c].set(error)

    return jax.lax.fori_loop(0, padding.block, over_column, (w, kept, jnp.zeros(w.shape)))
