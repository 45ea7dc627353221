"""Rounding to integers times a row's and a column's step size, with no largest integer.

With u = (w / r) / c the code is q = sign(u) max(round(|u| - δ), 0), and the network computes with ŵ = (q r) c. Products
with reciprocals stand for the divisions, so that eager, jitted and packed code compute alike.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_views
from modelzip_jax.quantization.code_length import laplace_bits
from modelzip_jax.quantization.integers import LARGEST, Integers
from modelzip_jax.quantization.scaled import ScaledCodes

__all__ = ["ScaledLeaf"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledLeaf:
    """How a leaf is quantized. rows, columns: as of `ScaledCodes`, in the dtype of the latents; columns None for ones.

    shift: δ, scalar, 0 to below ½: what magnitudes lose before they are rounded, since smaller codes are shorter.
    """

    rows: jax.Array
    columns: jax.Array | None
    shift: jax.Array

    first, last = -LARGEST, LARGEST
    """The least and the largest code."""

    def fake(self, w: jax.Array) -> jax.Array:
        """What the network computes with; the gradient passes as it is."""
        return _straight_through(w, self.rows, self.columns, self.shift)

    def stored(self, w: Any) -> np.ndarray:
        """The codes, 1-D integers, on the host."""
        shift = self.shift
        parts = (w, self.rows, shift) if self.columns is None else (w, self.rows, shift, self.columns)
        seen = host_views(*parts)
        if seen is None:
            codes = _rounded(w, self.rows, self.columns, shift)
            return np.asarray(codes).astype(np.int32).reshape(-1)
        weights, rows, shift, *columns = seen
        one = weights.dtype.type(1)
        u = np.asarray(weights * (one / rows))
        if columns:
            u *= one / columns[0]
        if shift:
            u -= np.clip(u, -shift, shift)
        return np.rint(u, out=u).astype(np.int32).reshape(-1)

    def packed(self, w: Any, dtype: str) -> ScaledCodes:
        """The stored form."""
        columns = None if self.columns is None else self.columns.astype(jnp.bfloat16)
        return ScaledCodes(
            Integers.pack(self.stored(w)), self.rows.astype(jnp.bfloat16), columns, tuple(jnp.shape(w)), dtype
        )

    def steps(self, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Each weight's step size and δ: two arrays of the leaf's shape."""
        step = self.rows if self.columns is None else self.rows * self.columns
        return jnp.broadcast_to(step, shape), jnp.broadcast_to(self.shift, shape)

    def code_bits(self, w: jax.Array) -> jax.Array:
        """An estimate of what an entropy coder takes for each weight."""
        return laplace_bits(w / self.steps(w.shape)[0])

    def side_bits(self) -> float:
        """Bits of step sizes."""
        return 16.0 * (self.rows.size + (0 if self.columns is None else self.columns.size))

    def codes(self, w: jax.Array, step: jax.Array, zero: jax.Array) -> jax.Array:
        """The codes, int32, of weights in any arrangement; the steps, and `zero`, which is δ here, broadcast."""
        u = jnp.clip(w * (1.0 / step), -self.last, self.last)
        return jnp.round(_towards_zero(u, zero)).astype(jnp.int32)

    def values(self, codes: jax.Array, step: jax.Array, zero: jax.Array) -> jax.Array:
        """What codes stand for: the inverse of `codes`."""
        return codes.astype(step.dtype) * step


def _towards_zero(u: jax.Array, shift: jax.Array) -> jax.Array:
    """`u`, its magnitude less by δ."""
    return u - jnp.clip(u, -shift, shift)


def _rounded(w: jax.Array, rows: jax.Array, columns: jax.Array | None, shift: jax.Array) -> jax.Array:
    u = w * (1.0 / rows)
    if columns is not None:
        u = u * (1.0 / columns)
    q = jnp.round(_towards_zero(u, shift))
    # Rounding gives -0.0 to small negative weights; packed codes know one zero only.
    return jnp.where(q == 0, jnp.zeros_like(q), q)


@jax.custom_vjp
def _straight_through(
    w: jax.Array, rows: jax.Array, columns: jax.Array | None, shift: jax.Array
) -> jax.Array:
    values = _rounded(w, rows, columns, shift) * rows
    return values if columns is None else values * columns


_straight_through.defvjp(
    lambda w, rows, columns, shift: (_straight_through(w, rows, columns, shift), (rows, columns, shift)),
    lambda held, g: (g, *jax.tree.map(jnp.zeros_like, held)),
)
