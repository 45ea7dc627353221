"""Spreads: how step sizes are shared out over a network's weights, the `spread` of `mz.entropy_constrained`.

mz.entropy_constrained(0.02, spread=mz.spreads.even())
mz.entropy_constrained(0.02, spread=mz.spreads.root_deviation())      # without data
mz.entropy_constrained(1e-3, spread=mz.spreads.water_filling())       # with importance= and calibrate=
"""

from modelzip_jax.quantization.spreads.by_curvature import by_importance, water_filling
from modelzip_jax.quantization.spreads.by_weights import even, root_deviation
from modelzip_jax.quantization.spreads.spread import RelativeSteps, Spread
from modelzip_jax.quantization.spreads.where_it_pays import paying

__all__ = ["RelativeSteps", "Spread", "by_importance", "even", "paying", "root_deviation", "water_filling"]
