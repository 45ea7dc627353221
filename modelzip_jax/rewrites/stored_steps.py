"""The steps of packed weights where a product holds them: laid out through reshapes, transposes and scans."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.masking.masked import Masked
from modelzip_jax.packed import PackedArray
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.trace.usage.use import Use
from modelzip_jax.trace.usage.views import Axis, View

__all__ = ["Unsuitable", "steps_in_product"]


class Unsuitable(TransformError):
    """The stored codes of a leaf cannot go into this product as they are."""


def steps_in_product(use: Use, packed: PackedArray, summed: Sequence[int]) -> jax.Array:
    """The steps of a leaf's stored codes, for the operand that a product has.

    Args:
      use: the product. packed: the leaf, symmetric codes of at most 8 bits. summed: axes of the operand that are.

    Returns:
      `(*layers, *operand)`, 1 along axes on which steps do not depend.

    Raises:
      Unsuitable: not stored so; channels that are summed over; other leaves in the same operand.
    """
    inner = packed.inner if isinstance(packed, Masked) else packed
    if not isinstance(inner, Quantized):
        raise Unsuitable(f"{use.leaf!r} is stored as {inner.tag!r}, not as codes with steps: mz.quantize(8)")
    groups, shape = inner.groups, packed.shape
    if inner.zero is not None or inner.low != -(1 << (inner.codes.bits - 1)):
        raise Unsuitable(
            f"{use.leaf!r} has zero points, or one bit: quantize it with symmetric=True and 2 to 8 bits"
        )
    if groups.kind == "group":
        raise Unsuitable(f"{use.leaf!r} is stored in groups, which are summed over: granularity='channel'")
    view = use.view
    axes = [*(layer.axis for layer in view.layers), *view.axes]
    if not view.complete or not all(axis.full for axis in axes) or ":while" in use.path:
        raise Unsuitable(f"{use.leaf!r} is not whole, and not alone, in the product {use.path}")
    channels = groups.axes(shape)
    table = jnp.reshape(inner.step, [n if a in channels else 1 for a, n in enumerate(shape)])
    if not channels:
        table = jnp.reshape(inner.step, (1,) * len(shape))
    places = [
        _places(view, axes, a) if a in channels else np.zeros((1,) * len(axes), int)
        for a in range(len(shape))
    ]
    found = table[tuple(places)]
    layers = len(view.layers)
    if any(found.shape[layers + a] != 1 for a in summed):
        raise Unsuitable(
            f"{use.leaf!r} has a step for each index of axis {groups.axis}, which {use.path} sums over: quantize it "
            f"with axis={use.output[-1] if use.output else -1}"
        )
    return jnp.broadcast_to(found, (*(axis.size for axis in axes[:layers]), *found.shape[layers:]))


def _places(view: View, axes: Sequence[Axis], leaf_axis: int) -> np.ndarray:
    """The index along one of the leaf's axes of each element of the operand, 1 where it does not depend on an axis."""
    total = np.full((1,) * len(axes), view.starts[leaf_axis])
    for position, axis in enumerate(axes):
        walk, inner = np.zeros(axis.size, int), axis.size
        for factor in axis.factors:
            inner //= factor.size
            if factor.axis == leaf_axis:
                walk += np.arange(axis.size) // inner % factor.size * factor.step
        if walk.any():
            total = total + walk.reshape([-1 if p == position else 1 for p in range(len(axes))])
    return total
