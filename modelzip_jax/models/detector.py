"""A small anchor-free object detector: each object is the point of its centre.

After CenterNet (Zhou, Wang & Krähenbühl 2019, "Objects as Points", https://arxiv.org/abs/1904.07850): a map of logits
of a centre, and at each cell the class and the box that an object with its centre there would have. No anchors, and no
suppression of overlapping boxes: peaks of the map are the detections. Unlike there, classes have no map each: with few
objects a softmax of the class learns sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modelzip_jax.models.input_checks import check_images

__all__ = ["CenterDetector", "detections"]

CENTRE = 1  # logit of a centre
BOX = 4  # numbers of a box: where in its cell the centre is, and logarithms of width and height in cells
_RARE = (
    -2.19
)  # logit of an object before training, a probability of 0.1: most cells have none (the paper's §4.3)


class CenterDetector(nn.Module):
    """Convolutions with batch normalisation; each stage halves the resolution and ends in its own width.

    Called with floats (n, height, width, channels), at least 8×8 pixels, it returns float32 (n, height/stride,
    width/stride, 1 + num_classes + 4): a logit of a centre, logits of its class, and the box (`detections` reads them).
    The stride is 2 for each stage. Variables: `params` and `batch_stats`; with `train=True`, apply it with
    `mutable=["batch_stats"]`.

    Attributes:
      num_classes: kinds of objects.
      widths: channels of each stage.
      depths: convolutions of each stage, the first of which has the stride 2.
      dtype: of the convolutions; the outputs are float32 whatever it is.
      param_dtype: of the parameters.

    Raises:
      ModelError: the inputs are integers, not of rank 4, or smaller than 8×8.

    >>> maps, variables = CenterDetector().init_with_output(jax.random.key(0), jnp.zeros((1, 64, 64, 1)))
    >>> maps.shape, sum(x.size for x in jax.tree.leaves(variables["params"]))
    ((1, 8, 8, 15), 216575)
    """

    num_classes: int = 10
    widths: Sequence[int] = (16, 48, 96)
    depths: Sequence[int] = (1, 1, 3)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps float32 (n, rows, columns, 1 + num_classes + 4); `train` normalises by the batch's own statistics."""
        check_images(x, "CenterDetector", smallest=8)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for width, depth in zip(self.widths, self.depths, strict=True):
            for number in range(depth):
                strides = 1 if number else 2
                init = nn.initializers.he_normal()
                x = nn.Conv(width, (3, 3), strides, padding=1, use_bias=False, kernel_init=init, **dtypes)(x)
                x = nn.relu(nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, **dtypes)(x))

        def bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jnp.where(jnp.arange(shape[0]) < CENTRE, _RARE, 0.0).astype(dtype)

        channels = CENTRE + self.num_classes + BOX
        return nn.Conv(channels, (1, 1), bias_init=bias, **dtypes)(x).astype(jnp.float32)


def detections(
    maps: Float[Array, "scenes rows columns channels"], stride: int, count: int = 20
) -> Float[Array, "scenes detections 6"]:
    """The `count` likeliest objects of each scene: left, top, right, bottom in pixels, score, class.

    A cell counts where no neighbour of its 3×3 has a larger logit of a centre (the paper's §4). Its score for a class
    is the probability of a centre times that of the class, so that a cell may stand there for several. Jittable.

    Args:
      maps: of `CenterDetector`.
      stride: pixels of a cell.
      count: detections, at most rows × columns × classes; scores fall. Those of cells that do not count are 0.

    >>> cell = jnp.array([9.0, 9.0, 0.0, 0.5, 0.5, 0.0, jnp.log(2.0)])
    >>> maps = jnp.full((1, 2, 2, 7), -9.0).at[0, 1, 0].set(cell)
    >>> detections(maps, stride=8, count=1)[0, 0].round(2).tolist()
    [0.0, 4.0, 8.0, 20.0, 1.0, 0.0]
    """
    scenes, _, columns, channels = maps.shape
    classes = channels - CENTRE - BOX
    centres, kinds, boxes = maps[..., :CENTRE], maps[..., CENTRE:-BOX], maps[..., -BOX:]
    peaks = centres >= nn.max_pool(centres, (3, 3), strides=(1, 1), padding="SAME")
    scores = jnp.where(peaks, jax.nn.sigmoid(centres) * jax.nn.softmax(kinds), 0.0)
    found, index = jax.lax.top_k(scores.reshape(scenes, -1), count)
    cell, kind = index // classes, index % classes
    box = jnp.take_along_axis(boxes.reshape(scenes, -1, BOX), cell[..., None], axis=1)
    centre = jnp.stack([cell % columns, cell // columns], axis=-1) + box[..., :2]
    half = jnp.exp(box[..., 2:]) / 2
    corners = jnp.concatenate([centre - half, centre + half], axis=-1) * stride
    return jnp.concatenate([corners, found[..., None], kind[..., None]], axis=-1)
