"""What training a detector of centres minimises: losses of where centres are, of their class and of their box."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from modelzip_jax.models.detector import BOX, CENTRE

__all__ = ["center_losses", "center_targets"]

_SPREAD = (
    0.54 / 6
)  # of the bump around a centre, as a share of the box (Liu et al. 2020, arXiv:1909.00700, eq. 1)


def center_targets(labels: jax.Array, rows: int, columns: int, stride: int) -> tuple[jax.Array, ...]:
    """What the maps ought to be, for boxes `(n, most, 5)` as `make_scenes` gives them.

    Returns:
      heat: `(n, rows, columns)`, 1 in the cell of a centre, and around it a Gaussian as wide as the box says.
      cell: int32 `(n, most)`, the place of each object's centre in a flattened map.
      box: `(n, most, 4)`, what `models.detector.detections` reads there.
      present: bool `(n, most)`.

    >>> boxes = jnp.array([[[0, 8, 16, 24, 1], [-1, -1, -1, -1, -1]]])
    >>> heat, cell, box, present = center_targets(boxes, 4, 4, stride=8)
    >>> cell[0, 0].item(), heat[0, 2].round(2).tolist(), present.tolist()
    (9, [0.0, 1.0, 0.0, 0.0], [[True, False]])
    """
    corners, present = labels[..., :4].astype(jnp.float32) / stride, labels[..., 4] >= 0
    sides = jnp.maximum(corners[..., 2:] - corners[..., :2], 1 / stride)
    centre = (corners[..., :2] + corners[..., 2:]) / 2
    place = jnp.clip(jnp.floor(centre), 0, jnp.array([columns, rows]) - 1)
    across = (jnp.arange(columns) - place[..., :1]) / (sides[..., :1] * _SPREAD)
    down = (jnp.arange(rows) - place[..., 1:]) / (sides[..., 1:] * _SPREAD)
    bump = jnp.exp(-(down[..., :, None] ** 2 + across[..., None, :] ** 2) / 2)
    heat = jnp.max(bump * present[..., None, None], axis=1)
    cell = (place[..., 1] * columns + place[..., 0]).astype(jnp.int32)
    return heat, cell, jnp.concatenate([centre - place, jnp.log(sides)], axis=-1), present


def center_losses(maps: jax.Array, batch: Any) -> jax.Array:
    """The loss of each scene, float32 `(n,)`: of where centres are, and of the class and the box of each object.

    The focal loss of the map of centres (Zhou et al. 2019, arXiv:1904.07850, eq. 1, with α = 2 and β = 4), the
    cross-entropy of the class, and the L1 distance of the box, its sides by their logarithms. All are sums over a
    scene, divided by its objects. A scene without objects counts as one with one.

    Args:
      maps: of `models.detector.CenterDetector`, `(n, rows, columns, 1 + classes + 4)`.
      batch: "inputs" `(n, height, width, channels)` and "labels" as `make_scenes` gives them.
    """
    maps, labels = maps.astype(jnp.float32), batch["labels"]
    scenes, rows, columns, channels = maps.shape
    heat, cell, box, present = center_targets(labels, rows, columns, batch["inputs"].shape[1] // rows)
    logits = maps[..., 0]
    likely, unlikely = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    hit = jnp.exp(2 * unlikely) * likely
    missed = (1 - heat) ** 4 * jnp.exp(2 * likely) * unlikely
    focal = -jnp.sum(jnp.where(heat == 1, hit, missed), axis=(1, 2))
    own = jnp.take_along_axis(maps.reshape(scenes, -1, channels), cell[..., None], axis=1)
    kinds = jnp.maximum(labels[..., 4], 0)
    wrong = optax.softmax_cross_entropy_with_integer_labels(own[..., CENTRE:-BOX], kinds)
    far = jnp.sum(jnp.abs(own[..., -BOX:] - box), axis=-1)
    objects = jnp.sum((wrong + far) * present, axis=1)
    return (focal + objects) / jnp.maximum(jnp.sum(present, axis=1), 1)
