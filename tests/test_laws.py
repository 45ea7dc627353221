"""Every transform of ours, alone and combined, over every kind of tree, obeys the laws."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_chains import HOW, combined
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modelzip_jax as mz

RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def trees():
    mlp = eqx.filter(eqx.nn.MLP(6, 4, 6, 1, key=jax.random.key(0)), eqx.is_array)
    linen = nn.Dense(4).init(jax.random.key(0), jnp.ones((1, 6)))["params"]
    state = nnx.state(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Param)
    return {
        "dict": {"layer": {"kernel": normal(6, 4), "bias": np.zeros(4, "f4")}, "scale": np.float32(0.3)},
        "empty": {"kernel": normal(6, 4), "none": np.zeros((0, 4), "f4")},
        "half": {
            "kernel": jnp.asarray(normal(6, 4), jnp.bfloat16),
            "bias": jnp.asarray(normal(4), jnp.float16),
        },
        "nested": [normal(6, 4), (normal(4), [normal(6, 4)])],
        "linen": linen,
        "nnx": state,
        "equinox": mlp,
    }


TREES = trees()
CUBIC = mz.schedules.cubic(0.75, begin=0, end=3)
PRUNES = [
    mz.prune(sparsity=0.5),
    mz.prune(sparsity=0.3, allocation="global"),
    mz.prune(sparsity=CUBIC, every=1),
    mz.prune(sparsity=CUBIC, every=2, allocation="global"),
]


def quantizer(bits, granularity, group_size, **options):
    size = {"group_size": group_size} if granularity == "group" else {}
    return mz.quantize(bits, granularity=granularity, **size, **options)


quantizers = st.builds(
    quantizer,
    st.integers(1, 8),
    granularity=st.sampled_from(["tensor", "channel", "group"]),
    group_size=st.sampled_from([4, 7]),
    axis=st.sampled_from([-1, 0]),
    symmetric=st.booleans(),
    learned=st.booleans(),
    range=st.sampled_from(["max", "mse"]),
)
WAVELETS = [mz.wavelet("haar", 2, -1), mz.wavelet("db2", 1, 0, packets=True), mz.cosines(3, -1, keep=2)]
LINEAR_ULP = 8

CLUSTERS = [
    mz.cluster(4),
    mz.cluster(3, every=1, granularity="model"),
    mz.cluster(4, temperature=0.1, zero=True),
    mz.cluster(4, block=3, every=2, learned=False),
]

links = st.sampled_from([*PRUNES, *WAVELETS, mz.identity()])
ends = links | quantizers | st.sampled_from([*CLUSTERS, mz.dorefa(3)])
chains = st.builds(lambda first, last: mz.chain(*first, last), st.lists(links, max_size=2), ends)


def allowed(chained):
    """Wavelets decode by sums, all else bit for bit."""
    return LINEAR_ULP if any(part in WAVELETS for part in chained.parts) else 0


def any_case(examples):
    def decorate(test):
        given_case = given(transform=chains, name=st.sampled_from(sorted(TREES)), how=st.sampled_from(HOW))(
            test
        )
        return settings(
            max_examples=examples, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )(given_case)  # fmt: skip

    return decorate


@any_case(2)
def test_laws(transform, name, how):
    mz.testing.check_laws(combined(transform, TREES[name], how), TREES[name], steps=2, ulp=allowed(transform))


@pytest.mark.slow
@any_case(60)
def test_laws_at_length(transform, name, how):
    mz.testing.check_laws(combined(transform, TREES[name], how), TREES[name], steps=3, ulp=allowed(transform))
