"""A teacher and its data, the same in each process."""

import jax.numpy as jnp
import numpy as np

from modelzip_jax.distillation import Teacher

RANDOM = np.random.default_rng(3)
INPUTS = RANDOM.normal(size=(50, 6)).astype(np.float32)
WEIGHTS = RANDOM.normal(size=(6, 9)).astype(np.float32)
OPTIONS = {"batch_size": 8, "top_k": 4}


def logits(params, x):
    return jnp.tanh(x) @ params["w"]


def teacher(weights=WEIGHTS):
    return Teacher(logits, {"w": jnp.asarray(weights)})
