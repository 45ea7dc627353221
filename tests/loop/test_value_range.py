"""What is outside of a range of values keeps its bits under every optimizer, and everything else trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_optimizer import OPTIMIZERS
from hypothesis import given, settings
from hypothesis import strategies as st

import modelzip_jax as mz
from modelzip_jax.loop import within_range

X = jax.random.normal(jax.random.key(0), (32, 8))
Y = X @ (0.5 * jax.random.normal(jax.random.key(1), (8, 4)))
PARAMS = {"kernel": jax.random.normal(jax.random.key(2), (8, 4)), "bias": jnp.float32([0.5, -0.0, 0.0, 2.0])}
SOME = ("sgd", "adamw", "lamb", "lion", "noisy_sgd", "muon", "schedule_free_adamw", "ema", "noise")


def loss(params):
    return jnp.mean(jnp.square(X @ params["kernel"] + params["bias"] - Y))


def bits(x):
    return np.asarray(x).view(np.uint32)


def trained(tx, params, steps=4):
    state = tx.init(params)
    step = jax.jit(lambda params, state: tx.update(jax.grad(loss)(params), state, params))
    for _ in range(steps):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", SOME)
def test_outside_the_bits_stay(name):
    params, _ = trained(within_range(OPTIMIZERS[name](), 0.1, 1.0), PARAMS)
    for leaf in PARAMS:
        before = np.asarray(PARAMS[leaf])
        outside = (before < np.float32(0.1)) | (before > 1.0)
        np.testing.assert_array_equal(bits(params[leaf])[outside], bits(before)[outside])
        assert outside.any()
        assert not outside.all()
        assert (bits(params[leaf]) != bits(before))[~outside].any()


def test_inside_it_is_the_optimizer_itself():
    free, _ = trained(optax.adamw(1e-2), PARAMS)
    ranged, _ = trained(within_range(optax.adamw(1e-2), -jnp.inf, jnp.inf), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, free, ranged)


def test_what_leaves_the_range_stays_where_it_landed():
    tx = within_range(optax.sgd(1.0), 0.0, 1.0)
    w, state, seen = jnp.float32(0.5), tx.init(jnp.float32(0.5)), []
    for _ in range(3):
        updates, state = tx.update(jnp.float32(0.75), state, w)
        w = optax.apply_updates(w, updates)
        seen.append(float(w))
    assert seen == [-0.25, -0.25, -0.25]


def test_a_range_of_magnitudes_has_both_signs():
    params, _ = trained(within_range(optax.sgd(0.1), 0.5, jnp.inf, magnitude=True), PARAMS)
    moved = np.asarray(params["kernel"] != PARAMS["kernel"])
    np.testing.assert_array_equal(moved, np.abs(np.asarray(PARAMS["kernel"])) >= 0.5)


TRANSFORMS = {
    "prune": mz.prune(sparsity=mz.schedules.cubic(0.5, begin=0, end=3), every=1),
    "quantize": mz.quantize(4, learned=True),
    "cluster": mz.cluster(4),
    "wavelet": mz.wavelet("haar"),
    "chain": mz.chain(mz.prune(sparsity=0.5), mz.quantize(4)),
    "residual": mz.residual(mz.low_rank(2), mz.quantize(4)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_within_wrap_it_holds_latents(name):
    zipper = mz.only("kernel", TRANSFORMS[name])
    tx = mz.wrap(within_range(optax.adamw(1e-2, weight_decay=0.5), 0.0, 1.0), zipper)
    params, state = mz.start(tx, PARAMS)
    latents = {"kernel": state.latents["kernel"], "bias": params["bias"]}
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    now = {"kernel": state.latents["kernel"], "bias": params["bias"]}
    pairs = zip(jax.tree.leaves(latents), jax.tree.leaves(now), strict=True)
    held = [(np.asarray(a), np.asarray(b), np.asarray((a < 0) | (a > 1))) for a, b in pairs]
    assert any(outside.any() for *_, outside in held)
    assert any((a != b).any() for a, b, _ in held)
    for a, b, outside in held:
        np.testing.assert_array_equal(a[outside], b[outside])
    packed = mz.pack(state, params)
    exact = mz.params(state, params)
    for leaf, value in mz.unpack(packed).items():
        np.testing.assert_allclose(value, exact[leaf], rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    w=st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3),
    g=st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3),
    low=st.floats(-2, 2, width=32),
    width=st.floats(0, 2, width=32),
)
def test_a_step_moves_what_is_inside_and_nothing_else(w, g, low, width):
    w, g, high = np.float32(w), np.float32(g), np.float32(low + width)
    tx = within_range(optax.sgd(0.5), low, high)
    updates, _ = tx.update(jnp.asarray(g), tx.init(jnp.asarray(w)), jnp.asarray(w))
    got = np.asarray(optax.apply_updates(jnp.asarray(w), updates))
    inside = (w >= low) & (w <= high)
    np.testing.assert_array_equal(bits(got)[~inside], bits(w)[~inside])
    np.testing.assert_array_equal(got[inside], (w - np.float32(0.5) * g)[inside])


def test_refusals():
    with pytest.raises(mz.errors.TransformError, match=r"from low to high, not from 1.0 to 0.0"):
        within_range(optax.sgd(0.1), 1.0, 0.0)
    with pytest.raises(mz.errors.TransformError, match="nan"):
        within_range(optax.sgd(0.1), float("nan"), 0.0)
    tx = within_range(optax.sgd(0.1), 0.0, 1.0)
    with pytest.raises(mz.errors.WrapError, match="looks at the params"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
