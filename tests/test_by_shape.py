"""Leaves that are computed in batches of one shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.by_shape import map_by_shape, shape_batches

SHAPES = [(3, 4), (5,), (3, 4), (), (0, 2), (5,), (3, 4), (0, 2)]


@pytest.mark.parametrize("dtype", [bool, jnp.float32, jnp.bfloat16, jnp.uint8])
def test_each_leaf_gets_its_own(dtype):
    leaves = [jnp.full(shape, n % 2 if dtype is bool else n, dtype) for n, shape in enumerate(SHAPES)]
    labels = ["a", "b", "a", "b", "a", "b", "b", "a"]

    def tell(label, x):
        return 2 * x.astype(jnp.float32) + (label == "b")

    found = jax.jit(lambda leaves: map_by_shape(tell, leaves, labels=labels))(leaves)
    jax.tree.map(np.testing.assert_array_equal, found, list(map(tell, labels, leaves)))
    jax.tree.map(np.testing.assert_array_equal, found, map_by_shape(tell, leaves, labels=labels))


def test_what_goes_together():
    def batches(*leaves):
        found.append(shape_batches(leaves, [0, 0, 0, 1, 0, 0, 0]))
        return 0

    found = []
    large = jnp.zeros((1025, 1024))
    leaves = [jnp.ones(2), large, jnp.ones(2), jnp.ones(2), jnp.ones(2, jnp.bfloat16), large, jnp.ones(2)]
    jax.eval_shape(batches, *leaves)
    batches(*leaves)
    assert found == [[[0, 2, 6], [1], [3], [4], [5]], [[n] for n in range(7)]]


def test_leaves_of_one_shape_are_one_program():
    """A slice at a place that XLA knows is a loop of its own, whatever is fused with it."""

    def slices(count):
        leaves = [jnp.ones((8, 16))] * count
        step = jax.jit(lambda leaves: map_by_shape(lambda x: jnp.cumsum(x + 1.0, axis=1), leaves))
        return step.lower(leaves).compile().as_text().count(", slice={")

    assert slices(24) == slices(6)
