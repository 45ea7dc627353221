"""Which axis of a leaf is that of its channels: Flax puts outputs last, PyTorch first.

Values tell, but for convolutions of few weights a channel, such as depthwise ones: nine of them hardly pay for a step
of their own by the error of weights, though each counts hundreds of times in the outputs. There the window tells.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import LeafError, TransformError

__all__ = ["check_axis", "find_axis"]

_STEP_BITS = 32


def check_axis(axis: Any) -> int | tuple[int, ...] | str:
    """An axis, several, or "auto".

    Raises:
      TransformError: anything else.

    >>> check_axis([0, -1]), check_axis("auto")
    ((0, -1), 'auto')
    """
    if axis == "auto" or (isinstance(axis, int) and not isinstance(axis, bool)):
        return axis
    several = tuple(axis) if isinstance(axis, tuple | list) else ()
    if not several or not all(isinstance(a, int) and not isinstance(a, bool) for a in several):
        raise TransformError(f"axis is an integer, several such as (0, -1), or 'auto', not {axis!r}")
    if len(set(several)) < len(several):
        raise TransformError(f"axis names one axis twice: {axis!r}")
    return several


def find_axis(
    name: str,
    w: Any,
    axis: int | tuple[int, ...] | str,
    granularity: str,
    layers: tuple[int, ...] = (),
) -> int | tuple[int, ...]:
    """The channel axis of a leaf.

    Args:
      name: of the leaf, for messages. w: its weights. axis: as given to `quantize`. granularity: of `GRANULARITIES`.
      layers: axes that count layers; `axis` then is one of a layer's tensor.

    Returns:
      The axis that was given; for "auto" 0 or -1. Of four axes and more whose window is seen, the first or the last
      two being equally long and the others not, it is the end where the window is not. Otherwise whichever takes
      fewer bits for one squared error: half a bit a weight for each doubling of the error, which is estimated from
      the channels' ranges, and 32 bits a step. -1 where that cannot be told: of fewer than two axes, or under `jit`.
      Of layers all axes whose indices number the channels, counted from the front: only those of the layers per
      tensor and where a layer has fewer than two axes.

    Raises:
      LeafError: the leaf, or the layer, has no such axis.
    """
    shape = tuple(jnp.shape(w))
    rest = [a for a in range(len(shape)) if a not in layers]
    if isinstance(axis, str):
        chosen: tuple[int, ...] = (_best(w, rest, granularity, layers),)
    else:
        chosen = (axis,) if isinstance(axis, int) else axis
        _check_rank(name, len(rest), chosen)
    if not layers:
        # Per tensor several axes mean layers.
        return chosen[0] if isinstance(axis, int | str) or granularity == "tensor" else chosen
    if granularity == "tensor" or len(rest) < 2:
        return layers
    return tuple(sorted({*layers, *(rest[a] for a in chosen)}))


def _check_rank(name: str, rank: int, own: tuple[int, ...]) -> None:
    if rank > len(own) or (rank == len(own) and rank > 1):
        for a in own:
            if not -rank <= a < rank:
                raise LeafError(f"leaf {name!r} has {rank} axes, so it has no channel axis {a}")
        if len({a % rank for a in own}) < len(own):
            raise LeafError(f"of the {rank} axes of leaf {name!r} {own} names one twice")


def _best(w: Any, rest: list[int], granularity: str, layers: tuple[int, ...]) -> int:
    """0 or -1: an index of `rest`, which are the axes that count no layers."""
    shape = [jnp.shape(w)[a] for a in rest]
    if granularity != "tensor" and len(rest) > 3 and (shape[0] == shape[1]) != (shape[-2] == shape[-1]):
        return -1 if shape[0] == shape[1] else 0
    traced = isinstance(w, jax.core.Tracer) or not getattr(w, "is_fully_addressable", True)
    if traced or granularity == "tensor" or len(rest) < 2 or not math.prod(jnp.shape(w)):
        return -1
    first, last = (_bits(w, (*layers, rest[i]), granularity) for i in (0, -1))
    return 0 if first < last else -1


def _bits(w: Any, axes: tuple[int, ...], granularity: str) -> float:
    """The bits of codes and steps at one squared error, less what all axes have in common.

    Rounding to steps of range / levels has an error of step² / 12 a weight, whatever the levels are, so that the
    mean squared range stands for it. Groups are as many along each axis.
    """
    x = np.abs(np.asarray(w).astype(np.float32))
    largest = x.max(axis=tuple(a for a in range(x.ndim) if a not in axes))
    error = max(float(np.mean(np.square(largest.astype(np.float64)))), np.finfo(np.float64).tiny)
    return 0.5 * x.size * math.log2(error) + (_STEP_BITS * largest.size if granularity == "channel" else 0)
