"""Distillation: what a teacher knows, as losses, extra terms of anybody's training loop."""

from modelzip_jax.distillation.feature_matching import attention_transfer, flow, hint, similarity
from modelzip_jax.distillation.logits import (
    correlation,
    decoupled,
    smoothed_teacher,
    soft_targets,
    standardized,
)
from modelzip_jax.distillation.offline_logits import TopK, top_k_logits, top_k_soft_targets

__all__ = [
    "TopK",
    "attention_transfer",
    "correlation",
    "decoupled",
    "flow",
    "hint",
    "similarity",
    "smoothed_teacher",
    "soft_targets",
    "standardized",
    "top_k_logits",
    "top_k_soft_targets",
]
