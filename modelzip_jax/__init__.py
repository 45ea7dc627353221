"""modelzip_jax: makes trained networks small, as pure functions over parameter pytrees.

import modelzip_jax as mz

zipper = mz.only("**/kernel", mz.chain(mz.prune(sparsity=0.8), mz.quantize(bits=4)))
packed = mz.compress(params, zipper)           # or train with mz.wrap, then mz.pack
mz.save("model.mz", packed)
params = mz.unpack(mz.load("model.mz"))
"""

from modelzip_jax import distillation, errors, loop, rewrites, sharing, testing, trace, tree, wavelets
from modelzip_jax.chaining import chain
from modelzip_jax.coding.loading import load, load_tensor
from modelzip_jax.coding.writer import save
from modelzip_jax.compute.int4_layout import int4_matrix
from modelzip_jax.compute.int4_products import packed_matmul
from modelzip_jax.compute.layering import layered
from modelzip_jax.compute.placement import to_device
from modelzip_jax.evaluation.report import inspect
from modelzip_jax.fitting import fit
from modelzip_jax.linear import Linear
from modelzip_jax.loop.reading import averaged, metrics, pack, params, start
from modelzip_jax.loop.rewinding import rewind
from modelzip_jax.loop.wrapping import wrap
from modelzip_jax.masking import allocation, schedules, scores, structures
from modelzip_jax.masking.brain_surgeon import surgeon
from modelzip_jax.masking.dynamic import regrow, rigl, sparse_evolution
from modelzip_jax.masking.pruning import prune
from modelzip_jax.masking.sparse_dense_learning import sparse_dense, sparse_dense_by_samples
from modelzip_jax.packed import Bits, Dense, Elementwise, PackedArray, is_packed, packed_kind, static
from modelzip_jax.packing import Packed, compress, decoded, resume, unpack
from modelzip_jax.partitioning import only, partition
from modelzip_jax.quantization import (
    activations,
    discretization,
    grids,
    ranges,
    rounding,
    sensitivity,
    spreads,
)
from modelzip_jax.quantization.bit_allocation import mixed_precision
from modelzip_jax.quantization.entropy_constraint import entropy_constrained
from modelzip_jax.quantization.factorization import low_rank
from modelzip_jax.quantization.narrowing import narrow
from modelzip_jax.quantization.quantizing import quantize
from modelzip_jax.quantization.table_basis import karhunen_loeve
from modelzip_jax.quantization.tanh_weights import dorefa
from modelzip_jax.recipe import recordable
from modelzip_jax.residual_sums import residual
from modelzip_jax.search import Search
from modelzip_jax.sharing.clustering import cluster
from modelzip_jax.sharing.neurons import share_neurons
from modelzip_jax.smallest.scale_tuning import tune_scales
from modelzip_jax.smallest.smallest_file import smallest
from modelzip_jax.transform import (
    Context,
    Encoded,
    Rate,
    Reparametrization,
    Transform,
    identity,
    like_weights,
    rate,
)
from modelzip_jax.wavelets.basis_choice import best_basis
from modelzip_jax.wavelets.wavelet_domain import cosines, wavelet

__version__ = "0.1.0"

__all__ = [
    "Bits",
    "Context",
    "Dense",
    "Elementwise",
    "Encoded",
    "Linear",
    "Packed",
    "PackedArray",
    "Rate",
    "Reparametrization",
    "Search",
    "Transform",
    "activations",
    "allocation",
    "averaged",
    "best_basis",
    "chain",
    "cluster",
    "compress",
    "cosines",
    "decoded",
    "discretization",
    "distillation",
    "dorefa",
    "entropy_constrained",
    "errors",
    "fit",
    "grids",
    "identity",
    "inspect",
    "int4_matrix",
    "is_packed",
    "karhunen_loeve",
    "layered",
    "like_weights",
    "load",
    "load_tensor",
    "loop",
    "low_rank",
    "metrics",
    "mixed_precision",
    "narrow",
    "only",
    "pack",
    "packed_kind",
    "packed_matmul",
    "params",
    "partition",
    "prune",
    "quantize",
    "ranges",
    "rate",
    "recordable",
    "regrow",
    "residual",
    "resume",
    "rewind",
    "rewrites",
    "rigl",
    "rounding",
    "save",
    "schedules",
    "scores",
    "sensitivity",
    "share_neurons",
    "sharing",
    "smallest",
    "sparse_dense",
    "sparse_dense_by_samples",
    "sparse_evolution",
    "spreads",
    "start",
    "static",
    "structures",
    "surgeon",
    "testing",
    "to_device",
    "trace",
    "tree",
    "tune_scales",
    "unpack",
    "wavelet",
    "wavelets",
    "wrap",
]
