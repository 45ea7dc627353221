"""Ranges: how far the codes of a group of weights reach, the `range` of `mz.quantize`.

mz.quantize(4, range=mz.ranges.percentile(99.9))
"""

from modelzip_jax.quantization.ranges.extremes import fixed, min_max, moving_average, percentile
from modelzip_jax.quantization.ranges.range import Fit, Range
from modelzip_jax.quantization.ranges.searched import kl_divergence, least_squares

__all__ = [
    "Fit",
    "Range",
    "fixed",
    "kl_divergence",
    "least_squares",
    "min_max",
    "moving_average",
    "percentile",
]
