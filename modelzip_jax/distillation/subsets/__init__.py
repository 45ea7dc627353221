"""Which examples to train on: those that cover the data, that have its mean, or that are hard to learn."""

from modelzip_jax.distillation.subsets.by_score import hardest
from modelzip_jax.distillation.subsets.error_norms import el2n
from modelzip_jax.distillation.subsets.farthest_first import covering_radius, k_centre
from modelzip_jax.distillation.subsets.forgetting import (
    Forgetting,
    forgetting_scores,
    record_forgetting,
    start_forgetting,
)
from modelzip_jax.distillation.subsets.mean_matching import herding

__all__ = [
    "Forgetting",
    "covering_radius",
    "el2n",
    "forgetting_scores",
    "hardest",
    "herding",
    "k_centre",
    "record_forgetting",
    "start_forgetting",
]
