"""What training a detector of centres minimises: a focal loss of its maps, and the distance of boxes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.models.detector import BOX

__all__ = ["center_losses", "center_targets"]

_SPREAD = (
    0.54 / 6
)  # of the bump around a centre, as a share of the box (Liu et al. 2020, arXiv:1909.00700, eq. 1)


def center_targets(labels: jax.Array, rows: int, columns: int, stride: int, classes: int) -> tuple[Any, ...]:
    """What the maps ought to be, for boxes `(n, most, 5)` as `make_scenes` gives them.

    Returns:
      heat: `(n, rows, columns, classes)`, 1 in the cell of a centre, and around it a Gaussian as wide as the box says.
      cell: int32 `(n, most)`, the place of each object's centre in a flattened map.
      box: `(n, most, 4)`, what `models.detector.detections` reads there.
      present: bool `(n, most)`.

    >>> boxes = jnp.array([[[0, 8, 16, 24, 1], [-1, -1, -1, -1, -1]]])
    >>> heat, cell, box, present = center_targets(boxes, 4, 4, stride=8, classes=2)
    >>> cell[0, 0].item(), heat[0, 2, 1].tolist(), present.tolist()
    (9, [0.0, 1.0], [[True, False]])
    """
    corners, kind = labels[..., :4].astype(jnp.float32) / stride, labels[..., 4]
    present = kind >= 0
    sides = jnp.maximum(corners[..., 2:] - corners[..., :2], 1 / stride)
    centre = (corners[..., :2] + corners[..., 2:]) / 2
    last = jnp.array([columns, rows]) - 1
    place = jnp.clip(jnp.floor(centre), 0, last)
    across = jnp.arange(columns) - place[..., :1]
    down = jnp.arange(rows) - place[..., 1:]
    spread = sides * _SPREAD
    bump = jnp.exp(
        -((down / spread[..., 1:]) ** 2)[..., :, None] / 2
        - ((across / spread[..., :1]) ** 2)[..., None, :] / 2
    )
    own = jax.nn.one_hot(kind, classes) * present[..., None]
    heat = jnp.max(bump[..., None] * own[..., None, None, :], axis=1)
    cell = (place[..., 1] * columns + place[..., 0]).astype(jnp.int32)
    return heat, cell, jnp.concatenate([centre - place, jnp.log(sides)], axis=-1), present


def center_losses(maps: jax.Array, batch: Any) -> jax.Array:
    """The loss of each scene, float32 `(n,)`: focal loss of the maps plus the L1 distance of its objects' boxes.

    Both are sums over a scene, divided by its objects (Zhou et al. 2019, arXiv:1904.07850, eq. 1 to 4, with α = 2 and
    β = 4; boxes by the logarithms of their sides). A scene without objects counts as one with one.

    Args:
      maps: of `models.detector.CenterDetector`, `(n, rows, columns, classes + 4)`.
      batch: "inputs" `(n, height, width, channels)` and "labels" as `make_scenes` gives them.
    """
    maps, labels = maps.astype(jnp.float32), batch["labels"]
    scenes, rows, columns, channels = maps.shape
    stride = batch["inputs"].shape[1] // rows
    heat, cell, box, present = center_targets(labels, rows, columns, stride, channels - BOX)
    logits = maps[..., :-BOX]
    likely, unlikely = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    hit = jnp.exp(2 * unlikely) * likely
    missed = (1 - heat) ** 4 * jnp.exp(2 * likely) * unlikely
    focal = -jnp.sum(jnp.where(heat == 1, hit, missed), axis=(1, 2, 3))
    predicted = jnp.take_along_axis(maps[..., -BOX:].reshape(scenes, -1, BOX), cell[..., None], axis=1)
    far = jnp.sum(jnp.abs(predicted - box) * present[..., None], axis=(1, 2))
    return (focal + far) / jnp.maximum(jnp.sum(present, axis=1), 1)
