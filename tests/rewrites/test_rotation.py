"""Rotated networks compute what they did, with Q on every side of a stream; what is not linear in it is named."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax import tree
from modelzip_jax.errors import NonFiniteError, PatternError, TransformError
from modelzip_jax.models.language_model import LanguageModel
from modelzip_jax.rewrites.orthogonal_matrices import random_hadamard


def language_model(**options):
    layers = 2 if options["scan"] else 1
    model = LanguageModel(vocab_size=11, num_layers=layers, num_heads=2, embed_dim=12, tied=False, **options)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 11, (2, 5)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.5 + 0.2, s.dtype), shapes)
    return jax.jit(model.apply), params, tokens


class RmsNet(nn.Module):
    """Embedding, RMS norms and a relu: every rotation will do."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 16)(tokens)
        x = x + nn.Dense(16, name="down")(nn.relu(nn.Dense(24, name="up")(nn.RMSNorm()(x))))
        return nn.Dense(3, name="head")(nn.RMSNorm()(x))


@pytest.mark.parametrize("scan", [False, True])
def test_a_stream_with_layer_norms_keeps_its_mean(scan):
    apply, params, tokens = language_model(scan=scan)
    rotated = mz.rewrites.rotate(apply, params, tokens, stream="params/token_embedding/embedding")
    before, after = apply(params, tokens), apply(rotated.params, tokens)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=3e-5 * np.abs(before).max())
    ((_, q),) = rotated.matrices.items()
    np.testing.assert_allclose(q @ q.T, np.eye(12), atol=1e-12)
    np.testing.assert_allclose(q.sum(axis=1), 1.0, atol=1e-12)
    folded = {name.rsplit("/", 1)[0] for name in rotated.folded}
    assert folded == {n.rsplit("/", 1)[0] for n, _ in tree.named_leaves(params) if n.endswith("norm/scale")}
    ((_, members),) = rotated.members.items()
    by_leaf = dict(members)
    out = "params/blocks/mlp_out" if scan else "params/block_0/mlp_out"
    assert by_leaf[f"{out}/kernel"] == (2 if scan else 1)
    assert f"{out}/bias" in by_leaf
    assert by_leaf["params/lm_head/kernel"] == 0
    assert by_leaf["params/position_embedding/embedding"] == 1
    # One leaf as it was, and the function is another.
    for leaf, axis in members[::6]:
        if leaf.endswith("key/bias"):
            continue
        back = tree.map_named(
            lambda n, x, leaf=leaf, axis=axis: (
                jnp.moveaxis(jnp.moveaxis(x, axis, -1) @ q.T.astype(np.float32), -1, axis) if n == leaf else x
            ),
            rotated.params,
        )
        assert not np.allclose(apply(back, tokens), before, rtol=1e-3, atol=1e-3), leaf


def test_outliers_of_a_stream_are_spread_and_quantizing_it_costs_less():
    model, rng = RmsNet(), np.random.default_rng(0)
    apply = jax.jit(model.apply)
    tokens = jnp.asarray(rng.integers(0, 11, (2, 5)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    ones = lambda n, s: jnp.ones(s.shape) if n.endswith("scale") else jnp.float32(rng.normal(size=s.shape))  # noqa: E731
    params = tree.map_named(ones, shapes)
    wide = jnp.where(jnp.arange(16) == 5, 30.0, 1.0)
    params = tree.map_named(lambda n, x: x * wide if n.endswith(("embedding", "down/kernel")) else x, params)
    rotated = mz.rewrites.rotate(apply, params, tokens, key=jax.random.key(3))
    ((_, q),) = rotated.matrices.items()
    np.testing.assert_allclose(np.abs(q), 0.25)  # Hadamard's.
    assert not rotated.folded  # They were ones.
    before = apply(params, tokens)
    np.testing.assert_allclose(apply(rotated.params, tokens), before, rtol=1e-4, atol=1e-4)

    def lost(p):
        coarse = mz.unpack(mz.compress(p, mz.only("**/embedding", mz.quantize(4, granularity="tensor"))))
        return float(jnp.linalg.norm(apply(coarse, tokens) - before))

    assert lost(rotated.params) < 0.7 * lost(params)


def test_negative_scales_fold_into_linear_readers_and_not_through_a_relu():
    rng = np.random.default_rng(0)
    params = {
        n: jnp.asarray(rng.normal(size=s), jnp.float32)
        for n, s in {"e": (7, 8), "g": (8,), "w": (8, 3)}.items()
    }

    def model(p, t, between=lambda h: h):
        x = p["e"][t]
        x = x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)
        return between(x * p["g"]) @ p["w"]

    t = jnp.arange(7)
    assert bool((params["g"] < 0).any())
    rotated = mz.rewrites.rotate(model, params, t)
    np.testing.assert_allclose(model(rotated.params, t), model(params, t), rtol=1e-4, atol=1e-5)
    assert rotated.folded == ("g",)
    with pytest.raises(TransformError, match=r"'e'.*max"):
        mz.rewrites.rotate(lambda p, t: model(p, t, jax.nn.relu), params, t)
    with pytest.raises(TransformError, match="'g' cannot be folded: it has zeros"):
        mz.rewrites.rotate(model, {**params, "g": params["g"].at[2].set(0.0)}, t)


def test_equinox_modules_stay_modules():
    class Net(eqx.Module):
        embed: eqx.nn.Embedding
        norm: eqx.nn.RMSNorm
        head: eqx.nn.Linear

        def __call__(self, tokens):
            return jax.vmap(lambda t: self.head(self.norm(self.embed(t))))(tokens)

    a, b = jax.random.split(jax.random.key(0))
    net = Net(eqx.nn.Embedding(9, 8, key=a), eqx.nn.RMSNorm(8), eqx.nn.Linear(8, 2, key=b))
    arrays, static = eqx.partition(net, eqx.is_array)
    tokens = jnp.arange(9)
    apply = lambda p, t: eqx.combine(p, static)(t)  # noqa: E731
    rotated = mz.rewrites.rotate(apply, arrays, tokens)
    assert jax.tree.structure(rotated.params) == jax.tree.structure(arrays)
    np.testing.assert_allclose(apply(rotated.params, tokens), apply(arrays, tokens), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_rotated_is_named():
    tied = LanguageModel(vocab_size=11, num_layers=1, num_heads=2, embed_dim=8, scan=False)
    tokens = jnp.zeros((1, 3), jnp.int32)
    shapes = jax.eval_shape(tied.init, jax.random.key(0), tokens)
    params = jax.tree.map(lambda s: jnp.arange(1.0, 1.0 + s.size).reshape(s.shape), shapes)
    with pytest.raises(TransformError, match="'params/final_norm/scale' cannot be folded"):
        mz.rewrites.rotate(tied.apply, params, tokens)
    with pytest.raises(PatternError, match="no/such"):
        mz.rewrites.rotate(tied.apply, params, tokens, stream="no/such")
    up = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 3))}
    with pytest.raises(TransformError, match=r"'a'.*tanh"):
        mz.rewrites.rotate(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], up, jnp.ones((1, 3)))
    with pytest.raises(NonFiniteError, match="'a'"):
        mz.rewrites.rotate(lambda p, x: x @ p["a"] @ p["b"], {**up, "a": up["a"] * jnp.nan}, jnp.ones((1, 3)))


@pytest.mark.parametrize(("size", "ones"), [(1, True), (5, False), (12, True), (64, True), (384, False)])
def test_matrices_are_orthogonal(size, ones):
    q = random_hadamard(size, np.random.default_rng(size), ones)
    np.testing.assert_allclose(q @ q.T, np.eye(size), atol=1e-12)
    assert np.abs(q.sum(axis=1) - 1.0).max() < 1e-9 or not ones
    assert size < 64 or np.abs(q).max() < 0.5
