"""Rounding: which value of its grid each weight takes, the `rounding` of `mz.quantize`.

mz.quantize(4, rounding=mz.rounding.stochastic(seed=1))
"""

from modelzip_jax.quantization.rounding.plain import nearest, stochastic
from modelzip_jax.quantization.rounding.strategy import Problem, Rounded, Rounding

__all__ = ["Problem", "Rounded", "Rounding", "nearest", "stochastic"]
