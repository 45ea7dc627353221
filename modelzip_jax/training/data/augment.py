"""What is done to images between memory and network, jittable: random crops and flips, standardising."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

__all__ = ["normalize", "random_crop", "random_flip"]


def normalize(images: ArrayLike, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Standardises images: `(images - mean) / std`, as float32.

    images: uint8 `(..., channels)`. mean, std: levels, in the unit of `images` (0 to 255), one number or
    one a channel; `mz.training.data.spec(name)` has those of every named set.

    >>> normalize(jnp.full((1, 1, 1, 3), 100, jnp.uint8), mean=50, std=(10, 25, 50)).ravel()
    Array([5., 2., 1.], dtype=float32)
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (jnp.asarray(images, jnp.float32) - mean) / std


def random_crop(
    key: jax.Array, images: jax.Array, padding: int = 4, fill: int | Sequence[int] = 0
) -> jax.Array:
    """Shifts every image by its own random offset of at most `padding` pixels; its size stays.

    The augmentation of He et al. 2016 (https://arxiv.org/abs/1512.03385, section 4.2): a random crop of
    the padded image.

    images: `(batch, height, width, channels)`, any dtype. fill: level of the padding, one number or one
    a channel.

    >>> images = jnp.arange(16).reshape(1, 4, 4, 1)
    >>> random_crop(jax.random.key(0), images, padding=1).shape
    (1, 4, 4, 1)
    """
    batch, height, width, channels = images.shape
    fills = jnp.broadcast_to(jnp.asarray(fill, images.dtype), (channels,))
    padded = jnp.full((batch, height + 2 * padding, width + 2 * padding, channels), fills)
    padded = padded.at[:, padding : padding + height, padding : padding + width].set(images)
    offsets = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every image left to right with probability one half.

    images: `(batch, height, width, channels)`, any dtype.

    >>> images = jnp.arange(3).reshape(1, 1, 3, 1)
    >>> random_flip(jax.random.key(1), images).ravel().tolist() in ([0, 1, 2], [2, 1, 0])
    True
    """
    flip = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
