"""Error feedback over outputs and inputs against a float64 loop, weight by weight, and against Kronecker's product."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import LeafError, TransformError

RNG = np.random.default_rng(7)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


MIX = np.asarray(RNG.normal(size=(12, 12)) * np.exp(-np.arange(12) / 4))


def correlated(rows, n=12):
    return jnp.asarray(RNG.normal(size=(rows, 12)) @ MIX[:, :n] + 0.3, jnp.float32)


def triangular(h, damping):
    """The order, and R, unit lower triangular, with H = Rᵀ D R in that order."""
    h = np.asarray(h, np.float64)
    h = h + damping * np.mean(np.diag(h)) * np.eye(len(h))
    place = np.argsort(-np.diag(h), kind="stable")
    upper = np.linalg.cholesky(h[np.ix_(place, place)][::-1, ::-1])[::-1, ::-1]
    return place, (upper / np.diag(upper)).T


def reference(w, step, g, h, damping=0.01, outputs_damping=0.3):
    """`(inputs, outputs)`: each weight to what makes its term of tr(G E H Eᵀ) least."""
    (rows, r), (columns, s) = triangular(g, outputs_damping), triangular(h, damping)
    w = np.asarray(w, np.float64).T[np.ix_(rows, columns)]
    e, out = np.zeros_like(w), np.zeros_like(w)
    for i in range(len(w)):
        for j in range(w.shape[1]):
            term = r[i] @ e @ s[j]  # Of what is rounded so far: the own error is zero yet.
            out[i, j] = step * np.round((w[i, j] + term) / step)
            e[i, j] = w[i, j] - out[i, j]
    back = np.empty_like(out)
    back[np.ix_(rows, columns)] = out
    return back.T


def both(model, params, x, **options):
    stats = trace.statistics(model, params, [x], kinds=("gram",))
    fisher = trace.fisher_information(
        model, params, [x], kinds=("kronecker",), likelihood="gaussian", **options
    )
    return {"stats": stats, "curvature": fisher}


def two_layers(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


STEPS = mz.entropy_constrained(0.3, spread=mz.spreads.even(), rounding=mz.rounding.error_feedback())


@pytest.mark.parametrize("shape", [(12, 7), (12, 80), (12, 64)])
def test_weight_by_weight(shape):
    params = {"a": normal(*shape), "b": normal(shape[1], 3)}
    known = both(two_layers, params, correlated(40))
    got = np.asarray(mz.decoded(params, STEPS, **known)["a"])
    step = float(mz.compress(params, STEPS, **known).params["a"].rows.ravel()[0])
    g, h = known["curvature"]["a"].factors[0].outputs, known["stats"]["a"][0].inputs.gram
    want = reference(params["a"], step, g, h)
    assert np.mean(~np.isclose(got, want, atol=1e-4)) < 0.03  # A tie in float32 changes what comes after it.


def test_its_error_is_less_than_of_inputs_alone():
    """In the metric of both, which is what the loss is to second order."""
    params = {"a": 0.3 * normal(12, 40), "b": normal(40, 2)}
    x = correlated(200)
    known = both(two_layers, params, x)
    g, h = (
        np.asarray(m)
        for m in (known["curvature"]["a"].factors[0].outputs, known["stats"]["a"][0].inputs.gram)
    )

    def cost(found):
        e = np.asarray(found["a"] - params["a"])
        return np.sum((h @ e) * (e @ g))

    one = mz.decoded(params, STEPS, stats=known["stats"])
    rounding = mz.rounding.error_feedback(outputs_damping=0.02)
    two = mz.decoded(params, dataclasses.replace(STEPS, rounding=rounding), **known)
    assert cost(two) < 0.6 * cost(one)
    want = two_layers(params, x)
    lost = [float(jnp.mean(jnp.square(two_layers({**params, "a": p["a"]}, x) - want))) for p in (one, two)]
    assert lost[1] < 0.8 * lost[0]


def test_outputs_that_cost_alike_change_nothing():
    params = {"w": normal(12, 9)}
    stats = trace.statistics(lambda p, x: x @ p["w"], params, [correlated(40)], kinds=("gram",))
    known = both(lambda p, x: x @ p["w"], params, correlated(40))
    factors = known["curvature"]["w"].factors[0]
    even = dataclasses.replace(
        known["curvature"]["w"], factors=(dataclasses.replace(factors, outputs=3.0 * jnp.eye(9)),)
    )
    one, two = (mz.decoded(params, STEPS, stats=stats, curvature=c)["w"] for c in (None, {"w": even}))
    assert np.mean(~np.isclose(one, two, atol=1e-5)) < 0.02


def scanned(p, x):
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["w"])[0]


def backwards(p, x):
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["w"], reverse=True)[0]


def experts(p, x):
    each = jnp.stack([x, x[::-1] ** 2], axis=1)
    return jnp.tanh(jnp.einsum("bei,eio->beo", each, p["w"])).sum(1) @ MIX[:8, :8]


def grouped(p, x):
    x = x[:, :8].reshape(-1, 2, 1, 4)
    y = jax.lax.conv_general_dilated(
        x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    return jnp.tanh(y).sum((1, 2)) @ MIX[:8, :8]


@pytest.mark.parametrize(
    ("model", "shape"),
    [(scanned, (3, 12, 12)), (backwards, (3, 12, 12)), (experts, (2, 12, 8)), (grouped, (1, 1, 2, 8))],
)
def test_each_layer_expert_and_group_has_its_own(model, shape):
    params = {"w": 0.5 * normal(*shape)}
    known = both(model, params, correlated(64))
    t = mz.entropy_constrained(0.2, spread=mz.spreads.even(), rounding=mz.rounding.error_feedback())
    found = np.asarray(mz.decoded(params, t, **known)["w"])
    step = float(mz.compress(params, t, **known).params["w"].rows.ravel()[0])
    g = np.asarray(known["curvature"]["w"].factors[0].outputs)
    h = np.asarray(known["stats"]["w"][0].inputs.gram)
    w = np.asarray(params["w"])
    if model is grouped:
        parts = [slice(0, 4), slice(4, 8)]
        pairs = [(w[0, 0][:, p], found[0, 0][:, p], g[p, p], h[k]) for k, p in enumerate(parts)]
    else:
        pairs = list(zip(w, found, g, h, strict=True))
    for kernel, got, outputs, inputs in pairs:
        assert np.mean(~np.isclose(got, reference(kernel, step, outputs, inputs), atol=1e-4)) < 0.05


def test_on_a_grid_of_bits_under_a_mask_in_turn():
    params = {"a": 0.1 * normal(12, 32), "b": normal(32, 2)}
    x = correlated(200)
    fisher = both(two_layers, params, x)["curvature"]
    t = mz.chain(mz.prune(sparsity=0.4), mz.quantize(4, axis=-1, rounding=mz.rounding.error_feedback()))
    off = {}
    for name, told in (("inputs", {}), ("both", {"curvature": fisher})):
        packed = mz.compress(params, mz.only("a", t), calibrate=(two_layers, [x]), **told)
        found = mz.unpack(packed)
        assert np.mean(np.asarray(found["a"]) == 0) >= 0.4
        off[name] = float(jnp.mean(jnp.square(two_layers(found, x) - two_layers(params, x))))
    assert off["both"] < off["inputs"]


def test_curvature_of_another_leaf_is_refused():
    params = {"a": normal(12, 16), "b": normal(16, 2)}
    known = both(two_layers, params, correlated(40))
    swapped = {"a": known["curvature"]["b"], "b": known["curvature"]["a"]}
    with pytest.raises(LeafError, match=r"Kronecker factors of leaf 'a' are of \(2, 2\) outputs"):
        mz.decoded(params, STEPS, stats=known["stats"], curvature=swapped)
    for damping in (0.0, -1, True):
        with pytest.raises(TransformError, match="outputs_damping"):
            mz.rounding.error_feedback(outputs_damping=damping)
