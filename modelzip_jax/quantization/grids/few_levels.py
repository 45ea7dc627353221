"""Grids of two and three values."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.quantization.grids.grid import Grid
from modelzip_jax.recipe import recordable

__all__ = ["Ternary", "ternary"]


@recordable
@dataclasses.dataclass(frozen=True)
class Ternary(Grid):
    """See `ternary`."""

    bits = 2
    default_range = "mse"

    def levels(self, bits: int) -> np.ndarray:
        return np.array([-1, 0, 1], np.float32)

    def project(self, u: jax.Array, bits: int) -> jax.Array:
        half = np.float32(0.5)
        return (u >= half).astype(jnp.float32) - (u <= -half).astype(jnp.float32)


def ternary() -> Ternary:
    """-s, 0 and s: two bits in memory, at most log2 3 = 1.585 a weight in a file.

    The scale s is the one of least squared error, unless a `range` says otherwise: Li & Liu approximate it, with
    weights normally distributed, by the mean of those beyond 0.7 E|w|.

    Li et al. 2016 (ternary weight networks), arXiv:1605.04711, eq. 4.

    >>> import modelzip_jax as mz
    >>> grid = ternary()
    >>> found = mz.decoded({"w": jnp.array([[0.9], [-1.1], [0.1]])}, mz.quantize(grid=grid))["w"]
    >>> [round(float(x), 2) for x in found.ravel()]
    [0.99, -0.99, 0.0]
    """
    return Ternary()
