"""Distillation: what a teacher knows, and the examples by which it is taught."""

from modelzip_jax.distillation.ensembles import ensemble
from modelzip_jax.distillation.generations import assistant_sizes, assistants, born_again
from modelzip_jax.distillation.moving_teachers import MovingTeacher, move_teacher, start_moving_teacher
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
from modelzip_jax.distillation.weak_labels import (
    WeakLabels,
    hide_labels,
    label_noise,
    pseudo_label,
    weighted_cross_entropy,
)

__all__ = [
    "Forgetting",
    "MovingTeacher",
    "SyntheticSet",
    "Teacher",
    "WeakLabels",
    "assistant_sizes",
    "assistants",
    "born_again",
    "cache_outputs",
    "cached_outputs",
    "cached_top_k",
    "condense",
    "covering_radius",
    "el2n",
    "ensemble",
    "forgetting_scores",
    "gradient_distance",
    "hardest",
    "herding",
    "hide_labels",
    "k_centre",
    "label_noise",
    "move_teacher",
    "pseudo_label",
    "record_forgetting",
    "start_forgetting",
    "start_moving_teacher",
    "weighted_cross_entropy",
]
