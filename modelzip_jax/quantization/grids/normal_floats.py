"""Levels at quantiles of the normal density."""

from __future__ import annotations

import dataclasses
import statistics

import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.quantization.grids.grid import Grid
from modelzip_jax.recipe import recordable

__all__ = ["NormalFloat", "nf4"]

_NORMAL = statistics.NormalDist()


@recordable
@dataclasses.dataclass(frozen=True)
class NormalFloat(Grid):
    """See `nf4`; with other numbers of bits the same construction."""

    default_bits = 4

    def levels(self, bits: int) -> np.ndarray:
        if bits < 2:
            raise TransformError("normal floats need 2 bits: one of both signs beside zero")
        half = 1 << (bits - 1)
        # Half way between the outermost quantiles of 2^b levels and of one more, as QLoRA's code takes it.
        outer = 1.0 - (1.0 / (4 * half) + 1.0 / (2 * (2 * half - 1))) / 2.0
        above = [_NORMAL.inv_cdf(p) for p in np.linspace(outer, 0.5, half + 1)[:-1]]
        below = [-_NORMAL.inv_cdf(p) for p in np.linspace(outer, 0.5, half)[:-1]]
        levels = np.sort([*below, 0.0, *above])
        return (levels / levels[-1]).astype(np.float32)


def nf4() -> NormalFloat:
    """NormalFloat: as many weights a level, were they normally distributed; 0, ± 1 among its levels.

    8 levels above zero and 7 below at 4 bits. The scale is a group's largest magnitude; meant for groups of 64.

    Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, appendix E.

    >>> [round(float(x), 3) for x in nf4().levels(4)[:8]]
    [-1.0, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0.0]
    """
    return NormalFloat()
