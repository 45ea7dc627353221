"""What the tests of checkpoints share."""

import jax
import numpy as np

FILES = [".safetensors", ".npz", ".msgpack"]


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        want = np.asarray(want)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes()


def values(dtype, shape=(3, 5)):
    numbers = np.random.default_rng(0).integers(0, 2, shape)
    return numbers.astype(dtype)
