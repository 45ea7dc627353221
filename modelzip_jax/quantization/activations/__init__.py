"""Quantized activations: how the inputs of a model's products are rounded, the `how` of `quantize_activations`.

model = mz.rewrites.quantize_activations(apply_fn, mz.activations.dynamic())

how = mz.activations.static(range=mz.ranges.percentile(99.9))         # numbers of its own for each product:
scales = mz.activations.calibrate(apply_fn, how, params, batches)
model = mz.rewrites.quantize_activations(apply_fn, how, scales)
"""

from modelzip_jax.quantization.activations.calibrated_steps import static
from modelzip_jax.quantization.activations.calibration import calibrate
from modelzip_jax.quantization.activations.few_values import binary, dorefa, ternary
from modelzip_jax.quantization.activations.learned_limits import learned_step, pact
from modelzip_jax.quantization.activations.operand import ActivationQuantizer, Coded, Seen
from modelzip_jax.quantization.activations.steps_at_hand import dynamic, dynamic_range

__all__ = [
    "ActivationQuantizer",
    "Coded",
    "Seen",
    "binary",
    "calibrate",
    "dorefa",
    "dynamic",
    "dynamic_range",
    "learned_step",
    "pact",
    "static",
    "ternary",
]
