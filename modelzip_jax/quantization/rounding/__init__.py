"""Rounding: which value of its grid each weight takes, the `rounding` of `mz.quantize`.

mz.quantize(4, rounding=mz.rounding.stochastic(seed=1))
mz.quantize(4, rounding=mz.rounding.error_feedback())      # with stats= or calibrate= of mz.compress
"""

from modelzip_jax.quantization.rounding.feedback import error_feedback
from modelzip_jax.quantization.rounding.plain import nearest, stochastic
from modelzip_jax.quantization.rounding.soft_bits import ada_round
from modelzip_jax.quantization.rounding.sparse_errors import half_quadratic
from modelzip_jax.quantization.rounding.strategy import Problem, Rounded, Rounding

__all__ = [
    "Problem",
    "Rounded",
    "Rounding",
    "ada_round",
    "error_feedback",
    "half_quadratic",
    "nearest",
    "stochastic",
]
