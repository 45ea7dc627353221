"""An optimizer's memory of weights that no longer reach the network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["clear_moments"]

PyTree = Any

_MOMENTS = ("mu", "nu", "nu_max", "trace")
"""What optax calls the running averages of gradients, one tree like the params each."""


def clear_moments(state: PyTree, params: PyTree, support: PyTree) -> PyTree:
    """The optimizer's state with the moments of weights outside the support set to zero.

    A weight that is pruned and comes back starts afresh, as if it were new, and meanwhile nothing moves it.

    Args:
      state: of any optax optimizer. What it keeps as `mu`, `nu`, `nu_max` or `trace`, with the params' structure, is
        cleared where a leaf has the shape of its weights. Averages of weights and factored moments stay.
      params: the tree that the optimizer trains.
      support: like `params`: a boolean mask a leaf, or True.

    >>> import optax
    >>> state = optax.TraceState({"w": jnp.array([3.0, 4.0])})
    >>> clear_moments(state, {"w": jnp.zeros(2)}, {"w": jnp.array([True, False])})
    TraceState(trace={'w': Array([3., 0.], dtype=float32)})
    """
    treedef = jax.tree.structure(params)
    masks = treedef.flatten_up_to(support)

    def cleared(moments: PyTree) -> PyTree:
        try:
            parts = treedef.flatten_up_to(moments)
        except (ValueError, TypeError, KeyError):  # Not one a weight.
            return moments
        return treedef.unflatten([_keep(m, part) for m, part in zip(masks, parts, strict=True)])

    def visit(node: PyTree) -> PyTree:
        if not _has_moments(node):
            return node
        return node._replace(
            **{name: cleared(getattr(node, name)) for name in _MOMENTS if hasattr(node, name)}
        )

    return jax.tree.map(visit, state, is_leaf=_has_moments)


def _has_moments(node: Any) -> bool:
    return isinstance(node, tuple) and any(name in getattr(node, "_fields", ()) for name in _MOMENTS)


def _keep(mask: Any, moment: Any) -> Any:
    if mask is True or not hasattr(moment, "shape") or moment.shape != mask.shape:
        return moment
    return jnp.where(mask, moment, jnp.zeros((), moment.dtype))
