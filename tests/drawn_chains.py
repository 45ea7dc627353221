"""Random chains over all transforms, structures, allocations, scores, schedules and kinds of tree.

A seed decides everything: `draw(seed)` is the case again.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import modelzip_jax as mz
from modelzip_jax.errors import ModelzipError
from modelzip_jax.testing import SUMS_ULP
from modelzip_jax.wavelets.filters import FILTERS

RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


# Few shapes, so that most of what the laws compile serves several cases.
TREES = {
    "dict": {"layer": {"kernel": normal(6, 4), "bias": np.zeros(4, "f4")}, "scale": np.float32(0.3)},
    "empty": {"kernel": normal(6, 4), "none": np.zeros((0, 4), "f4"), "flat": np.zeros((4, 0), "f4")},
    "half": {"kernel": jnp.asarray(normal(6, 4), jnp.bfloat16), "bias": jnp.asarray(normal(4), jnp.float16)},
    "nested": [normal(6, 4), (normal(4),)],
    "stacked": {"blocks": {"kernel": normal(3, 6, 4)}, "kernel": normal(6, 4)},
    "linen": nn.Dense(4).init(jax.random.key(0), jnp.ones((1, 6)))["params"],
    "nnx": nnx.state(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Param),
    "equinox": eqx.filter(eqx.nn.Linear(6, 4, key=jax.random.key(0)), eqx.is_array),
}


def _given() -> dict[str, dict[str, Any]]:
    """What scores and allocations that look at data are told; a tree without it takes none of them."""
    model, dense = nn.Dense(4), TREES["linen"]
    x = jnp.asarray(normal(16, 6))
    stats = mz.trace.statistics(
        lambda p, x: nn.relu(model.apply({"params": p}, x)), dense, [x], places=("inputs", "activations"),
        kinds=("mean_abs", "second_moment", "zeros", "range", "gram"),
    )  # fmt: skip
    scores = {"layer": {"kernel": normal(6, 4), "bias": normal(4)}, "scale": np.float32(0.1)}
    return {"linen": {"stats": stats}, "dict": {"scores": scores}}


GIVEN = _given()
IMPORTANCE = {
    "linen": {"importance": jax.tree.map(lambda w: jnp.asarray(normal(*w.shape) ** 2), TREES["linen"])}
}


class Drawn(NamedTuple):
    """The arguments of `mz.testing.check_laws`."""

    transform: mz.Transform
    params: Any
    given: dict[str, Any]
    ulp: int


Link = Callable[[random.Random], mz.Transform]


def _structure(r: random.Random) -> Any:
    return r.choice([
        mz.structures.unstructured(), mz.structures.unstructured(), mz.structures.channel(-1),
        mz.structures.channel(0), mz.structures.block(2), mz.structures.block(2, 2), mz.structures.n_of_m(2, 4, -1),
        mz.structures.n_of_m(1, 2, -2),
    ])  # fmt: skip


def _allocation(r: random.Random) -> Any:
    return r.choice([
        "uniform", "global", "erk", mz.allocation.layers({"**kernel": 0.6, "**": 0.3}),
        mz.allocation.at_most(params=r.choice([15, 30])), mz.allocation.ByActivation(("kernel",)),
    ])  # fmt: skip


def _score(r: random.Random) -> Any:
    return r.choice([
        mz.scores.magnitude(), mz.scores.magnitude(2), mz.scores.random(1), mz.scores.outlier(),
        mz.scores.geometric_median(), mz.scores.movement(), mz.scores.taylor(), mz.scores.saliency(),
        mz.scores.gradient_magnitude(), mz.scores.fisher(0.9), mz.scores.given(), mz.scores.wanda(),
        mz.scores.neuron_activity(),
    ])  # fmt: skip


def ramp(step: Any) -> Any:
    """A user's own schedule."""
    return jnp.minimum(0.2 * step, 0.8)


def _sparsity(r: random.Random) -> Any:
    return r.choice([
        0.5, 0.3, mz.schedules.cubic(0.75, begin=0, end=3), mz.schedules.polynomial(0.6, 1, 3, 0.1, 1.0),
        mz.schedules.alternating(0.5, 0, 4, 1, 1), ramp,
    ])  # fmt: skip


def _layers(r: random.Random) -> Any:
    return r.choice([None, None, {"blocks/**": 0}])


def _prune(r: random.Random) -> mz.Transform:
    structure, allocation = _structure(r), _allocation(r)
    fixed = structure.fixes_sparsity or mz.allocation.resolve(allocation).fixes_sparsity
    return mz.prune(
        _score(r),
        sparsity=None if fixed else _sparsity(r),
        allocation=allocation,
        every=r.choice([None, 0, 1, 2]),
        structure=structure,
        remember=r.random() < 0.5,
        layers=_layers(r),
    )


def _dynamic(r: random.Random) -> mz.Transform:
    options = {"sparsity": 0.5, "every": r.choice([1, 2]), "end": 3, "fraction": r.choice([0.3, 0.6])}
    options |= {"allocation": r.choice(["uniform", "global", "erk"]), "layers": _layers(r)}
    options |= {"structure": r.choice([None, mz.structures.channel(-1), mz.structures.block(2)])}
    kind = r.choice(["rigl", "set", "regrow", "sparse_dense"])
    if kind == "sparse_dense":
        return mz.sparse_dense(0.5, 0, 2, structure=options["structure"])
    if kind == "regrow":
        first, drop = mz.scores.magnitude(), r.choice([mz.scores.movement(), mz.scores.magnitude(2)])
        return mz.regrow(mz.scores.fisher(0.9), drop=drop, first=first, **options)
    return (mz.rigl if kind == "rigl" else mz.sparse_evolution)(**options)


def _linear(r: random.Random) -> mz.Transform:
    axes = r.choice([-1, 0, -2, (-1, -2)])
    keep = r.choice([None, None, 2])
    kind = r.choice(["wavelet", "wavelet", "cosines", "neurons", "identity"])
    if kind == "identity":
        return mz.identity()
    if kind == "neurons":
        return mz.share_neurons(2)
    if kind == "cosines":
        return mz.cosines(r.choice([2, 3]), axes, keep=keep)
    packets = r.random() < 0.3
    return mz.wavelet(r.choice(sorted(FILTERS)), r.choice([1, 2]), axes, packets=packets, keep=keep)


GROUPS: list[dict[str, Any]] = [
    {"granularity": "tensor"},
    {"granularity": "channel"},
    {"granularity": "group", "group_size": 4},
    {"granularity": "group", "group_size": 7},
]
LEVELS = [
    mz.grids.nf4(), mz.grids.power_of_two(), mz.grids.power_of_two(2), mz.grids.ternary(), mz.grids.fp8(),
    mz.grids.fp8("e5m2"), mz.grids.quantile(), mz.grids.weighted_entropy(),
]  # fmt: skip
SHARED = [
    mz.grids.halving(), mz.grids.mx(), mz.grids.mx("e2m3"), mz.grids.mx("e3m2"), mz.grids.mx("e4m3"),
    mz.grids.mx("e5m2"), mz.grids.mx("int8"), mz.grids.nvfp4(),
]  # fmt: skip
RANGES = [
    "max", "max", "mse", mz.ranges.min_max(), mz.ranges.percentile(90.0), mz.ranges.least_squares(8),
    mz.ranges.kl_divergence(), mz.ranges.fixed(-0.5, 0.75), mz.ranges.moving_average(0.9),
]  # fmt: skip


ROUNDINGS = [
    *[None] * 5, mz.rounding.nearest(), mz.rounding.stochastic(3), mz.rounding.half_quadratic(),
    mz.rounding.error_feedback(), mz.rounding.ada_round(3),
]  # fmt: skip
"""Those by statistics are refused in words, and drawn again, where there are none of a leaf."""


def _by_strategies(r: random.Random) -> mz.Transform:
    if r.random() < 0.05:
        return mz.dorefa(r.randint(2, 8), layers=_layers(r))
    if r.random() < 0.15:
        step, granularity = r.choice([0.05, 0.1]), r.choice(["tensor", "channel"])
        return mz.wavelets.quantize_step(step, granularity=granularity)
    grid = r.choice([None, None, r.choice(LEVELS), r.choice(SHARED)])
    kind = r.choice(RANGES)
    follows = getattr(kind, "decay", None) is not None or r.random() < 0.15
    rounding = None if follows else r.choice(ROUNDINGS)
    return mz.quantize(
        None if grid is not None and grid.bits else r.randint(1, 8) if grid is None else r.randint(2, 6),
        **r.choice(GROUPS),
        axis=r.choice([-1, 0, "auto", (0, -1)]),
        symmetric=grid is not None or r.random() < 0.5,
        learned=not follows and grid not in SHARED and r.random() < 0.5,
        range=kind,
        layers=_layers(r),
        grid=grid,
        rounding=rounding,
        discretization="dynamic" if follows else "static",
        offset=rounding == mz.rounding.half_quadratic()
        or (not follows and grid not in SHARED and r.random() < 0.2),
    )


def _quantize(r: random.Random) -> mz.Transform:
    if r.random() < 0.15:
        step, granularity = r.choice([0.05, 0.1]), r.choice(["tensor", "channel"])
        return mz.wavelets.quantize_step(step, granularity=granularity)
    return mz.quantize(
        r.randint(1, 8),
        **r.choice(
            [
                {"granularity": "tensor"},
                {},
                {"granularity": "group", "group_size": 4},
                {"granularity": "group", "group_size": 7},
            ]
        ),
        axis=r.choice([-1, 0, "auto", (0, -1)]),
        symmetric=r.random() < 0.5,
        learned=r.random() < 0.5,
        range=r.choice(["max", "mse"]),
        layers=_layers(r),
    )


def _cluster(r: random.Random) -> mz.Transform:
    block = r.choice([1, 1, 1, 2])
    return mz.cluster(
        r.choice([2, 3, 4, 16]),
        granularity=r.choice(["tensor", "tensor", "model"]),
        block=block,
        init=r.choice(["companding", "density", "linear", "k-means++"]),
        learned=r.random() < 0.6,
        every=r.choice([0, 1, 2]),
        temperature=r.choice([None, None, 0.1]),
        zero=None if block > 1 else r.choice([None, True, False]),
        layers=_layers(r),
    )


def _low_rank(r: random.Random) -> mz.Transform:
    return mz.low_rank(r.choice([1, 2, 9]), layers=_layers(r))


def _residual(r: random.Random) -> mz.Transform:
    parts = [_chain(r, LATER_ENDS) if r.random() < 0.7 else _low_rank(r) for _ in range(r.choice([2, 2, 3]))]
    return mz.residual(*parts)


def _entropy(r: random.Random) -> mz.Transform:
    spreads = mz.spreads
    return mz.entropy_constrained(
        r.choice([0.02, 0.1, 0.5]),
        spread=r.choice([
            None, spreads.even(), spreads.root_deviation(axis=r.choice([0, -1])), spreads.by_importance(),
            spreads.by_importance(), spreads.water_filling(), spreads.water_filling(),
        ]),
        rounding=r.choice([
            None, mz.rounding.nearest(), mz.rounding.stochastic(3), mz.rounding.error_feedback(),
            mz.rounding.error_feedback(), mz.rounding.ada_round(3),
        ]),
        rate_weight=r.choice([0.0, 1.0]),
        layers=_layers(r),
    )  # fmt: skip


LINKS: list[Link] = [_prune, _prune, _dynamic, _linear, _linear]
ENDS: list[Link] = [_quantize, _cluster]
SINCE = 2000
"""From this seed on a chain has other grids, ranges and rounding, of two in four seeds a low rank or a sum:
what earlier ones draw, faults among it, stays."""
LATEST = 2400
"""And from this one on ends in a step instead of bits, and is told an importance, too."""
LATER_ENDS: list[Link] = [_by_strategies, _by_strategies, _by_strategies, _quantize, _cluster]


def _chain(r: random.Random, ends: list[Link] = ENDS) -> mz.Transform:
    parts = [r.choice(LINKS)(r) for _ in range(r.choice([0, 1, 1, 2]))]
    if not parts or r.random() < 0.8:
        parts.append(r.choice(ends)(r))
    return mz.chain(*parts)


def _later(r: random.Random, seed: int) -> mz.Transform:
    if seed >= LATEST:
        before = [r.choice(LINKS)(r) for _ in range(r.choice([0, 0, 1]))]
        basis = [mz.karhunen_loeve(layers=_layers(r))] if seed % 4 == 3 else []
        last = _entropy(r)
        if seed % 4 == 1:
            last = dataclasses.replace(
                last, spread=mz.spreads.paying(last.spread, bits=float(seed % 3) + 0.5)
            )
        return mz.chain(*before, *basis, last)
    if seed % 4 > 1:
        return _chain(r, LATER_ENDS)
    before = [r.choice(LINKS)(r) for _ in range(r.choice([0, 0, 1]))]
    after = [_residual(r)] if seed % 2 else [_low_rank(r), *_chain(r, LATER_ENDS).parts]
    return mz.chain(*before, *after)


CHAIN, RESIDUAL, LOW_RANK = type(mz.chain()), type(mz.residual(mz.identity())), type(mz.low_rank(1))
BASIS = type(mz.karhunen_loeve())


def _has_sums(transform: mz.Transform) -> bool:
    """Whether it decodes by sums of many, which programs round differently."""
    if isinstance(transform, CHAIN | RESIDUAL):
        return any(map(_has_sums, transform.parts))
    return isinstance(transform, mz.Linear | LOW_RANK | BASIS)


HOW = ("alone", "only", "matrices", "partition")


def combined(transform: mz.Transform, params: Any, how: str) -> mz.Transform:
    """The transform for all leaves, or some of them."""
    names = [name for name, _ in mz.tree.named_leaves(params)]
    if how == "only":
        return mz.only(names[0], transform)
    if how == "matrices":
        return mz.only("**", transform, min_ndim=2)
    if how == "partition":
        return mz.partition({"x": transform, "y": mz.quantize(2)}, {names[-1]: "y", "**": "x"})
    return transform


def drawn(r: random.Random, seed: int) -> tuple[str, mz.Transform, int]:
    """The name of a tree, a transform, and its ulp; the two may not go together.

    Raises:
      ModelzipError: the parts do not go together.
    """
    names = ["linen", *sorted(TREES)] if seed >= LATEST else sorted(TREES)
    name, chained = r.choice(names), _chain(r) if seed < SINCE else _later(r, seed)
    ulp = SUMS_ULP if _has_sums(chained) else 0
    return name, combined(chained, TREES[name], r.choice((*HOW[:3], *HOW[2:]))), ulp


def draw(seed: int) -> Drawn:
    """The case of a seed; what is refused in words is drawn again."""
    r = random.Random(seed)
    for _ in range(60):
        try:
            name, transform, ulp = drawn(r, seed)
            given = GIVEN.get(name, {}) | (IMPORTANCE.get(name, {}) if seed >= LATEST else {})
            tx = mz.wrap(optax.sgd(0.1), transform, given=given)
            params = jax.tree.map(jnp.asarray, mz.tree.plain(TREES[name]))
            jax.eval_shape(lambda p, tx=tx: tx.update(p, tx.init(p), p), params)
        except ModelzipError:
            continue
        return Drawn(transform, TREES[name], given, ulp)
    raise AssertionError(f"seed {seed}: sixty draws in a row were refused")
