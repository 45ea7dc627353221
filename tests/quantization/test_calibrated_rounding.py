"""AdaRound by what it is for, half-quadratic quantization against the published algorithm in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import LeafError, TransformError

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def published(w, scale, zero, last, norm, beta, growth, iterations):
    """`optimize_weights_proximal` of the HQQ repository; w is (inputs, channels), scale 1 / step."""
    w, best = np.asarray(w, np.float64), np.inf
    for _ in range(iterations):
        q = np.clip(np.round(w * scale + zero), 0, last)
        r = (q - zero) / scale
        off = np.abs(w - r)
        with np.errstate(divide="ignore"):
            e = np.sign(w - r) * np.maximum(off - (1.0 / beta) * off ** (norm - 1.0), 0.0)
        zero = np.mean(q - (w - e) * scale, axis=0, keepdims=True)
        beta *= growth
        if off.mean() >= best:
            break
        best = off.mean()
    return zero, (np.clip(np.round(w * scale + zero), 0, last) - zero) / scale


@pytest.mark.parametrize(("norm", "iterations"), [(0.7, 20), (1.0, 3)])
def test_half_quadratic_is_the_published_algorithm(norm, iterations):
    w = jnp.asarray(RNG.standard_t(3, size=(48, 5)), jnp.float32)
    t = mz.quantize(3, symmetric=False, offset=True, axis=-1,
                    rounding=mz.rounding.half_quadratic(iterations, norm))  # fmt: skip
    encoded = t.init({"w": w}, mz.Context())
    plain = mz.quantize(3, symmetric=False, axis=-1).init({"w": w}, mz.Context()).state["w"]
    step, zero = np.asarray(plain.step, np.float64), np.asarray(plain.zero, np.float64)
    low = 0 if zero.min() >= 0 else -4
    want, values = published(w, 1 / step, zero - low, 7, norm, 10.0, 1.01, iterations)
    np.testing.assert_allclose(encoded.state["w"].zero, want + low, atol=1e-3)
    got = np.asarray(t.decode(encoded)["w"])
    assert np.mean(~np.isclose(got, values, atol=1e-3)) < 0.01
    near = mz.decoded({"w": w}, mz.quantize(3, symmetric=False, axis=-1))["w"]
    assert np.sum(np.abs(got - w) ** norm) < np.sum(np.abs(np.asarray(near) - w) ** norm)


def test_half_quadratic_takes_each_layer_as_if_it_were_alone_and_no_hidden_weight():
    params = {"w": normal(2, 9, 4)}
    options = {"symmetric": False, "offset": True, "rounding": mz.rounding.half_quadratic()}
    stacked = mz.decoded(params, mz.quantize(2, axis=-1, layers=0, **options))["w"]
    alone = [mz.decoded({"w": w}, mz.quantize(2, axis=-1, **options))["w"] for w in params["w"]]
    np.testing.assert_allclose(stacked, np.stack(alone), atol=1e-6)
    t = mz.chain(mz.prune(sparsity=0.5), mz.quantize(2, axis=-1, **(options | {"symmetric": True})))
    w = params["w"][0]
    hidden = np.abs(w) < np.median(np.abs(w))
    seen, unseen = (t.init({"w": x}, mz.Context()) for x in (w, jnp.where(hidden, 0.0, w)))
    np.testing.assert_array_equal(seen.latents["w"][hidden], w[hidden])
    np.testing.assert_array_equal(t.decode(seen)["w"], t.decode(unseen)["w"])


def test_another_rounding_chooses_on_the_grid_that_the_offset_has_shifted():
    w = {"w": normal(64, 2)}
    near = mz.quantize(2, symmetric=False, offset=True)
    by_draw = mz.quantize(2, symmetric=False, offset=True, rounding=mz.rounding.stochastic())
    zeros = [t.init(w, mz.Context()).state["w"].zero for t in (near, by_draw)]
    np.testing.assert_array_equal(*zeros)
    assert not np.any(zeros[0] == np.round(zeros[0]))


def test_learned_rounding_costs_less_than_nearest_and_stays_beside_the_weight():
    mix = RNG.normal(size=(12, 12)) * np.exp(-np.arange(12) / 4)
    x = jnp.asarray(RNG.normal(size=(64, 12)) @ mix, jnp.float32)
    params, model = {"w": normal(12, 6)}, lambda p, x: x @ p["w"]
    stats = trace.statistics(model, params, [x], kinds=("gram",))
    off = {}
    for name, rounding in {"ada": mz.rounding.ada_round(500), "near": None}.items():
        t = mz.quantize(3, granularity="group", group_size=4, axis=-1, rounding=rounding)
        found = mz.decoded(params, t, stats=stats)["w"]
        off[name] = float(jnp.sum((x @ (found - params["w"])) ** 2))
        state = t.init(params, mz.Context(stats=stats)).state["w"]
    step = jnp.max(state.step)
    assert float(jnp.max(jnp.abs(found - params["w"]))) <= float(step) * 1.01
    assert off["ada"] < 0.8 * off["near"]
    with pytest.raises(LeafError, match=r"ada_round\(\) needs the Gram matrix"):
        mz.decoded(params, t.__class__(**{**vars(t), "rounding": mz.rounding.ada_round(2)}), stats={"w": ()})


def test_learned_rounding_under_a_mask_moves_no_hidden_weight():
    params, x = {"w": normal(8, 4)}, normal(32, 8)
    stats = trace.statistics(lambda p, x: x @ p["w"], params, [x], kinds=("gram",))
    t = mz.chain(
        mz.prune(sparsity=0.5), mz.quantize(grid=mz.grids.nf4(), bits=4, rounding=mz.rounding.ada_round(20))
    )
    encoded = t.init(params, mz.Context(stats=stats))
    hidden = np.abs(params["w"]) < np.median(np.abs(params["w"]))
    np.testing.assert_array_equal(encoded.latents["w"][hidden], params["w"][hidden])
    np.testing.assert_array_equal(t.decode(encoded)["w"][hidden], 0.0)


def test_what_they_refuse():
    for wrong, words in [
        (lambda: mz.quantize(4, rounding=mz.rounding.half_quadratic()), "offset=True"),
        (
            lambda: mz.quantize(4, grid=mz.grids.nf4(), offset=True, rounding=mz.rounding.half_quadratic()),
            "no grid=",
        ),
        (lambda: mz.rounding.half_quadratic(0), "of at least 1"),
        (lambda: mz.rounding.half_quadratic(norm=1.5), r"norm in \(0, 1\]"),
        (lambda: mz.rounding.ada_round(0), "of at least 1"),
        (lambda: mz.rounding.ada_round(rate=-1.0), r"rate of ada_round\(\) must be a positive"),
    ]:
        with pytest.raises(TransformError, match=words):
            wrong()


@pytest.mark.parametrize("rounding", [mz.rounding.ada_round(2), mz.rounding.error_feedback()], ids=str)
@pytest.mark.parametrize("factor", [np.nan, np.inf, -1.0])
def test_statistics_that_are_no_numbers_are_refused(rounding, factor):
    """Infinite ones, as of half precision that overflows, gave weights of two hundred times the error."""
    params, x = {"w": normal(8, 4)}, normal(32, 8)
    stats = trace.statistics(lambda p, x: x @ p["w"], params, [x], kinds=("gram",))
    with pytest.raises(mz.errors.NonFiniteError, match="leaf 'w' has NaN, infinite or negative"):
        mz.decoded(params, mz.quantize(3, rounding=rounding), stats=jax.tree.map(lambda a: a * factor, stats))
