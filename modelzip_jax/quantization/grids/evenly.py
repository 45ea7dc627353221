"""Evenly spaced values."""

from __future__ import annotations

import dataclasses

import numpy as np

from modelzip_jax.given_values import as_flag
from modelzip_jax.quantization.grids.grid import Grid

__all__ = ["UniformGrid", "binary", "uniform"]


@dataclasses.dataclass(frozen=True)
class UniformGrid(Grid):
    """See `uniform` and `binary`. width: bits, if it has a number of its own.

    `mz.quantize` records it by its own options, `symmetric` and `bits`.
    """

    symmetric: bool
    width: int | None = None

    @property
    def bits(self) -> int | None:  # type: ignore[override]
        return self.width

    def levels(self, bits: int) -> np.ndarray:
        if self.symmetric and bits == 1:
            return np.array([-0.5, 0.5], np.float32)
        low = -(1 << (bits - 1)) if self.symmetric else 0
        return np.arange(low, low + (1 << bits), dtype=np.float32)


def uniform(symmetric: bool = True) -> UniformGrid:
    """Integers times a step, the grid of `mz.quantize` without another one.

    Args:
      symmetric: whether zero is the integer 0. If not, an integer zero point of each group's own is taken off.

    >>> uniform().levels(3).tolist()
    [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    """
    return UniformGrid(as_flag(symmetric, "symmetric"))


def binary() -> UniformGrid:
    """One bit: plus or minus the group's mean magnitude.

    Rastegari et al. 2016 (XNOR-Net), arXiv:1603.05279, eq. 6.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([[3.0], [-1.0]])}, mz.quantize(grid=binary()))["w"].ravel()
    Array([ 2., -2.], dtype=float32)
    """
    return UniformGrid(True, 1)
