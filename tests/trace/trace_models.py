"""Small models that the tests of `modelzip_jax.trace` look into."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def fill(shapes, seed=0):
    """Random arrays of these shapes; variances positive."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype)
        values = rng.normal(size=x.shape) * (1.0 / max(np.prod(x.shape[:-1]), 1.0)) ** 0.5
        positive = jax.tree_util.keystr(path[-1:]).find("var") >= 0
        return jnp.asarray(np.abs(values) + 0.5 if positive else values, x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def variables(model, *inputs):
    """Random variables of a Linen module; nothing is compiled."""
    return fill(jax.eval_shape(model.init, jax.random.key(0), *inputs))


def normal(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class MobileNet(nn.Module):
    """Depthwise and pointwise convolutions with batch normalisation and a residual."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        y = nn.relu(norm()(nn.Conv(8, (3, 3), feature_group_count=8)(x)))
        x = x + norm()(nn.Conv(8, (1, 1))(y))
        y = nn.relu(nn.Conv(12, (3, 3), strides=2, feature_group_count=4)(x))
        return nn.Dense(5)(y.mean((1, 2)))


class ViT(nn.Module):
    """Patches, a class token, pre-norm attention and MLP."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), strides=4, padding="VALID")(x).reshape(x.shape[0], -1, 8)
        token = self.param("cls", nn.initializers.normal(), (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 8)), x], 1)
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8)(h)
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


def moments(rows):
    """The statistics of rows `(n, channels)`, by NumPy in float64."""
    rows = np.asarray(rows, np.float64)
    return {
        "mean": rows.mean(0),
        "mean_abs": np.abs(rows).mean(0),
        "above_mean": np.where(np.abs(rows) >= np.abs(rows).mean(1, keepdims=True), np.abs(rows), 0).mean(0),
        "second_moment": (rows**2).mean(0),
        "zeros": (rows == 0).mean(0),
        "minimum": rows.min(0),
        "maximum": rows.max(0),
        "gram": rows.T @ rows / len(rows),
    }


def inputs_of_layers(model, tree, *inputs):
    """What each Linen layer with a kernel is called with, by the kernel's name, `(rows, channels)`."""
    axes = {}

    def record(tree, *inputs):
        seen = {}

        def look(call, args, kwargs, context):
            module = context.module
            layer = isinstance(module, nn.Dense | nn.Conv | nn.DenseGeneral)
            if layer and context.method_name == "__call__":
                name = "/".join(("params", *module.path, "kernel"))
                seen[name], axes[name] = args[0], np.atleast_1d(getattr(module, "axis", -1))
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            model.apply(tree, *inputs)
        return seen

    seen = jax.jit(record)(tree, *inputs)
    return {n: x.reshape(-1, int(np.prod([x.shape[a] for a in axes[n]]))) for n, x in seen.items()}
