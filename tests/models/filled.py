"""Variables filled by NumPy: compiling an initialisation takes longer than the tests that need one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def fill(model, *inputs, seed=0):
    """Random variables of a Linen module: kernels of variance 2/fan-in, everything else in [0.9, 1.1]."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)

    def leaf(x):
        if len(x.shape) < 2:
            return jnp.asarray(rng.uniform(0.9, 1.1, x.shape), x.dtype)
        scale = (2 / np.prod(x.shape[:-1])) ** 0.5
        return jnp.asarray(rng.normal(0, scale, x.shape), x.dtype)

    return jax.tree.map(leaf, shapes)
