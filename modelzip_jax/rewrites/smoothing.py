"""SmoothQuant: outliers of activations moved into the weights that read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.rewrites.channel_readings import described, input_values
from modelzip_jax.rewrites.channel_scaling import Rescaled, finished, finite_leaves, kernels, unit_ranges
from modelzip_jax.trace.symmetry.scalable_channels import scale_groups
from modelzip_jax.tree import PyTree

__all__ = ["smooth"]


def smooth(
    apply_fn: Callable[..., Any],
    params: PyTree,
    stats: PyTree,
    *inputs: Any,
    alpha: float = 0.5,
    only: str | Sequence[str] | None = None,
) -> Rescaled:
    """The same network with input channels divided by s_j = max|X_j|^α / max|W_j|^(1-α), weights multiplied by it.

    The division is folded into what makes the channels, as far as it is exact: the scale and bias of a layer, RMS
    or batch norm, or a linear layer's kernel and bias where all between is positively homogeneous (relu, a gate's
    product, attention's values). Layers that read the same channels (query, key and value) get one factor,
    with max|W_j| over all of them. Behind a GELU, or where a residual stream reads the channels too, nothing
    can be folded: `left` says so, and names grouped convolutions and kernels that are used in part.

    Args:
      apply_fn, params, *inputs: as for `trace.couplings`; shapes suffice for inputs.
      stats: `trace.statistics(apply_fn, params, batches, kinds=("range",))`.
      alpha: how much of the range moves into the weights, in [0, 1]. At 1 all channels have the range 1.
      only: path patterns of the kernels to smooth; None: all that can be.

    Returns:
      `Rescaled`; its `scales` are those of the kernels' input channels, or their inverses.

    Raises:
      TransformError: nothing can be smoothed, or not what `only` names, with the equation in the way; `alpha`.
      TraceError: the statistics lack a kernel or its range. LeafError: they are another model's.
      PatternError: a pattern matches no leaf. NonFiniteError: a kernel or its statistics hold NaN or infinity.

    Xiao et al. 2022, SmoothQuant, arXiv:2211.10438, eq. 3 and 4.

    >>> import jax, jax.numpy as jnp
    >>> from modelzip_jax import trace
    >>> params = {"scale": jnp.ones(2), "down": jnp.array([[1.0], [1.0]])}
    >>> model = lambda p, x: jax.nn.relu(jnp.tanh(x) * p["scale"]) @ p["down"]
    >>> x = jnp.arctanh(jnp.array([[0.25, 0.0625]]))
    >>> stats = trace.statistics(model, params, [x], kinds=("range",))
    >>> {k: v.ravel().round(5).tolist() for k, v in smooth(model, params, stats, x).params.items()}
    {'down': [0.5, 0.25], 'scale': [2.0, 4.0]}
    """
    if not 0.0 <= alpha <= 1.0:
        raise TransformError(f"alpha must be from 0 to 1, not {alpha!r}")
    check_float_params(params, "smooth()")
    scales = scale_groups(apply_fn, params, *inputs)
    chosen = kernels(scales, only)
    shapes = dict(zip(scales.program.names, scales.program.shapes, strict=True))
    found, unread = described(
        scales, chosen, stats, lambda m: input_values(stats, m, "largest", shapes[m.block.leaf])
    )
    weights = finite_leaves(params, {m.block.leaf for r in found for m in r.members})
    done = []
    for reading in found:
        inputs_ = [
            input_values(stats, m, "largest", weights[m.block.leaf].shape).max(axis=1)
            for m in reading.members
        ]
        x = np.max(inputs_, axis=0)
        w = np.max([unit_ranges(weights[m.block.leaf], m) for m in reading.members], axis=0)
        live = (x > 0) & (w > 0)
        scale = np.where(live, x, 1.0) ** alpha / np.where(live, w, 1.0) ** (1 - alpha)
        done.append((reading.group, np.where(live, scale, 1.0) ** reading.members[0].power))
    reached = set(weights)
    exponents = dict.fromkeys((group.name for group, _ in done), alpha)
    return finished(params, scales, done, reached, chosen, only, "in", exponents, unread)
