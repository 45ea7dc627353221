import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import LeafError
from modelzip_jax.masking.scores.distances import geometric_median


def sums(w, axis):
    """Direct, in float64."""
    rows = np.moveaxis(np.asarray(w, np.float64), axis, 0).reshape(w.shape[axis], -1)
    return np.linalg.norm(rows[:, None] - rows[None], axis=-1).sum(1)


@pytest.mark.parametrize(("shape", "axis"), [((3, 3, 4, 7), -1), ((3, 3, 4, 7), 2), ((5, 6), 0), ((9,), -1)])
def test_sums_of_distances(shape, axis):
    w = np.random.default_rng(0).normal(3.0, 1.0, shape).astype(np.float32)
    got = geometric_median(axis)({"w": jnp.asarray(w)})["w"]
    assert got.shape == w.shape
    for index in np.ndindex(*[1 if a == axis % len(shape) else n for a, n in enumerate(shape)]):
        row = list(index)
        row[axis] = slice(None)
        np.testing.assert_allclose(got[tuple(row)], sums(w, axis), rtol=1e-5)


def test_half_precision_and_equal_filters():
    w = np.full((4, 3), 7.0) + np.array([0.0, 0.0, 1.0])
    got = geometric_median()(jnp.asarray(w, jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[0], [2.0, 2.0, 4.0], rtol=1e-6)


def test_channels_nearest_to_the_others_go_first():
    w = np.ones((2, 5), np.float32)
    w[0] = [1.0, 10.0, 5.2, 4.0, 2.0]  # Magnitude would take the first, the median takes the fourth.
    pruned = mz.unpack(
        mz.compress(
            {"kernel": jnp.asarray(w)},
            mz.prune(geometric_median(), sparsity=0.2, structure=mz.structures.channel()),
        )
    )
    assert np.flatnonzero(np.abs(pruned["kernel"]).sum(0) == 0).tolist() == [3]


def test_it_works_under_jit_and_refuses_leaves_without_the_axis():
    w = {"w": jnp.ones((2, 3))}
    np.testing.assert_array_equal(jax.jit(geometric_median())(w)["w"], 0)
    with pytest.raises(LeafError, match="'w' of shape"):
        geometric_median(2)(w)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 0, 2)])
def test_empty_leaves_have_empty_distances(shape):
    assert mz.scores.geometric_median()({"w": jnp.zeros(shape)})["w"].shape == shape
