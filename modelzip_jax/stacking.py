"""Stacked layers: one leaf that holds the weights of many tensors, as scans and vmapped experts have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.patterns import matches, require_matches

__all__ = [
    "LayerAxes",
    "as_layers",
    "check_layer_names",
    "check_layers",
    "stacked",
    "stacked_axes",
    "unstacked",
]

LayerAxes = tuple[tuple[str, tuple[int, ...]], ...]
"""`(path pattern, axes)` pairs: which axes of the leaves that match count layers."""


def as_layers(layers: int | tuple[int, ...] | Mapping[str, Any] | None) -> LayerAxes:
    """What a transform was told of stacked layers: an axis or axes of all leaves, or of those of each pattern.

    >>> as_layers(0), as_layers({"blocks/**": (0, 1)}), as_layers(None)
    ((('**', (0,)),), (('blocks/**', (0, 1)),), ())
    """
    if layers is None:
        return ()
    pairs = layers.items() if isinstance(layers, Mapping) else [("**", layers)]
    each = [(pattern, axes if isinstance(axes, tuple | list) else (axes,)) for pattern, axes in pairs]
    found = tuple((pattern, tuple(axes)) for pattern, axes in each)
    if not all(type(axis) is int and axis >= 0 for _, axes in found for axis in axes):
        raise TransformError(f"layers are axes counted from the front, such as 0 or (0, 1), not {layers!r}")
    if any(len(set(axes)) < len(axes) for _, axes in found):
        raise TransformError(f"layers name one axis twice: {layers!r}")
    return tuple((pattern, axes) for pattern, axes in found if axes)


def check_layers(layers: LayerAxes, weights: Any) -> None:
    """`check_layer_names` of weights none of which are absent: of others, whoever left some out asks for all."""
    if not trees.has_absent(weights):
        check_layer_names(layers, [name for name, _ in trees.named_leaves(weights)])


def check_layer_names(layers: LayerAxes, names: list[str]) -> None:
    """Raises `PatternError` if layers are named and none of the leaves is among them."""
    if layers and names and not any(matches(p, name) for p, _ in layers for name in names):
        require_matches([layers[0][0]], names)


def stacked_axes(layers: LayerAxes, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a leaf that count layers; the first pattern that matches decides.

    Raises:
      LeafError: the leaf does not have them.
    """
    axes = next((axes for pattern, axes in layers if matches(pattern, name)), ())
    if any(axis >= len(shape) for axis in axes):
        raise LeafError(
            f"leaf {name!r} of shape {shape} has no axes {axes} of layers; name the stacked leaves: "
            "layers={'blocks/**': 0}"
        )
    return axes


def stacked(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`(layers, *rest)`, the layers in C order of their axes.

    >>> stacked(jnp.zeros((4, 2, 3)), (0, 1)).shape
    (8, 3)
    """
    moved = jnp.moveaxis(x, axes, tuple(range(len(axes))))
    count = math.prod(moved.shape[: len(axes)])
    return moved if len(axes) == 1 else moved.reshape(count, *moved.shape[len(axes) :])


def unstacked(x: jax.Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `stacked`, to a leaf of `shape`."""
    rest = [n for axis, n in enumerate(shape) if axis not in axes]
    split = x.reshape(*(shape[axis] for axis in axes), *rest)
    return jnp.moveaxis(split, tuple(range(len(axes))), axes)
