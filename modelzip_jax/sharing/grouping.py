"""Which neurons have one weight vector: the K nearest to what a training sample shows, or to each other."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.sharing.scaling import scaled, unit
from modelzip_jax.sharing.sums import matmul

__all__ = ["draw_features", "group_neurons", "share_initialization"]


def draw_features(inputs: jax.Array, kernel_shape: tuple[int, ...], count: int, key: jax.Array) -> jax.Array:
    """What a layer's neurons see at random positions of random samples.

    Args:
      inputs: of the layer, `(samples, *positions, channels)`, as many position axes as the kernel has
        spatial ones for a convolution; for a dense layer any number.
      kernel_shape: of the layer, `(*window, channels, neurons)`.
      count: how many to draw, with repetition.

    Returns:
      `(count, fan_in)`, windows flattened as the kernel's axes before the last are. A window lies within the
      input.

    Raises:
      TransformError: the kernel does not fit the inputs.

    >>> draw_features(jnp.ones((5, 8, 8, 3)), (3, 3, 3, 16), 7, jax.random.key(0)).shape
    (7, 27)
    """
    *window, channels, _ = kernel_shape
    positions = inputs.shape[1:-1]
    window = window or [1] * len(positions)
    if inputs.shape[-1] != channels or len(window) != len(positions) or any(
        w > n for w, n in zip(window, positions, strict=False)
    ):  # fmt: skip
        raise TransformError(f"inputs of shape {inputs.shape} do not fit a kernel of shape {kernel_shape}")
    limits = jnp.array([len(inputs), *(n - w + 1 for n, w in zip(positions, window, strict=True))])
    starts = jax.random.randint(key, (count, len(limits)), 0, limits)

    def cut(start: jax.Array) -> jax.Array:
        corner = (*start, jnp.zeros((), start.dtype))
        return jax.lax.dynamic_slice(inputs, corner, (1, *window, channels)).reshape(-1)

    return jax.vmap(cut)(starts)


@functools.partial(jax.jit, static_argnums=1)
def group_neurons(kernel: jax.Array, factor: int, features: jax.Array | None = None) -> jax.Array:
    """Groups of `factor` neurons with similar weight vectors.

    One group after the other: the neurons in no group yet that are nearest to the next features, by the angle
    between weight vector and features, or, without features, to the first neuron in no group yet, by
    distance. The last group may be smaller.

    Args:
      kernel: `(..., neurons)`. factor: neurons in a group.
      features: `(at least 1, fan_in)`, such as from `draw_features`, taken in turn, or None.

    Returns:
      The group of each neuron: int32 `(neurons,)`, from 0 to ceil(neurons / factor) - 1.

    >>> group_neurons(jnp.array([[1.0, 5.0, 1.1, 5.2]]), 2)
    Array([0, 1, 0, 1], dtype=int32)
    """
    columns = _near_one(jax.lax.stop_gradient(kernel).reshape(-1, kernel.shape[-1]).astype(jnp.float32).T)
    rays = None if features is None else _unit(_near_one(features.astype(jnp.float32)))
    neurons = len(columns)

    def distances(group: jax.Array, free: jax.Array) -> jax.Array:
        if rays is None:
            return jnp.sum(jnp.square(columns - columns[jnp.argmax(free)][None]), axis=1)
        return -matmul(_unit(columns), rays[group % len(rays)])

    def take(group: jax.Array, index: jax.Array) -> jax.Array:
        free = index < 0
        order = jnp.argsort(jnp.where(free, distances(group, free), jnp.inf))
        nearest = jnp.zeros(neurons, bool).at[order[:factor]].set(True)
        return jnp.where(nearest & free, group, index)

    return jax.lax.fori_loop(0, -(-neurons // factor), take, jnp.full(neurons, -1, jnp.int32))


def _unit(rows: jax.Array) -> jax.Array:
    norm = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norm > 0, norm, 1.0)


def _near_one(x: jax.Array) -> jax.Array:
    """In a unit in which lengths have squares."""
    return scaled(x, -unit([x]))


def group_means(kernel: jax.Array, index: jax.Array, groups: int) -> jax.Array:
    """The mean weight vector of each group: `(..., groups)`."""
    member = jax.nn.one_hot(index, groups, dtype=kernel.dtype)
    shares = member / jnp.sum(member, axis=0, keepdims=True)
    means = matmul(kernel.reshape(-1, kernel.shape[-1]), shares)
    return means.reshape(*kernel.shape[:-1], groups)


def share_initialization(kernel: jax.Array, factor: int, inputs: jax.Array, key: jax.Array) -> jax.Array:
    """A layer's initial weights, in which groups of neurons that answer to the same input have one vector.

    1. Draw a training sample. 2. Take the features that the layer sees at a position. 3. Find the `factor`
    nearest neurons. 4. Give them one weight vector, their mean at their mean length. 5. Repeat over the
    samples until every neuron is in a group. 6. Initialise the network from the result and train it with
    `mz.share_neurons(factor)`, which finds the groups again and trains each vector once.

    Args:
      kernel: initial weights `(..., neurons)`. factor: neurons in a group.
      inputs: of the layer for some training samples, as in `draw_features`.

    Returns:
      Weights of the kernel's shape and dtype, with at most ceil(neurons / factor) distinct vectors.

    >>> k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
    >>> w = share_initialization(jax.random.normal(k1, (9, 12)), 4, jax.random.normal(k2, (50, 9)), k3)
    >>> len(jnp.unique(w, axis=1).T)
    3
    """
    groups = -(-kernel.shape[-1] // factor)
    features = draw_features(inputs, kernel.shape, groups, key)
    index = group_neurons(kernel, factor, features)
    flat = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.promote_types(kernel.dtype, jnp.float32))
    e = unit([flat])
    flat = scaled(flat, -e)
    means = group_means(flat, index, groups)
    target = group_means(jnp.linalg.norm(flat, axis=0)[None], index, groups)
    vectors = scaled(_unit(means.T).T * target, e)
    return vectors[:, index].reshape(kernel.shape).astype(kernel.dtype)
