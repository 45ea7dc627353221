"""A network into another network, exactly or nearly: smaller, reordered, merged, on integers.

What transforms leave in place (a mask, a silent channel), rewrites take out:

    removals = mz.rewrites.choose_units(...)       # channels, heads and layers, by score or budget
    params = mz.rewrites.shrink(params, removals)  # they leave every coupled leaf
"""

from modelzip_jax.rewrites.blocks import Branch, block_effects, drop_blocks, remove_layers, stacked_blocks
from modelzip_jax.rewrites.channels import batch_norm_scale, unit_scores
from modelzip_jax.rewrites.inside_decoding import decode_inside
from modelzip_jax.rewrites.integer_products import quantize_activations
from modelzip_jax.rewrites.merging import merge_neurons
from modelzip_jax.rewrites.permutation import permute, similarity_order
from modelzip_jax.rewrites.shrinking import shrink, shrink_nnx, shrunk_shapes, silence
from modelzip_jax.rewrites.unit_choice import choose_units

__all__ = [
    "Branch",
    "batch_norm_scale",
    "block_effects",
    "choose_units",
    "decode_inside",
    "drop_blocks",
    "merge_neurons",
    "permute",
    "quantize_activations",
    "remove_layers",
    "shrink",
    "shrink_nnx",
    "shrunk_shapes",
    "silence",
    "similarity_order",
    "stacked_blocks",
    "unit_scores",
]
