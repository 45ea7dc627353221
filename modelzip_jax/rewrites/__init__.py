"""A network into another network, exactly or nearly: smaller, reordered, merged, on integers, easier to quantize.

What transforms leave in place (a mask, a silent channel), rewrites take out:

    removals = mz.rewrites.choose_units(...)       # channels, heads and layers, by score or budget
    params = mz.rewrites.shrink(params, removals)  # they leave every coupled leaf

Before quantizing, exactly: `equalize` evens out channel ranges between layers, `smooth` and `activation_aware` move
scales from activations into weights, `rotate` spreads the outliers of a residual stream. After it: `correct_bias`.
"""

from modelzip_jax.rewrites.activation_weighting import activation_aware
from modelzip_jax.rewrites.bias_correction import BiasCorrected, correct_bias
from modelzip_jax.rewrites.blocks import Branch, block_effects, drop_blocks, remove_layers, stacked_blocks
from modelzip_jax.rewrites.channel_scaling import Rescaled
from modelzip_jax.rewrites.channels import batch_norm_scale, unit_scores
from modelzip_jax.rewrites.equalization import equalize
from modelzip_jax.rewrites.inside_decoding import decode_inside
from modelzip_jax.rewrites.integer_products import quantize_activations
from modelzip_jax.rewrites.merging import merge_neurons
from modelzip_jax.rewrites.permutation import permute, similarity_order
from modelzip_jax.rewrites.rotation import Rotated, rotate
from modelzip_jax.rewrites.shrinking import shrink, shrink_nnx, shrunk_shapes, silence
from modelzip_jax.rewrites.smoothing import smooth
from modelzip_jax.rewrites.unit_choice import choose_units

__all__ = [
    "BiasCorrected",
    "Branch",
    "Rescaled",
    "Rotated",
    "activation_aware",
    "batch_norm_scale",
    "block_effects",
    "choose_units",
    "correct_bias",
    "decode_inside",
    "drop_blocks",
    "equalize",
    "merge_neurons",
    "permute",
    "quantize_activations",
    "remove_layers",
    "rotate",
    "shrink",
    "shrink_nnx",
    "shrunk_shapes",
    "silence",
    "similarity_order",
    "smooth",
    "stacked_blocks",
    "unit_scores",
]
