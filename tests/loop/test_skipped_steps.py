"""A gradient of NaN, which `optax.apply_if_finite` skips, is felt by nothing that a transform trains or watches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_transform import PARAMS, TRANSFORMS

import modelzip_jax as mz

ALWAYS = ("prune, scheduled", "prune, global", "rigl", "quantize, learned zeros", "cluster", "partition")


def skipping(name):
    return mz.wrap(optax.apply_if_finite(optax.adam(1e-2), 5), TRANSFORMS[name])


@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in TRANSFORMS]
)
def test_what_is_trained_stays_as_it_was(name):
    tx = skipping(name)
    params, state = mz.start(tx, PARAMS)
    step = jax.jit(tx.update)
    for scale in (1.0, jnp.nan, 1.0, 1.0):
        before, grads = state, jax.tree.map(lambda x, s=scale: s * jnp.sin(x), params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        if np.isnan(scale):
            for now, was in ((state.offsets, before.offsets), (state.offsets_inner, before.offsets_inner)):
                jax.tree.map(np.testing.assert_array_equal, now, was)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(params))
    unpacked = mz.unpack(mz.pack(state, params))
    jax.tree.map(np.testing.assert_array_equal, unpacked, mz.params(state, params))
    grads = [x for x in jax.tree.leaves(state.encoded) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(np.isfinite(x).all() for x in grads)


SIGN = jnp.float32([1, -1] * 4)


@pytest.mark.parametrize("score", [mz.scores.movement(), mz.scores.fisher(0.5)], ids=["movement", "fisher"])
def test_later_masks_are_chosen_by_the_other_steps(score):
    t = mz.prune(score, sparsity=lambda step: jnp.where(step < 4, 0.0, 0.5), every=4)
    tx = mz.wrap(optax.apply_if_finite(optax.sgd(0.01), 5), t)
    params, state = mz.start(tx, {"w": jnp.arange(1.0, 9.0)})
    for step in range(8):
        # Weights at odd places grow and have the larger gradients.
        g = jnp.full(8, jnp.nan) if step == 1 else SIGN * (2.0 - SIGN) ** 8
        updates, state = tx.update({"w": g}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["w"] != 0, [False, True] * 4)


def test_a_refresh_by_scores_of_nan_keeps_the_masks():
    t = mz.prune(mz.scores.taylor(), sparsity=mz.schedules.cubic(0.5, begin=0, end=9), every=1)
    tx = mz.wrap(optax.apply_if_finite(optax.sgd(0.0), 5), t)
    params, state = mz.start(tx, {"w": jnp.arange(1.0, 9.0)})
    for g in (jnp.ones(8), jnp.full(8, jnp.nan)):
        updates, state = tx.update({"w": g}, state, params)
        params = optax.apply_updates(params, updates)
        mask = np.asarray(params["w"] != 0)
        np.testing.assert_array_equal(mask, np.sort(mask))
