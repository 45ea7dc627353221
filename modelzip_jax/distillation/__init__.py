"""Distillation: what a teacher knows, as losses, extra terms of anybody's training loop."""

from modelzip_jax.distillation.contrast import (
    ContrastMemory,
    contrastive,
    in_batch_contrastive,
    init_contrast_memory,
)
from modelzip_jax.distillation.feature_matching import attention_transfer, flow, hint, similarity
from modelzip_jax.distillation.layer_features import features
from modelzip_jax.distillation.logits import (
    correlation,
    decoupled,
    smoothed_teacher,
    soft_targets,
    standardized,
)
from modelzip_jax.distillation.offline_logits import TopK, top_k_logits, top_k_soft_targets
from modelzip_jax.distillation.projectors import (
    init_orthogonal_projector,
    init_projector,
    orthogonal_matrix,
    project,
    project_orthogonally,
    standardize_features,
    whiten,
)
from modelzip_jax.distillation.relations import (
    correlation_congruence,
    relational_angle,
    relational_distance,
)
from modelzip_jax.distillation.review import hierarchical_context, init_review, reviewed

__all__ = [
    "ContrastMemory",
    "TopK",
    "attention_transfer",
    "contrastive",
    "correlation",
    "correlation_congruence",
    "decoupled",
    "features",
    "flow",
    "hierarchical_context",
    "hint",
    "in_batch_contrastive",
    "init_contrast_memory",
    "init_orthogonal_projector",
    "init_projector",
    "init_review",
    "orthogonal_matrix",
    "project",
    "project_orthogonally",
    "relational_angle",
    "relational_distance",
    "reviewed",
    "similarity",
    "smoothed_teacher",
    "soft_targets",
    "standardize_features",
    "standardized",
    "top_k_logits",
    "top_k_soft_targets",
    "whiten",
]
