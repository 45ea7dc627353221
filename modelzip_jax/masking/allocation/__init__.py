"""Allocations: how pruning is shared out among leaves (`mz.allocation`)."""

from modelzip_jax.masking.allocation.allocator import Allocation, Groups, Part
from modelzip_jax.masking.allocation.budget import AtMost, at_most
from modelzip_jax.masking.allocation.by_activity import ByActivation, by_activation
from modelzip_jax.masking.allocation.by_field import ByReceptiveField, by_receptive_field
from modelzip_jax.masking.allocation.shares import Erk, Global, Layers, Uniform, erk, layers, resolve

__all__ = [
    "Allocation",
    "AtMost",
    "ByActivation",
    "ByReceptiveField",
    "Erk",
    "Global",
    "Groups",
    "Layers",
    "Part",
    "Uniform",
    "at_most",
    "by_activation",
    "by_receptive_field",
    "erk",
    "layers",
    "resolve",
]
