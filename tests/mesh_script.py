"""Run by test_mesh.py in a process of its own, with eight CPU devices: what differs from one device."""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import modelzip_jax as mz

RNG = np.random.default_rng(0)
TREE = {"w": RNG.normal(size=(128, 256)).astype("f4"), "v": RNG.normal(size=(256, 128)).astype("f4")}
SPECS = {"w": P("data", "model"), "v": P("model", None)}
GRADS = [{k: RNG.normal(size=x.shape).astype("f4") for k, x in TREE.items()} for _ in range(2)]
# Leaves of every kind, for the cases whose names begin with odd.
ODD_TREE = {
    "w": TREE["w"], "half": TREE["v"].astype(jnp.bfloat16), "bias": TREE["w"][0], "scalar": TREE["w"][0, 0],
    "empty": np.zeros((0, 8), "f4"), "flat": np.zeros((8, 0), "f4"),
}  # fmt: skip
ODD_SPECS = {
    **dict.fromkeys(ODD_TREE, P()),
    "w": P("data", "model"),
    "half": P("model", None),
    "bias": P("model"),
}
ODD_GRADS = [{k: RNG.normal(size=np.shape(x)).astype(x.dtype) for k, x in ODD_TREE.items()} for _ in range(2)]


COUNTED = ("uniform", "global", "rigl", "budget")


def scheduled(allocation):
    return mz.prune(sparsity=mz.schedules.cubic(0.8, 0, 3), every=1, allocation=allocation)


TRANSFORMS = {
    "uniform": scheduled("uniform"),
    "global": scheduled("global"),
    "mixed": mz.partition(
        {
            "channel": mz.chain(scheduled("uniform"), mz.quantize(4, learned=True, symmetric=False)),
            "tensor": mz.quantize(4, granularity="tensor"),
        },
        {"w": "channel", "v": "tensor"},
    ),
    "group": mz.quantize(4, granularity="group", group_size=32),
    "levels": mz.quantize(grid=mz.grids.nf4(), granularity="group", group_size=32, learned=True, offset=True),
    "fitted": mz.quantize(3, grid=mz.grids.quantile(), discretization="dynamic"),
    "blocked": mz.quantize(grid=mz.grids.nvfp4()),
    "odd-levels": mz.only("**", mz.quantize(grid=mz.grids.mx("e2m1")), min_ndim=1),
    "percentile": mz.quantize(4, range=mz.ranges.percentile(99.0)),
    "searched": mz.quantize(4, range="mse", granularity="group", group_size=32),
    "divergence": mz.quantize(4, range=mz.ranges.kl_divergence(), granularity="tensor"),
    "drawn": mz.quantize(4, rounding=mz.rounding.stochastic()),
    "half-quadratic": mz.quantize(4, symmetric=False, offset=True, rounding=mz.rounding.half_quadratic(4)),
    "entropy": mz.quantize(3, grid=mz.grids.weighted_entropy()),
    "averaged": mz.quantize(4, discretization="dynamic", range=mz.ranges.moving_average(0.9)),
    "stepped": mz.entropy_constrained(0.1, rate_weight=1.0),
    "odd-stepped": mz.entropy_constrained(0.1, spread=mz.spreads.even(), rounding=mz.rounding.stochastic()),
    "components": mz.chain(mz.karhunen_loeve(), mz.entropy_constrained(0.1)),
    "sum": mz.residual(mz.quantize(2), mz.quantize(4)),
    "dorefa": mz.dorefa(3),
    "rigl": mz.rigl(sparsity=0.8, every=1, end=3),
    "wavelet": mz.chain(mz.wavelet("db2", levels=2, axes=(0, 1)), mz.quantize(4, granularity="tensor")),
    "corner": mz.cosines(8, axes=(0, 1), view=(-1, 64, 128), keep=5),
    "clustered": mz.chain(mz.prune(sparsity=0.5), mz.cluster(16, every=1)),
    "blocks": mz.cluster(16, block=4, granularity="model", learned=False, every=1),
    "farthest": mz.prune(mz.scores.outlier(), sparsity=0.5, structure=mz.structures.block(4, 4)),
    "filters": mz.prune(mz.scores.geometric_median(), sparsity=0.5, structure=mz.structures.channel()),
    # No wavelet: along a sharded axis it permutes while other collectives run, and XLA:CPU's threads may all wait.
    "grown": mz.chain(mz.sparse_evolution(sparsity=0.8, every=1, end=3, allocation="global"), mz.quantize(4)),
    "watched": mz.prune(mz.scores.fisher(), sparsity=mz.schedules.cubic(0.8, 0, 3), every=1),
    "odd-clusters": mz.chain(mz.prune(sparsity=0.5), mz.cluster(16, every=1)),
    "soft": mz.cluster(8, temperature=0.05),
    "odd-wavelets": mz.only(
        "**", mz.chain(mz.wavelet("db2", 2, -1), mz.quantize(4, granularity="tensor")), min_ndim=1
    ),
    "budget": mz.prune(
        allocation=mz.allocation.AtMost(flops=100_000, costs=((("w",), 98_304), (("v",), 131_072))),
        sparsity=mz.schedules.cubic(0.8, 0, 3),
        every=1,
    ),
}


def trees(name):
    return (ODD_TREE, ODD_SPECS, ODD_GRADS) if name.startswith("odd") else (TREE, SPECS, GRADS)


def gap(a, b):
    """The largest difference."""
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max(initial=0.0))


def units(a, b):
    """The largest difference beyond 1e-6, that of sums in another order, in roundings of the dtype at each value."""
    x, y = (np.asarray(z, np.float32) for z in (a, b))
    size = np.maximum(np.maximum(np.abs(x), np.abs(y)), 1e-30)
    each = np.exp2(np.floor(np.log2(size))) * float(jnp.finfo(a.dtype).eps)
    return float(((np.abs(x - y) - 1e-6) / each).max(initial=0.0))


def run(name, put):
    transform, (tree, _, all_grads) = TRANSFORMS[name], trees(name)
    tx = mz.wrap(optax.sgd(0.1), transform, offsets_tx=optax.sgd(0.1))

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = jax.jit(lambda p: mz.start(tx, p))(put(tree))
    step = jax.jit(step)
    lowered = step.lower(params, state, put(all_grads[0]))
    for grads in all_grads:
        params, state = step(params, state, put(grads))
    found = mz.params(state, params)
    shipped = mz.unpack(mz.pack(state, params))
    wide, half = {k for k in found if found[k].dtype == jnp.float32}, found.get("half")
    gaps = max(gap(shipped[k], found[k]) for k in wide)
    return found, state, lowered, (gaps, 0.0 if half is None else units(shipped["half"], half))


def gathers(lowered):
    """All-gathers that put two or more shards of a weight together; samples are smaller."""
    found = re.findall(r"= \(?(\w+)\[([\d,]*)\][^=]* all-gather(?:-start)?\(", lowered.compile().as_text())
    sizes = [(kind, int(np.prod([int(n) for n in dims.split(",") if n]))) for kind, dims in found]
    return [f"{kind}[{size}]" for kind, size in sizes if size >= 2 * 128 * 256 // 8]


@functools.cache
def on_one_device(name):
    return run(name, lambda tree: jax.tree.map(jnp.asarray, tree))[0]


def compare(name, axis_type):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type,) * 2)
    expected, specs = on_one_device(name), trees(name)[1]

    def put(tree):
        return {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()}

    with jax.set_mesh(mesh):
        got, state, lowered, (shipped, half) = run(name, put)
        metrics = {k: float(x) for k, x in mz.metrics(state).items()}
    a, b = ([np.asarray(x, np.float32) for x in jax.tree.leaves(t)] for t in (got, expected))
    return {
        "different": sum(int(np.sum(x != y)) for x, y in zip(a, b, strict=True)),
        "largest": max(float(np.max(np.abs(x - y), initial=0.0)) for x, y in zip(a, b, strict=True)),
        "zeros": [sum(int(np.sum(x == 0)) for x in side) for side in (a, b)],
        "sharded": [str(got[k].sharding.spec) for k in sorted(got) if "model" in specs[k]],
        "shipped": shipped,
        "half": half,
        "gathers": gathers(lowered) if axis_type == AxisType.Auto and name in COUNTED else None,
        "metrics": metrics,
    }


def attempt(name, axis_type):
    try:
        return compare(name, axis_type)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


if __name__ == "__main__":
    cases = [case.split() for case in sys.argv[1:]]
    found = {f"{name} {kind}": attempt(name, getattr(AxisType, kind)) for name, kind in cases}
    json.dump(found, sys.stdout)
