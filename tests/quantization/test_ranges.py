"""Ranges, and whether values stay or follow training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import TransformError
from modelzip_jax.quantization.fits import UniformFit
from modelzip_jax.quantization.granularity import Granularity

RNG = np.random.default_rng(0)
W = RNG.standard_t(3, size=(50, 4)).astype(np.float32)
CHANNELS = Granularity("channel", -1, 1)
GROUPS = Granularity("group", -1, 20)


def limits(kind, groups, symmetric=True, bits=4):
    fit = UniformFit(bits, symmetric, groups)
    return jax.jit(lambda w: kind.limits(w, fit))(W)


def parts(groups):
    return [W] if groups is CHANNELS else [W[:20], W[20:40], W[40:]]


@pytest.mark.parametrize("groups", [CHANNELS, GROUPS], ids=["channel", "ragged groups"])
@pytest.mark.parametrize("percent", [99.0, 80.0, 100.0])
def test_a_percentile_is_an_order_statistic(percent, groups):
    top, bottom = limits(mz.ranges.percentile(percent), groups)
    for row, part in zip(top, parts(groups), strict=True):
        size = np.sort(np.abs(part), axis=0)
        beyond = int(np.floor(len(part) * (1 - percent / 100) + 1e-6))
        np.testing.assert_array_equal(row, size[len(part) - 1 - beyond])
    np.testing.assert_array_equal(top, bottom)
    above, below = limits(mz.ranges.percentile(percent), groups, symmetric=False)
    assert np.all(above >= 0)
    assert np.all(below >= 0)
    if percent == 100.0:
        np.testing.assert_array_equal(above, np.stack([p.max(0) for p in parts(groups)]))
        np.testing.assert_array_equal(below, -np.stack([p.min(0) for p in parts(groups)]))


@pytest.mark.parametrize("grid", [None, mz.grids.nf4(), mz.grids.mx()], ids=str)
def test_least_squares_is_no_worse_and_weighs_importance(grid):
    importance = RNG.exponential(size=W.shape).astype(np.float32) ** 3
    options = {"grid": grid, "granularity": "channel", "axis": -1}

    def error(kind, weight, **given):
        found = mz.unpack(mz.compress({"w": W}, mz.quantize(4, range=kind, **options), **given))["w"]
        return np.sum(weight * (np.asarray(found) - W) ** 2, axis=0)

    plain = error("max", 1.0)
    assert np.all(error("mse", 1.0) <= plain * (1 + 1e-6))
    told = error(mz.ranges.least_squares(), importance, importance={"w": importance})
    assert np.all(told <= error(mz.ranges.least_squares(), importance) * (1 + 1e-6))


def test_divergence_clips_outliers_and_not_a_uniform_density():
    heavy = np.concatenate([RNG.normal(size=20_000), [30.0, -30.0]]).astype(np.float32)
    even = RNG.uniform(-1, 1, size=20_000).astype(np.float32)
    fit = UniformFit(4, True, Granularity("tensor", -1, 1))
    kind = mz.ranges.kl_divergence()
    reach = jax.jit(lambda w: kind.limits(w, fit)[0])
    assert float(reach(heavy)[0, 0]) < 10.0
    assert float(reach(even)[0, 0]) > 0.9


def test_divergence_is_that_of_the_histograms():
    from modelzip_jax.quantization.ranges.searched import _divergence

    counts = RNG.poisson(3.0, size=32).astype(np.float64)
    last, levels = 24, 8
    p = counts[:last].copy()
    p[-1] += counts[last:].sum()
    q = np.zeros(last)
    for part in np.split(np.arange(last), levels):
        filled = counts[part] > 0
        q[part[filled]] = counts[part].sum() / max(filled.sum(), 1)
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-6)
    expected = np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))
    got = _divergence(jnp.asarray(counts[None], jnp.float32), jnp.int32(last), levels)
    np.testing.assert_allclose(got[0], expected, rtol=1e-4)


def test_a_fixed_range_is_folded_into_the_step():
    """The survey divides by 0.5 and multiplies by 2, which do not cancel; a step is one number on both sides."""
    packed = mz.compress({"w": np.clip(W, -0.5, 0.5)}, mz.quantize(8, range=mz.ranges.fixed(-0.5, 0.5)))
    np.testing.assert_allclose(packed.params["w"].step, 0.5 / 127, rtol=1e-6)
    assert np.abs(mz.unpack(packed)["w"] - np.clip(W, -0.5, 0.5)).max() <= 0.5 / 127 / 2 * 1.01


@pytest.mark.parametrize(
    "grid", [None, mz.grids.nf4(), mz.grids.power_of_two(), mz.grids.halving(), mz.grids.quantile()], ids=str
)
def test_an_offset_keeps_the_means(grid):
    if grid is not None and grid.scale != "float":
        with pytest.raises(TransformError, match="floating scales"):
            mz.quantize(3, grid=grid, offset=True)
        return
    w = {"w": W + 0.3}
    plain = mz.unpack(mz.compress(w, mz.quantize(3, grid=grid, axis=-1)))["w"]
    with_offset = mz.compress(w, mz.quantize(3, grid=grid, axis=-1, offset=True))
    found = np.asarray(mz.unpack(with_offset)["w"])
    np.testing.assert_allclose(found.mean(0), w["w"].mean(0), atol=1e-6)
    assert np.abs(plain.mean(0) - w["w"].mean(0)).max() > 1e-3
    np.testing.assert_allclose(found - plain, np.broadcast_to((found - plain)[0], found.shape), atol=1e-5)
    # Under a mask the mean is that of the weights that it keeps.
    masked = mz.chain(mz.prune(sparsity=0.5), mz.quantize(3, grid=grid, axis=-1, offset=True))
    got = np.asarray(mz.unpack(mz.compress(w, masked))["w"])
    kept = got != 0
    np.testing.assert_allclose((got * kept).sum(0), (w["w"] * kept).sum(0), atol=1e-4)


def trained(transform, steps=6, loss=None, rate=0.3):
    """State and params after steps of plain descent towards weights four times as large."""
    tx = mz.wrap(optax.sgd(rate), transform)
    params, state = mz.start(tx, {"w": jnp.asarray(W)})
    extra = {} if loss is None else {"value": jnp.float32(loss)}

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(lambda w: w - 4 * W, params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, mz.pack(state, params)


def test_static_and_dynamic():
    for grid in (None, mz.grids.nf4(), mz.grids.mx("e4m3"), mz.grids.quantile()):
        static, dynamic = (
            trained(
                mz.quantize(
                    4 if grid is None else None, grid=grid, axis=-1, granularity="channel", discretization=how
                )
            )
            for how in ("static", "dynamic")
        )
        before = mz.compress({"w": W}, static[1].transform).params["w"]
        name = "step" if grid is None else "scale"
        same, moved = (np.asarray(getattr(p[1].params["w"], name), np.float32) for p in (static, dynamic))
        np.testing.assert_array_equal(same, np.asarray(getattr(before, name), np.float32))
        assert np.all(moved > 1.9 * same)
        off = [float(np.mean((np.asarray(p["w"]) - 4 * W) ** 2)) for p, _ in (static, dynamic)]
        assert off[1] < 0.5 * off[0]


def test_a_moving_average_lags():
    kinds = {decay: mz.ranges.moving_average(decay) for decay in (0.0, 0.9)}
    steps = {
        decay: np.asarray(
            trained(mz.quantize(4, axis=-1, range=kind, discretization="dynamic"))[1].params["w"].step
        )
        for decay, kind in kinds.items()
    }
    first = np.abs(W).max(0) / 7
    assert np.all(first < steps[0.9])
    assert np.all(steps[0.9] < steps[0.0])


def test_steps_follow_the_training_error():
    def steps(loss):
        control = mz.discretization.error_controlled(1.0, gain=0.1)
        return np.asarray(
            trained(mz.quantize(8, axis=-1, discretization=control), loss=loss, rate=0.0)[1].params["w"].step
        )

    first = np.abs(W).max(0) / 127
    np.testing.assert_allclose(steps(0.2)[0], np.minimum(first * np.exp(0.6), 4 * first), rtol=1e-3)
    np.testing.assert_allclose(steps(5.0)[0], np.maximum(first * np.exp(-0.6), first / 4), rtol=1e-3)
    np.testing.assert_allclose(steps(np.nan)[0], first, rtol=1e-6)
    with pytest.raises(TransformError, match="value=loss"):
        trained(mz.quantize(8, discretization=mz.discretization.error_controlled(1.0)))


def test_stochastic_rounding_is_unbiased_and_on_the_grid():
    w = np.full((4000, 1), 0.3, np.float32)
    w[0] = 7.0
    for grid in (None, mz.grids.nf4()):
        found = np.asarray(
            mz.decoded({"w": w}, mz.quantize(4, grid=grid, rounding=mz.rounding.stochastic(1)))["w"]
        )
        values = np.unique(found[1:])
        assert len(values) == 2
        assert values[0] < 0.3 < values[1]
        spread = (values[1] - values[0]) / 2 / np.sqrt(4000)
        assert abs(found[1:].mean() - 0.3) < 4 * spread
    other = mz.decoded({"w": w}, mz.quantize(4, rounding=mz.rounding.stochastic(2)))["w"]
    again = mz.decoded({"w": w}, mz.quantize(4, rounding=mz.rounding.stochastic(1)))["w"]
    assert np.any(np.asarray(other) != np.asarray(again))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mz.ranges.percentile(0.0), "above 1"),
        (lambda: mz.ranges.percentile(0.999), "not 0.999: 99.9 for a share of 0.999"),
        (lambda: mz.ranges.percentile("99"), "not '99'"),
        (lambda: mz.ranges.fixed("a", 1), "not 'a' to 1"),
        (lambda: mz.quantize(4, range=mz.ranges.fixed(0, 1)), "of one sign"),
        (lambda: mz.quantize(4, range=mz.ranges.fixed(-1, 0), grid=mz.grids.nf4()), "of one sign"),
        (lambda: mz.quantize(4, range="percentile"), r"mz.ranges.percentile\(...\)"),
        (lambda: mz.quantize(4, rounding="gptq"), r"mz.rounding.error_feedback\(...\)"),
        (lambda: mz.quantize(4, discretization="learned"), "learned=True trains the steps"),
        (lambda: mz.ranges.percentile(101), "at most 100"),
        (lambda: mz.ranges.fixed(0.1, 1.0), "at most 0"),
        (lambda: mz.ranges.fixed(0.0, 0.0), "to 0.0"),
        (lambda: mz.ranges.moving_average(1.0), "below 1"),
        (lambda: mz.ranges.least_squares(1), "at least 2"),
        (lambda: mz.discretization.error_controlled(0.0), "positive"),
        (lambda: mz.discretization.error_controlled(1.0, finest=2.0, coarsest=1.0), "above the coarsest"),
        (lambda: mz.rounding.stochastic(0.5), "integer"),
        (lambda: mz.quantize(range="maximum"), "max"),
        (lambda: mz.quantize(range=mz.ranges.percentile), "call it"),
        (lambda: mz.quantize(range=3), "mz.ranges"),
        (lambda: mz.quantize(rounding="stochastic"), "mz.rounding"),
        (lambda: mz.quantize(discretization="moving"), "'dynamic'"),
        (lambda: mz.quantize(range=mz.ranges.moving_average()), "dynamic"),
        (lambda: mz.quantize(discretization="dynamic", learned=True), "static"),
        (lambda: mz.quantize(discretization="dynamic", offset=True), "static"),
        (lambda: mz.quantize(discretization="dynamic", rounding=mz.rounding.stochastic()), "static"),
        (
            lambda: mz.quantize(
                grid=mz.grids.mx(), discretization="dynamic", range=mz.ranges.moving_average()
            ),
            "mean",
        ),
        (
            lambda: mz.quantize(grid=mz.grids.mx(), discretization=mz.discretization.error_controlled(1.0)),
            "follow",
        ),
    ],
)
def test_wrong_strategies(call, words):
    with pytest.raises(TransformError, match=words):
        call()
