"""Moments of channels: measured on a batch, merged over batches, layers and iterations."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from modelzip_jax.sampling import spread_places

__all__ = ["KINDS", "Channels", "empty", "fold", "measure", "pooled"]

KINDS = ("mean", "mean_abs", "above_mean", "second_moment", "zeros", "range", "gram", "percentiles")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Channels:
    """What was seen of some channels, float32; None for what was not asked for.

    Arrays have the shape of the channels, after an axis for each scan over layers.

    count: how many values of each channel were seen; scalar, or one number a layer.
    mean, mean_abs, second_moment: E[x], E[|x|], E[x²].
    above_mean: E[|x|] with 0 in the place of what is under the mean |x| of its row: of the features that one position
      of one example has. What a sparse code of each sample keeps of them.
    zeros: the fraction of values that are exactly 0 (APoZ, Hu et al. 2016, https://arxiv.org/abs/1607.03250).
    minimum, maximum: of all values.
    gram: E[x xᵀ] over rows of all channels that one output sums over, `(..., n, n)`; n in C order of
      the channels (for a convolution of window and input channels, as in its kernel).
    percentiles: `(len(percentiles), ...)`, from a sample; see `statistics`.
    sample: the rows sampled in one batch; only while statistics are being gathered.

    >>> from modelzip_jax import trace
    >>> x = jnp.array([[1.0, -2.0], [3.0, 0.0]])
    >>> channels = trace.statistics(lambda p, x: x @ p, jnp.ones((2, 5)), [x], kinds=("mean", "range"))[0].inputs
    >>> channels.mean, channels.maximum, channels.zeros
    (Array([ 2., -1.], dtype=float32), Array([3., 0.], dtype=float32), None)
    """

    count: Any
    mean: Any = None
    mean_abs: Any = None
    second_moment: Any = None
    zeros: Any = None
    minimum: Any = None
    maximum: Any = None
    gram: Any = None
    percentiles: Any = None
    sample: Any = None
    above_mean: Any = None


_MEANS = ("mean", "mean_abs", "above_mean", "second_moment", "zeros", "gram")


def measure(
    x: jax.Array, ndim: int, kinds: frozenset[str], patches: jax.Array | None, rows: int, apart: int = 0
) -> Channels:
    """The moments of one batch.

    Args:
      x: any dtype, `(..., *channels)`.
      ndim: the number of axes that are channels.
      kinds: of `KINDS`.
      patches: `(..., n)` rows for the Gram matrix, with axes before that are kept apart (groups).
      rows: how many rows to sample, at most.
      apart: how many of the first channel axes are of different rows (experts).
    """
    over, count = tuple(range(x.ndim - ndim)), math.prod(x.shape[: x.ndim - ndim])
    x32 = x.astype(jnp.float32)
    mean = functools.partial(jnp.mean, axis=over, dtype=jnp.float32)
    return Channels(
        count=jnp.float32(count),
        mean=mean(x32) if "mean" in kinds else None,
        mean_abs=mean(jnp.abs(x32)) if "mean_abs" in kinds else None,
        second_moment=mean(x32 * x32) if "second_moment" in kinds else None,
        zeros=mean(x == 0) if "zeros" in kinds else None,
        minimum=jnp.min(x32, axis=over) if "range" in kinds else None,
        maximum=jnp.max(x32, axis=over) if "range" in kinds else None,
        gram=_gram(patches) if patches is not None else None,
        sample=_sample(x32, ndim, rows) if "percentiles" in kinds else None,
        above_mean=mean(_above_mean(x32, ndim - apart)) if "above_mean" in kinds else None,
    )


def _above_mean(x: jax.Array, ndim: int) -> jax.Array:
    """|x|, and 0 where it is under the mean of its row, of the last `ndim` axes."""
    size = jnp.abs(x)
    mean = jnp.mean(size, axis=tuple(range(x.ndim - ndim, x.ndim)), keepdims=True)
    return jnp.where(size >= mean, size, 0.0)


def _gram(rows: jax.Array) -> jax.Array:
    """E[x xᵀ] of rows `(..., rows, n)`."""
    rows = rows.astype(jnp.float32)
    product = jnp.einsum("...ri,...rj->...ij", rows, rows, precision=lax.Precision.HIGHEST)
    return product / rows.shape[-2]


def _sample(x: jax.Array, ndim: int, rows: int) -> jax.Array:
    """At most `rows` rows, evenly spread: `(rows, *channels)`."""
    flat = x.reshape(-1, *x.shape[x.ndim - ndim :])
    return flat if len(flat) <= rows else flat[spread_places(len(flat), rows)]


def empty(shapes: Channels) -> Channels:
    """Moments of nothing at all, of these shapes."""

    def nothing(field: str, shape: Any) -> Any:
        start = {"minimum": jnp.inf, "maximum": -jnp.inf}.get(field, 0.0)
        return None if shape is None else jnp.full(shape.shape, start, shape.dtype)

    return Channels(**{f.name: nothing(f.name, getattr(shapes, f.name)) for f in dataclasses.fields(shapes)})


def pooled(a: Channels, b: Channels) -> Channels:
    """The moments of all values that two sets were measured on. Samples are not merged.

    >>> one, two = (measure(jnp.array([[v]]), 1, frozenset(["mean"]), None, 0) for v in (1.0, 4.0))
    >>> pooled(pooled(one, one), two).mean
    Array([2.], dtype=float32)
    """
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)
    found: dict[str, Any] = {"count": count}
    for field in _MEANS:
        old, new = getattr(a, field), getattr(b, field)
        if old is not None:
            part = share.reshape(share.shape + (1,) * (old.ndim - share.ndim))
            found[field] = old + (new - old) * part
    if a.minimum is not None:
        found["minimum"] = jnp.minimum(a.minimum, b.minimum)
        found["maximum"] = jnp.maximum(a.maximum, b.maximum)
    return Channels(**found)


def fold(x: Channels, axis: int) -> Channels:
    """The moments over all entries of one of the leading axes, the iterations of a scan."""
    count = jnp.sum(x.count, axis)
    weight = x.count / jnp.maximum(jnp.expand_dims(count, axis), 1.0)
    found: dict[str, Any] = {"count": count}
    for field in _MEANS:
        value = getattr(x, field)
        if value is not None:
            part = weight.reshape(weight.shape + (1,) * (value.ndim - weight.ndim))
            found[field] = jnp.sum(value * part, axis)
    if x.minimum is not None:
        found["minimum"], found["maximum"] = jnp.min(x.minimum, axis), jnp.max(x.maximum, axis)
    if x.sample is not None:  # Its rows follow the leading axes.
        rows = jnp.moveaxis(x.sample, axis, x.count.ndim - 1)
        found["sample"] = rows.reshape(*rows.shape[: x.count.ndim - 1], -1, *rows.shape[x.count.ndim + 1 :])
    return Channels(**found)
