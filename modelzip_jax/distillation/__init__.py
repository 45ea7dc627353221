"""Distillation: what a teacher knows, as losses, critics, balances and data: pure functions for anybody's loop."""

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
from modelzip_jax.distillation.contrast import (
    ContrastMemory,
    contrastive,
    in_batch_contrastive,
    init_contrast_memory,
)
from modelzip_jax.distillation.critics import Critic, CriticOutput
from modelzip_jax.distillation.discriminators import discriminator
from modelzip_jax.distillation.ensembles import ensemble
from modelzip_jax.distillation.feature_matching import attention_transfer, flow, hint, similarity
from modelzip_jax.distillation.generations import assistant_sizes, assistants, born_again
from modelzip_jax.distillation.information import corrected_donsker_varadhan, donsker_varadhan, info_nce
from modelzip_jax.distillation.layer_features import features
from modelzip_jax.distillation.logits import (
    correlation,
    decoupled,
    smoothed_teacher,
    soft_targets,
    standardized,
)
from modelzip_jax.distillation.loss_rates import LossRatesState, dynamic_weight_average
from modelzip_jax.distillation.min_max import MinMaxGame, min_max_game
from modelzip_jax.distillation.min_max_state import CriticState, MinMaxState, StudentOutput
from modelzip_jax.distillation.moving_teachers import MovingTeacher, move_teacher, start_moving_teacher
from modelzip_jax.distillation.norm_balancing import (
    GradNormState,
    balanced_gradients,
    grad_norm,
    gradient_norms,
)
from modelzip_jax.distillation.offline_logits import TopK, top_k_logits, top_k_soft_targets
from modelzip_jax.distillation.perceptrons import init_perceptron, perceptron
from modelzip_jax.distillation.projectors import (
    init_orthogonal_projector,
    init_projector,
    orthogonal_matrix,
    project,
    project_orthogonally,
    standardize_features,
    whiten,
)
from modelzip_jax.distillation.relations import correlation_congruence, relational_angle, relational_distance
from modelzip_jax.distillation.review import hierarchical_context, init_review, reviewed
from modelzip_jax.distillation.subsets import (
    Forgetting,
    covering_radius,
    el2n,
    forgetting_scores,
    hardest,
    herding,
    k_centre,
    record_forgetting,
    start_forgetting,
)
from modelzip_jax.distillation.synthetic import SyntheticSet, condense, gradient_distance
from modelzip_jax.distillation.teacher_cache import cache_outputs, cached_outputs, cached_top_k
from modelzip_jax.distillation.teachers import Teacher
from modelzip_jax.distillation.uncertainty import UncertaintyState, uncertainty_weighting
from modelzip_jax.distillation.variational import init_variance, learned_variance, variational_information
from modelzip_jax.distillation.weak_labels import (
    WeakLabels,
    hide_labels,
    label_noise,
    pseudo_label,
    weighted_cross_entropy,
)

__all__ = [
    "Balancer",
    "CollapseWarning",
    "ContrastMemory",
    "Critic",
    "CriticOutput",
    "CriticState",
    "Forgetting",
    "GradNormState",
    "LossRatesState",
    "MinMaxGame",
    "MinMaxState",
    "MovingTeacher",
    "StudentOutput",
    "SyntheticSet",
    "Teacher",
    "TopK",
    "UncertaintyState",
    "WeakLabels",
    "adversarial_loss",
    "assistant_sizes",
    "assistants",
    "attention_transfer",
    "balanced_gradients",
    "born_again",
    "cache_outputs",
    "cached_outputs",
    "cached_top_k",
    "check_collapse",
    "condense",
    "contrastive",
    "corrected_donsker_varadhan",
    "correlation",
    "correlation_congruence",
    "covering_radius",
    "decoupled",
    "discriminator",
    "discriminator_auc",
    "discriminator_loss",
    "donsker_varadhan",
    "donsker_varadhan_critic",
    "dynamic_weight_average",
    "el2n",
    "ensemble",
    "features",
    "fixed_weights",
    "flow",
    "forgetting_scores",
    "grad_norm",
    "gradient_distance",
    "gradient_norms",
    "hardest",
    "herding",
    "hide_labels",
    "hierarchical_context",
    "hint",
    "in_batch_contrastive",
    "info_nce",
    "info_nce_critic",
    "init_contrast_memory",
    "init_orthogonal_projector",
    "init_perceptron",
    "init_projector",
    "init_review",
    "init_variance",
    "k_centre",
    "label_noise",
    "learned_variance",
    "min_max_game",
    "move_teacher",
    "orthogonal_matrix",
    "perceptron",
    "project",
    "project_orthogonally",
    "pseudo_label",
    "record_forgetting",
    "relational_angle",
    "relational_distance",
    "reviewed",
    "similarity",
    "smoothed_teacher",
    "soft_targets",
    "standardize_features",
    "standardized",
    "start_forgetting",
    "start_moving_teacher",
    "top_k_logits",
    "top_k_soft_targets",
    "uncertainty_weighting",
    "variational_critic",
    "variational_information",
    "weight_penalty",
    "weighted_cross_entropy",
    "weighted_sum",
    "whiten",
]
