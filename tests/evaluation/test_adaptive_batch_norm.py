import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.errors import EvaluationError, NonFiniteError
from modelzip_jax.evaluation.recalibration import adapt_batch_norm
from modelzip_jax.models.mlp import MLP
from modelzip_jax.models.resnet import CifarResNet


class Normed(nn.Module):
    """Two layers of batch normalisation; the second sees what the first makes of the batch."""

    momentum: float
    frozen: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(not train, momentum=self.momentum, use_bias=False)(x)
        return nn.BatchNorm(not train or self.frozen, momentum=1 - 0.05, epsilon=1e-3)(nn.Dense(3)(x) ** 2)


@functools.cache
def batches():
    rng = np.random.default_rng(0)
    return rng.normal(rng.normal(size=(5, 1, 1)) * 30, 4.0, (5, 16, 4)).astype(np.float32)


def started(model):
    variables = model.init(jax.random.key(0), batches()[0])
    # What is there before must not count.
    return {**variables, "batch_stats": jax.tree.map(lambda s: s + 1e3, variables["batch_stats"])}


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999, 0.5, 0.0, 1 / 3])
def test_statistics_are_the_mean_over_the_batches(momentum):
    model = Normed(momentum)
    variables = started(model)
    adapted = adapt_batch_norm(model.apply, variables, batches())
    assert adapted["params"] is not None
    jax.tree.map(np.testing.assert_array_equal, adapted["params"], variables["params"])
    x = np.float64(batches())
    mean, var = x.mean(1), x.var(1)
    first = adapted["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(first["mean"], mean.mean(0), rtol=1e-5)
    np.testing.assert_allclose(first["var"], var.mean(0), rtol=1e-3)  # Flax: E[x²] − E[x]² in float32.
    normed = (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5)
    kernel, bias = (np.float64(variables["params"]["Dense_0"][k]) for k in ("kernel", "bias"))
    seen = (normed @ kernel + bias) ** 2
    second = adapted["batch_stats"]["BatchNorm_1"]
    np.testing.assert_allclose(second["mean"], seen.mean(1).mean(0), rtol=1e-3)
    np.testing.assert_allclose(second["var"], seen.var(1).mean(0), rtol=1e-3)


def test_training_moves_towards_the_adapted_statistics():
    model = Normed(0.9)
    variables = started(model)
    adapted = adapt_batch_norm(model.apply, variables, batches()[:1])["batch_stats"]
    old = variables["batch_stats"]
    _, trained = model.apply(variables, batches()[0], train=True, mutable=["batch_stats"])
    for layer, momentum in (("BatchNorm_0", 0.9), ("BatchNorm_1", 0.95)):
        for name, new in trained["batch_stats"][layer].items():
            expected = momentum * old[layer][name] + (1 - momentum) * adapted[layer][name]
            np.testing.assert_allclose(new, expected, rtol=1e-6)


def test_a_residual_network_in_bfloat16():
    model = CifarResNet(blocks=1, stages=(2,), dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(1), (2, 8, 4, 4, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x[0])
    variables = jax.tree.map(lambda s: jnp.full(s.shape, 0.3, s.dtype), shapes)
    once = adapt_batch_norm(model.apply, variables, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(once, variables)
    assert all(jnp.isfinite(s).all() for s in jax.tree.leaves(once))


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(EvaluationError, match="no batch_stats"):
        adapt_batch_norm(MLP((2,)).apply, {"params": {}}, batches())
    frozen = Normed(0.9, frozen=True)
    with pytest.raises(EvaluationError, match="BatchNorm_1/mean"):
        adapt_batch_norm(frozen.apply, started(frozen), batches())
    with pytest.raises(NonFiniteError, match="BatchNorm_0/mean"):
        adapt_batch_norm(Normed(0.9).apply, started(frozen), batches() * np.nan)
    with pytest.raises(EvaluationError, match="at least one"):
        adapt_batch_norm(frozen.apply, started(frozen), batches()[:0])
