"""Networks of every kind: targets are met, and data helps on inputs that it has not seen."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax.coding.writer import file_sizes

KEY = jax.random.key(0)


def normal(seed, *shape, scale=1.0):
    return scale * jax.random.normal(jax.random.fold_in(KEY, seed), shape)


def correlated(width):
    """(128, width) inputs that lie near a few directions, as activations do."""
    return normal(90, 128, 6) @ normal(91, 6, width) + normal(92, 128, width, scale=0.1)


def scanned():
    params = {
        "stack": {"kernel": normal(1, 3, 24, 24, scale=0.25), "bias": normal(2, 3, 24, scale=0.1)},
        "head": normal(3, 24, 8),
    }

    def model(p, x):
        layer = lambda x, w: (x + jnp.tanh(x @ w["kernel"] + w["bias"]), None)  # noqa: E731
        return jax.lax.scan(layer, x, p["stack"])[0] @ p["head"]

    return params, model, correlated(24)


def experts():
    params = {
        "router": normal(1, 16, 4),
        "up": normal(2, 4, 16, 24, scale=0.3),
        "down": normal(3, 4, 24, 8, scale=0.3),
    }

    def model(p, x):
        gates = jax.nn.softmax(x @ p["router"])
        hidden = jax.nn.relu(jnp.einsum("bd,edh->beh", x, p["up"]))
        return jnp.einsum("beh,eho,be->bo", hidden, p["down"], gates)

    return params, model, correlated(16)


def tied():
    params = {"table": normal(1, 300, 32), "kernel": normal(2, 32, 32, scale=0.2)}
    model = lambda p, ids: jnp.tanh(p["table"][ids].mean(1) @ p["kernel"]) @ p["table"].T  # noqa: E731
    return params, model, jnp.asarray(np.random.default_rng(0).zipf(1.5, (128, 6)) % 300)


def from_linen(module, x):
    params = module.init(KEY, x)["params"]
    return params, lambda p, x: module.apply({"params": p}, x), x


def recurrent():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(6)(nn.RNN(nn.GRUCell(32))(x.reshape(len(x), 5, -1))[:, -1])

    return from_linen(Net(), correlated(160))


def convolutional():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x.reshape(-1, 6, 6, 2)))
            x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
            x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2)(x))
            return nn.Dense(6)(x.reshape(len(x), -1))

    return from_linen(Net(), correlated(72))


def attention():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.reshape(len(x), 4, 24)
            return nn.Dense(6)(nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(4)(x, x)).mean(1))

    return from_linen(Net(), correlated(96))


def nnx_state():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(48, 64, rngs=rngs), nnx.Linear(64, 8, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.first(x)))

    graph, state = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    return state, lambda p, x: nnx.merge(graph, p)(x), correlated(48)


def half_precision():
    params, model, x = scanned()
    return jax.tree.map(lambda w: w.astype(jnp.bfloat16), params), model, x


NETWORKS = (scanned, experts, tied, recurrent, convolutional, attention, nnx_state, half_precision)
QUICK = (scanned, experts)


@pytest.mark.parametrize(
    "network",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS],
    ids=lambda n: n.__name__,
)
def test_every_network(network):
    params, model, x = network()
    target = round(mz.tree.nbytes(params) * (2 if network is half_precision else 1) / 6)
    known, held = [x[:32], x[32:64], x[64:96]], x[96:]
    wanted = model(params, held)

    @functools.cache
    def error(calibrated):
        given = {"calibrate": (model, known)} if calibrated else {}
        packed = mz.compress(params, mz.smallest(bytes=target), **given)
        assert 0.99 * target <= file_sizes(packed).total <= target
        found = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(mz.unpack(packed)))
        return float(jnp.mean(jnp.square((model(found, held) - wanted).astype(jnp.float32))))

    assert error(True) < 0.8 * error(False)
