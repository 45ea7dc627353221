"""Every transform of ours, for a tree with a leaf that none of them selects and one of half precision."""

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz

_KEYS = jax.random.split(jax.random.key(7), 2)
PARAMS = {
    "a": {"kernel": jax.random.normal(_KEYS[0], (8, 8)), "bias": jnp.ones(8)},
    "half": {"kernel": jax.random.normal(_KEYS[1], (8, 4)).astype(jnp.bfloat16)},
}
RISING = mz.schedules.cubic(0.5, begin=0, end=3)
GROUPS = {"granularity": "group", "group_size": 4}

_EACH = {
    "identity": mz.identity(),
    "prune": mz.prune(sparsity=0.5),
    "prune, scheduled": mz.prune(sparsity=RISING, every=1),
    "prune, global": mz.prune(mz.scores.movement(), sparsity=RISING, every=2, allocation="global"),
    "prune, erk": mz.prune(mz.scores.fisher(), sparsity=RISING, every=1, allocation="erk"),
    "prune, budget": mz.prune(sparsity=RISING, every=1, allocation=mz.allocation.at_most(params=40)),
    "prune, channels": mz.prune(sparsity=0.5, structure=mz.structures.channel()),
    "prune, blocks": mz.prune(mz.scores.outlier(), sparsity=0.5, structure=mz.structures.block(2, 2)),
    "prune, n of m": mz.prune(structure=mz.structures.n_of_m(2, 4)),
    "rigl": mz.rigl(sparsity=0.5, every=1, end=4),
    "sparse evolution": mz.sparse_evolution(sparsity=0.5, every=1, end=4, allocation="global"),
    "sparse dense": mz.sparse_dense(0.5, 0, 2),
    "quantize": mz.quantize(4),
    "quantize, groups": mz.quantize(3, symmetric=False, range="mse", **GROUPS),
    "quantize, learned": mz.quantize(4, learned=True),
    "quantize, learned zeros": mz.quantize(2, learned=True, symmetric=False, granularity="tensor"),
    "quantize, levels": mz.quantize(4, grid=mz.grids.nf4(), learned=True, **GROUPS),
    "quantize, microscaled": mz.quantize(grid=mz.grids.mx()),
    "quantize, dynamic": mz.quantize(4, discretization="dynamic", range=mz.ranges.moving_average(0.9)),
    "quantize, offset": mz.quantize(3, symmetric=False, learned=True, offset=True),
    "quantize, half-quadratic": mz.quantize(
        3, symmetric=False, offset=True, rounding=mz.rounding.half_quadratic(), **GROUPS
    ),
    "cluster": mz.cluster(4),
    "cluster, refreshed": mz.cluster(4, every=1, learned=False, zero=True),
    "cluster, differentiable": mz.cluster(4, temperature=0.05),
    "cluster, blocks": mz.cluster(4, block=2, every=1),
    "cluster, differentiable blocks": mz.cluster(4, block=2, temperature=0.05),
    "wavelet": mz.wavelet("db2"),
    "wavelet, packets": mz.chain(mz.wavelet("haar", packets=True, axes=(0, 1)), mz.quantize(4)),
    "cosines": mz.cosines(4, keep=2),
    "shared neurons": mz.share_neurons(2),
    "low rank": mz.low_rank(2),
    "residual, low rank": mz.residual(mz.low_rank(2), mz.quantize(4, learned=True)),
    "residual, quantizers": mz.residual(mz.quantize(4, axis=-1), mz.quantize(3, axis=-1)),
    "chain": mz.chain(mz.prune(sparsity=RISING, every=1), mz.quantize(4, learned=True)),
    "chain of three": mz.chain(mz.wavelet("haar"), mz.prune(sparsity=0.5), mz.cluster(4)),
}
TRANSFORMS = {name: mz.only("**/kernel", transform) for name, transform in _EACH.items()}
# One that is chosen by data: a basis for a smooth leaf, none for noise.
TRANSFORMS["best basis"] = mz.best_basis(jax.tree.map(np.asarray, PARAMS), 1e-2, pattern="**/kernel")
TRANSFORMS["partition"] = mz.partition(
    {"pruned": mz.chain(mz.prune(sparsity=0.5), mz.cluster(4)), "coarse": mz.quantize(2, learned=True)},
    {"a/kernel": "pruned", "half/kernel": "coarse"},
)
