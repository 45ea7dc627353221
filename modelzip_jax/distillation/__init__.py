"""Distillation: losses, critics and balances, as plain functions of arrays."""

from modelzip_jax.distillation.adversarial import (
    adversarial_loss,
    discriminator_auc,
    discriminator_loss,
    weight_penalty,
)
from modelzip_jax.distillation.balancing import Balancer, fixed_weights, weighted_sum
from modelzip_jax.distillation.bound_critics import (
    donsker_varadhan_critic,
    info_nce_critic,
    variational_critic,
)
from modelzip_jax.distillation.collapse import CollapseWarning, check_collapse
from modelzip_jax.distillation.critics import Critic, CriticOutput
from modelzip_jax.distillation.discriminators import discriminator
from modelzip_jax.distillation.information import corrected_donsker_varadhan, donsker_varadhan, info_nce
from modelzip_jax.distillation.loss_rates import LossRatesState, dynamic_weight_average
from modelzip_jax.distillation.min_max import MinMaxGame, min_max_game
from modelzip_jax.distillation.min_max_state import CriticState, MinMaxState, StudentOutput
from modelzip_jax.distillation.norm_balancing import (
    GradNormState,
    balanced_gradients,
    grad_norm,
    gradient_norms,
)
from modelzip_jax.distillation.perceptrons import init_perceptron, perceptron
from modelzip_jax.distillation.uncertainty import UncertaintyState, uncertainty_weighting
from modelzip_jax.distillation.variational import init_variance, learned_variance, variational_information

__all__ = [
    "Balancer",
    "CollapseWarning",
    "Critic",
    "CriticOutput",
    "CriticState",
    "GradNormState",
    "LossRatesState",
    "MinMaxGame",
    "MinMaxState",
    "StudentOutput",
    "UncertaintyState",
    "adversarial_loss",
    "balanced_gradients",
    "check_collapse",
    "corrected_donsker_varadhan",
    "discriminator",
    "discriminator_auc",
    "discriminator_loss",
    "donsker_varadhan",
    "donsker_varadhan_critic",
    "dynamic_weight_average",
    "fixed_weights",
    "grad_norm",
    "gradient_norms",
    "info_nce",
    "info_nce_critic",
    "init_perceptron",
    "init_variance",
    "learned_variance",
    "min_max_game",
    "perceptron",
    "uncertainty_weighting",
    "variational_critic",
    "variational_information",
    "weight_penalty",
    "weighted_sum",
]
