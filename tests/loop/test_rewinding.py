"""Iterative magnitude pruning with rewinding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.combinator import support_of

W = {"w": jax.random.normal(jax.random.key(0), (16, 10)), "bias": jnp.zeros(10)}
X = jax.random.normal(jax.random.key(1), (64, 16))
Y = jnp.tanh(X[:, :4].sum(1, keepdims=True)) * jnp.arange(10.0)


def train(tx, params, state, steps):
    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean((X @ p["w"] + p["bias"] - Y) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("quantized", [False, True])
def test_rounds_of_iterative_pruning(quantized):
    prune = mz.prune(sparsity=0.0)
    zipper = mz.only("w", mz.chain(prune, mz.quantize(bits=6)) if quantized else prune)
    tx = optax.chain(optax.clip_by_global_norm(1.0), mz.wrap(optax.adamw(1e-2), zipper))
    early = train(tx, *mz.start(tx, W), 3)
    now, kept = early, np.ones((16, 10), bool)
    for sparsity in (0.2, 0.36, 0.488):
        late = train(tx, *now, 12)
        now = mz.rewind(early, late, sparsity)
        before, after = mz.loop.wrap_states(early[1])[0], mz.loop.wrap_states(now[1])[0]
        mask = np.asarray(now[0]["w"]) != 0
        # Quantized weights may round to zero.
        left = round(160 * (1 - sparsity))
        assert mask.sum() <= left if quantized else mask.sum() == left
        assert not (mask & ~kept).any()
        kept = np.asarray(support_of(after.transform.value, after.encoded)["w"])
        assert kept.sum() == left
        jax.tree.map(np.testing.assert_array_equal, after.latents, before.latents)
        old, new = before.inner[0], after.inner[0]
        assert new.count == old.count
        for name in ("mu", "nu"):
            was, now_is = getattr(old, name), getattr(new, name)
            np.testing.assert_array_equal(now_is["w"], was["w"])
            np.testing.assert_array_equal(now_is["bias"], was["bias"])
        assert int(after.step) == 3
        np.testing.assert_array_equal(now[0]["bias"], early[0]["bias"])
        np.testing.assert_array_equal(now[0]["w"][mask], early[0]["w"][mask])
    trained, state = train(tx, *now, 5)
    assert not (np.asarray(trained["w"]) != 0)[~kept].any()
    # Whatever the optimizer remembers of them, hidden latents stay where they were.
    then, held = (np.asarray(mz.loop.wrap_states(s)[0].latents["w"]) for s in (state, early[1]))
    np.testing.assert_array_equal(then[~kept], held[~kept])
    assert (then[kept] != held[kept]).all()


def test_late_masks_as_they_are():
    tx = mz.wrap(optax.sgd(1e-2), mz.only("w", mz.prune(sparsity=mz.schedules.cubic(0.5, 0, 4), every=1)))
    early = mz.start(tx, W)
    late = train(tx, *early, 6)
    params, _ = mz.rewind(early, late)
    np.testing.assert_array_equal(np.asarray(params["w"]) != 0, np.asarray(late[0]["w"]) != 0)


def test_what_cannot_be_rewound_is_named():
    tx = mz.wrap(optax.sgd(1e-2), mz.quantize(bits=4))
    state = mz.start(tx, W)
    with pytest.raises(mz.errors.TransformError, match="prunes nothing"):
        mz.rewind(state, state)
    with pytest.raises(mz.errors.TransformError, match=r"sparsity must be in \[0, 1\), not 1.5"):
        mz.rewind(state, state, 1.5)
    with pytest.raises(mz.errors.WrapError):
        mz.rewind((W, optax.sgd(1.0).init(W)), state)
    tx = mz.wrap(optax.sgd(1e-2), mz.prune(mz.scores.saliency(), sparsity=lambda step: 0.0))
    state = mz.start(tx, W)
    with pytest.raises(mz.errors.TransformError, match="needs grads"):
        mz.rewind(state, state, 0.5)
