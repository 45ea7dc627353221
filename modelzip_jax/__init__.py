"""modelzip_jax: makes trained networks small, as pure functions over parameter pytrees.

import modelzip_jax as mz

zipper = mz.only("**/kernel", mz.chain(mz.prune(sparsity=0.8), mz.quantize(bits=4)))
packed = mz.compress(params, zipper)           # or train with mz.wrap, then mz.pack
mz.save("model.mz", packed)
params = mz.unpack(mz.load("model.mz"))
"""

from modelzip_jax import errors, testing, tree
from modelzip_jax.chaining import chain
from modelzip_jax.coding.reader import load, load_tensor
from modelzip_jax.coding.writer import save
from modelzip_jax.fitting import fit
from modelzip_jax.masking import allocation, schedules, scores, structures
from modelzip_jax.masking.blocks import Branch, block_effects, drop_blocks, remove_layers, stacked_blocks
from modelzip_jax.masking.channels import batch_norm_scale, unit_scores
from modelzip_jax.masking.dynamic import regrow, rigl, sparse_evolution
from modelzip_jax.masking.prune import prune
from modelzip_jax.masking.rewinding import rewind
from modelzip_jax.masking.shrink import shrink, silence
from modelzip_jax.masking.sparse_dense import sparse_dense
from modelzip_jax.masking.surgeon import surgeon
from modelzip_jax.masking.unit_choice import choose_units
from modelzip_jax.model import Packed, compress, decoded, pack, resume, unpack
from modelzip_jax.optimizer import metrics, params, start, wrap
from modelzip_jax.packed import PackedArray, packed_kind
from modelzip_jax.partitioning import only, partition
from modelzip_jax.quantization.activations import quantize_activations
from modelzip_jax.quantization.quantize import quantize
from modelzip_jax.recipe import recordable
from modelzip_jax.sharing.cluster import cluster
from modelzip_jax.sharing.merging import merge_neurons
from modelzip_jax.sharing.neurons import share_neurons
from modelzip_jax.transform import Encoded, Transform, identity, rate
from modelzip_jax.wavelets.best_basis import best_basis
from modelzip_jax.wavelets.transform import cosines, wavelet

__version__ = "0.1.0"

__all__ = [
    "Branch",
    "Encoded",
    "Packed",
    "PackedArray",
    "Transform",
    "allocation",
    "batch_norm_scale",
    "best_basis",
    "block_effects",
    "chain",
    "choose_units",
    "cluster",
    "compress",
    "cosines",
    "decoded",
    "drop_blocks",
    "errors",
    "fit",
    "identity",
    "load",
    "load_tensor",
    "merge_neurons",
    "metrics",
    "only",
    "pack",
    "packed_kind",
    "params",
    "partition",
    "prune",
    "quantize",
    "quantize_activations",
    "rate",
    "recordable",
    "regrow",
    "remove_layers",
    "resume",
    "rewind",
    "rigl",
    "save",
    "schedules",
    "scores",
    "share_neurons",
    "shrink",
    "silence",
    "sparse_dense",
    "sparse_evolution",
    "stacked_blocks",
    "start",
    "structures",
    "surgeon",
    "testing",
    "tree",
    "unit_scores",
    "unpack",
    "wavelet",
    "wrap",
]
