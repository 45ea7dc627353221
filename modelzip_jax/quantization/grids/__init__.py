"""Grids: which values codes stand for, the `grid` of `mz.quantize`.

mz.quantize(4, grid=mz.grids.nf4(), granularity="group", group_size=64)
mz.quantize(grid=mz.grids.mx("e2m1"))
"""

from modelzip_jax.quantization.grids.evenly import binary, uniform
from modelzip_jax.quantization.grids.few_levels import ternary
from modelzip_jax.quantization.grids.fitted_levels import quantile, weighted_entropy
from modelzip_jax.quantization.grids.grid import Grid
from modelzip_jax.quantization.grids.minifloats import fp8, mx, nvfp4
from modelzip_jax.quantization.grids.normal_floats import nf4
from modelzip_jax.quantization.grids.powers import halving, power_of_two

__all__ = [
    "Grid",
    "binary",
    "fp8",
    "halving",
    "mx",
    "nf4",
    "nvfp4",
    "power_of_two",
    "quantile",
    "ternary",
    "uniform",
    "weighted_entropy",
]
