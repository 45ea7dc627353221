"""A mask by value range: weights outside of it take no part in training."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError, WrapError
from modelzip_jax.tree import PyTree

__all__ = ["within_range"]


def within_range(
    inner: optax.GradientTransformation, low: float, high: float, *, magnitude: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Trains the weights whose values are from `low` to `high`, both included; the others keep theirs, bit for bit.

    The survey's cutting "by a range, such as 0 to 1": a weight outside has a gradient of zero and no update, whatever
    momentum, noise or weight decay would do. The range is looked at in each step, so that a weight that a step has
    carried outside stays where it landed, as what is cut learns no more. No memory is kept beside `inner`'s.

    Stands inside `mz.wrap`, where it looks at the latents: at the float weights behind a mask, a quantizer or a
    codebook, and at the coefficients of a wavelet. What decodes a weight outside of the range may still change, such as
    a learned step size. It works around any optimizer without `mz.wrap`, too.

    Args:
      inner: the optimizer of the weights inside.
      low, high: the range, in the unit of the weights; one may be infinite.
      magnitude: whether it is one of |w|.

    Raises:
      TransformError: `low` is above `high`, or one is NaN. (At `update`) WrapError: no params are given.

    >>> decayed = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.125, momentum=0.9))
    >>> tx = within_range(decayed, 0.0, 1.0)
    >>> params = {"w": jnp.array([0.5, -0.25, 1.5])}
    >>> updates, _ = tx.update({"w": jnp.ones(3)}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)
    {'w': Array([ 0.34375, -0.25   ,  1.5    ], dtype=float32)}
    """
    if math.isnan(low) or math.isnan(high) or low > high:
        raise TransformError(f"within_range takes a range from low to high, not from {low!r} to {high!r}")
    inner = optax.with_extra_args_support(inner)

    def inside(w: Any) -> jax.Array:
        value = jnp.abs(w) if magnitude else w
        return (value >= low) & (value <= high)

    def kept(tree: PyTree, params: PyTree, nothing: float) -> PyTree:
        def keep(x: Any, w: Any) -> Any:
            return x if trees.absent(x) else jnp.where(inside(w), x, jnp.asarray(nothing, jnp.result_type(x)))

        return jax.tree.map(keep, tree, params, is_leaf=trees.absent)

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, optax.OptState]:
        if params is None:
            raise WrapError("within_range looks at the params: call tx.update(grads, opt_state, params)")
        steps, state = inner.update(kept(updates, params, 0.0), state, params, **extra)
        # x + -0 is x for every x, and -0 + 0 is not.
        return kept(steps, params, -0.0), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
