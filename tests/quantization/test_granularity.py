"""Sums and counts of groups: against float64, for every granularity and for sizes that are folded."""

import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.quantization.granularity import Granularity

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("axis", [0, -1, (0, -1)])
@pytest.mark.parametrize("kind", ["tensor", "channel", "group"])
@pytest.mark.parametrize(
    "shape", [(), (7,), (40_001,), (0, 3), (3, 0), (131, 200), (200, 131), (1, 20_000), (9, 33, 97)]
)
def test_sums_and_counts(shape, kind, axis):
    if isinstance(axis, tuple) and len(shape) < 2:
        pytest.skip("several axes take leaves that have them")
    groups = Granularity(kind, axis, 64)
    x = RNG.normal(size=shape).astype("f4")
    found = groups.sums(jnp.asarray(x))
    assert found.shape == groups.steps_shape(shape)
    exact = np.asarray(groups.reduce(jnp.sum, jnp.asarray(x)), np.float64)
    np.testing.assert_allclose(found, exact, atol=2e-6 * max(x.size, 1) ** 0.5 * 4)
    np.testing.assert_allclose(
        float(jnp.sum(found)), x.sum(dtype=np.float64), atol=1e-4 * max(x.size, 1) ** 0.5
    )
    ones = np.asarray(groups.reduce(jnp.sum, jnp.ones(shape)))
    np.testing.assert_array_equal(np.broadcast_to(groups.counts(shape), ones.shape), ones)
