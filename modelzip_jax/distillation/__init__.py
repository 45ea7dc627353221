"""Distillation: losses, critics and balances, as plain functions of arrays."""

from modelzip_jax.distillation.balancing import Balancer, fixed_weights, weighted_sum
from modelzip_jax.distillation.gradient_norms import (
    GradNormState,
    balanced_gradients,
    grad_norm,
    gradient_norms,
)
from modelzip_jax.distillation.loss_rates import LossRatesState, dynamic_weight_average
from modelzip_jax.distillation.uncertainty import UncertaintyState, uncertainty_weighting

__all__ = [
    "Balancer",
    "GradNormState",
    "LossRatesState",
    "UncertaintyState",
    "balanced_gradients",
    "dynamic_weight_average",
    "fixed_weights",
    "grad_norm",
    "gradient_norms",
    "uncertainty_weighting",
    "weighted_sum",
]
