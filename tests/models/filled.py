"""Variables filled by NumPy: compiling an initialisation takes longer than the tests that need one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def fill(model, *inputs, seed=0):
    """Random variables of a Linen module: kernels of variance 2/fan-in, scales and variances around 1."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)

    def leaf(path, x):
        if path[-1].key not in ("kernel", "embedding"):
            center = 1 if path[-1].key in ("scale", "var") else 0
            return jnp.asarray(center + rng.uniform(-0.1, 0.1, x.shape), x.dtype)
        scale = (2 / np.prod(x.shape[:-1])) ** 0.5
        return jnp.asarray(rng.normal(0, scale, x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)
