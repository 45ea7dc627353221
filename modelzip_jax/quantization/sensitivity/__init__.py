"""Sensitivities: what the error of a leaf costs the network (`mz.sensitivity`), for `mz.mixed_precision`."""

from modelzip_jax.quantization.sensitivity.output_changes import OutputSensitivity, output_error, output_kl
from modelzip_jax.quantization.sensitivity.quadratic import (
    LayerSensitivity,
    LossSensitivity,
    WeightSensitivity,
    layer_error,
    loss_increase,
    squared_error,
)
from modelzip_jax.quantization.sensitivity.sensitivities import LeafCost, Sensitivity

__all__ = [
    "LayerSensitivity",
    "LeafCost",
    "LossSensitivity",
    "OutputSensitivity",
    "Sensitivity",
    "WeightSensitivity",
    "layer_error",
    "loss_increase",
    "output_error",
    "output_kl",
    "squared_error",
]
