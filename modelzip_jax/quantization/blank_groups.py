"""Groups of weights that are all zero, and so have no range that a step could come from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view, host_views, placed
from modelzip_jax.quantization.granularity import Granularity, max_abs
from modelzip_jax.quantization.host_codes import blank_on_host

__all__ = ["is_blank", "replaced"]


def is_blank(w: jax.Array, groups: Granularity) -> jax.Array:
    """Which groups of a leaf's latents are all zero: booleans `(groups, channels)`.

    Weights that can be read on the host are: nothing is compiled for their shape.

    >>> is_blank(jnp.array([[0.0, 1.0], [0.0, 0.0]]), Granularity("channel", -1, 1))
    Array([[ True, False]], dtype=bool)
    """
    seen = host_view(w) if len(groups.axes(w.shape)) < 2 else None
    if seen is not None:
        return placed(blank_on_host(seen, groups))
    return groups.reduce(max_abs, w) == 0 if w.size else jnp.zeros(groups.steps_shape(w.shape), bool)


def replaced(step: jax.Array, blank: jax.Array, by: float) -> jax.Array:
    """The steps, `by` where a group is blank."""
    seen, other = host_views(step, blank), np.asarray(by, step.dtype)
    return jnp.where(blank, other, step) if seen is None else placed(np.where(seen[1], other, seen[0]))
