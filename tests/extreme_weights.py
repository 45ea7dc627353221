"""Weights at the ends of floating point, and every transform and strategy of ours to meet them."""

import drawn_chains as drawn
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz

SHAPE = (8, 4)
RNG = np.random.default_rng(0)
NORMAL, SIGNS = RNG.standard_normal(SHAPE), np.where(RNG.random(SHAPE) < 0.5, -1.0, 1.0)
ROWS = np.zeros(SHAPE)
ROWS[1], ROWS[5] = 0.25, -1.0
DTYPES = ("float32", "bfloat16", "float16")


def changed(value, at=(2, 1)):
    w = NORMAL.copy()
    w[at] = value
    return w


def gentle(dtype):
    """Leaves that everything can encode: at one end there is zero."""
    info = jnp.finfo(dtype)
    tiny, least = float(info.tiny), float(info.smallest_subnormal)
    found = {
        "zeros": np.zeros(SHAPE), "minus zeros": np.full(SHAPE, -0.0), "rows": ROWS,
        "subnormal": np.round(5 * NORMAL) * least, "tiny": NORMAL * tiny,
        "one subnormal": np.where(np.arange(32).reshape(SHAPE) == 5, least, 0.0),
        "constant": np.full(SHAPE, 0.1),
    }  # fmt: skip
    return {name: w.astype(jnp.dtype(dtype)) for name, w in found.items()}


def extreme(dtype):
    """Leaves of numbers so large that some transforms have none for what they do to them."""
    largest = float(jnp.finfo(dtype).max)
    halves = np.arange(SHAPE[0])[:, None] < SHAPE[0] // 2
    found = {
        "one of the largest": changed(0.6 * largest), "one of 2e19": changed(min(2e19, 0.3 * largest)),
        "largest": SIGNS * largest, "all largest": np.full(SHAPE, largest),
        "largest and others": np.where(halves, SIGNS * largest, NORMAL),
        "largest and subnormal": np.where(np.arange(SHAPE[1]) % 2 == 0, SIGNS * largest, SIGNS * 1e-40),
        "alone": np.full((1, 1), -largest),
    }  # fmt: skip
    return {name: w.astype(jnp.dtype(dtype)) for name, w in found.items()}


def _scored(score):
    return mz.prune(score, sparsity=0.5)


def _grid(grid, **options):
    return mz.quantize(None if grid.bits else 3, grid=grid, **options)


def _ranged(kind, **options):
    follows = getattr(kind, "decay", None) is not None
    return mz.quantize(4, range=kind, discretization="dynamic" if follows else "static", **options)


def _entropy(**options):
    return mz.entropy_constrained(0.1, **options)


HALF = mz.prune(sparsity=0.5)
FEW = {
    "identity": mz.identity(),
    "1 bit": mz.quantize(1),
    "1 bit a tensor": mz.quantize(1, granularity="tensor"),
    "2 bits": mz.quantize(2),
    "4 bits": mz.quantize(4, granularity="group", group_size=4),
    "8 bits": mz.quantize(8),
    "asymmetric": mz.quantize(3, symmetric=False),
    "asymmetric, offset": mz.quantize(3, symmetric=False, offset=True),
    "learned": mz.quantize(4, learned=True),
    "least squares": mz.quantize(4, range="mse"),
    "halving": _grid(mz.grids.halving()),
    "nf4": _grid(mz.grids.nf4()),
    "mx": _grid(mz.grids.mx()),
    "cluster": mz.cluster(4),
    "cluster, zero": mz.cluster(4, zero=True),
    "cluster, blocks": mz.cluster(4, block=2),
    "prune": HALF,
    "prune, channels": mz.prune(sparsity=0.5, structure=mz.structures.channel()),
    "haar": mz.wavelet("haar", 1, (0, 1)),
    "cosines, 4 bits": mz.chain(mz.cosines(8), mz.quantize(4)),
    "shared neurons": mz.share_neurons(2),
    "low rank": mz.low_rank(1),
    "residual": mz.residual(mz.quantize(3), mz.quantize(3)),
    "step": mz.wavelets.quantize_step(0.05),
    "entropy": _entropy(spread=mz.spreads.root_deviation()),
    "smallest": mz.smallest(),
    "pruned clusters": mz.chain(HALF, mz.cluster(4)),
}
"""What is tried at each end in every run."""
MANY = {
    **{f"bits {b} {s} {g}": mz.quantize(b, symmetric=s, **g)
       for b in (1, 2, 3, 5, 8) for s in (True, False) for g in drawn.GROUPS[:3]},
    **{f"grid {grid}": _grid(grid) for grid in (*drawn.LEVELS, *drawn.SHARED)},
    **{f"offset {grid}": _grid(grid, offset=True) for grid in drawn.LEVELS},
    **{f"range {r} {s}": _ranged(r, symmetric=s) for r in drawn.RANGES for s in (True, False)},
    **{f"rounding {r}": mz.quantize(3, rounding=r) for r in (mz.rounding.nearest(), mz.rounding.stochastic(3))},
    "half-quadratic": mz.quantize(3, symmetric=False, offset=True, rounding=mz.rounding.half_quadratic()),
    **{f"cluster {i} {z}": mz.cluster(4, init=i, zero=z)
       for i in ("companding", "density", "linear", "k-means++") for z in (None, True, False)},
    "cluster, differentiable": mz.cluster(4, temperature=0.1),
    "cluster, model": mz.cluster(4, granularity="model"),
    "dorefa": mz.dorefa(3),
    **{f"score {s}": _scored(s) for s in (
        mz.scores.magnitude(2), mz.scores.random(1), mz.scores.outlier(), mz.scores.geometric_median(),
        mz.scores.taylor(), mz.scores.saliency(), mz.scores.gradient_magnitude(), mz.scores.given(),
        mz.scores.movement(), mz.scores.fisher(),
    )},
    **{f"structure {s}": mz.prune(sparsity=None if s.fixes_sparsity else 0.5, structure=s)
       for s in (mz.structures.block(2), mz.structures.n_of_m(2, 4, -1))},
    **{f"allocation {a}": mz.prune(sparsity=None if hasattr(a, "params") else 0.5, allocation=a)
       for a in ("global", "erk", mz.allocation.at_most(params=15), mz.allocation.layers({"**": 0.3}))},
    "rigl": mz.rigl(sparsity=0.5, every=1, end=3),
    "sparse dense": mz.sparse_dense(0.5, 0, 2),
    **{f"wavelet {f} {a}": mz.wavelet(f, 1, a) for f in ("haar", "db2", "coif1") for a in (-1, (0, 1))},
    "wavelet, 4 bits": mz.chain(mz.wavelet("db2"), mz.quantize(4)),
    "packets, 4 bits": mz.chain(mz.wavelet("haar", packets=True, axes=(0, 1)), mz.quantize(4)),
    "cosines": mz.cosines(4, (0, 1)),
    "low rank, 4 bits": mz.chain(mz.low_rank(1), mz.quantize(4)),
    "residual, low rank": mz.residual(mz.low_rank(1), mz.quantize(3)),
    "step a tensor": mz.wavelets.quantize_step(0.05, granularity="tensor"),
    **{f"spread {s}": _entropy(spread=s) for s in (
        None, mz.spreads.even(), mz.spreads.root_deviation(axis=0), mz.spreads.by_importance(),
        mz.spreads.paying(mz.spreads.root_deviation(), bits=1.5),
    )},
    "entropy, no rate": _entropy(rate_weight=0.0),
    "principal components": mz.chain(mz.karhunen_loeve(), _entropy()),
    "partition": mz.partition({"x": mz.quantize(2)}, {"**": "x"}),
    "pruned, 4 bits": mz.chain(HALF, mz.quantize(4)),
}  # fmt: skip
"""Every strategy that needs no inputs of the network."""
CALIBRATED = {
    "error feedback": mz.quantize(4, rounding=mz.rounding.error_feedback()),
    "wanda": _scored(mz.scores.wanda()),
    "neuron activity": _scored(mz.scores.neuron_activity()),
    "by activation": mz.prune(sparsity=0.5, allocation=mz.allocation.ByActivation(("w",))),
    "ada round": mz.quantize(4, rounding=mz.rounding.ada_round(3)),
    "water-filling": _entropy(spread=mz.spreads.water_filling()),
}
