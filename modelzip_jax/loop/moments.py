"""An optimizer's memory of latents that no longer reach the network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from modelzip_jax import tree as trees
from modelzip_jax.tree import PyTree

__all__ = ["hold_hidden", "renew_hidden"]


def renew_hidden(
    inner: optax.GradientTransformation, state: PyTree, trained: PyTree, support: PyTree
) -> PyTree:
    """The optimizer's state, in which hidden latents are remembered as if training had just begun.

    A weight that is pruned and comes back starts afresh: its moments are what `inner.init` makes them, zero mostly;
    an average of weights is the latent itself. What is kept for each latent is recognised by structure and shape,
    whatever the optimizer calls it; what is kept for a row or a tensor (factored moments) stays.

    Args:
      inner: any optax optimizer. state: its state. trained: the tree that it trains.
      support: like `trained`: a boolean mask a leaf, or True.

    >>> tx = optax.trace(0.9)
    >>> w = {"w": jnp.zeros(2)}
    >>> renew_hidden(tx, optax.TraceState({"w": jnp.array([3.0, 4.0])}), w, {"w": jnp.array([True, False])})
    TraceState(trace={'w': Array([3., 0.], dtype=float32)})
    """
    structure = jax.tree.structure(trained, is_leaf=trees.absent)

    def is_like_trained(node: PyTree) -> bool:
        found = jax.tree.structure(node, is_leaf=trees.absent)
        if found == structure:
            return True
        if jax.tree_util.treedef_is_leaf(found) or not trees.has_absent(node):
            return False
        try:  # optax.masked leaves whole branches out.
            found.flatten_up_to(trained)
        except (ValueError, TypeError, KeyError):
            return False
        return True

    def renewed(old: PyTree, fresh: PyTree) -> PyTree:
        if not is_like_trained(old):
            return old
        return jax.tree.map(_kept, old, fresh, support, is_leaf=trees.absent)

    return jax.tree.map(renewed, state, inner.init(trained), is_leaf=is_like_trained)


def _kept(old: Any, fresh: Any, mask: Any) -> Any:
    if trees.absent(old) or mask is True or not _is_like(old, mask):
        return old
    return jnp.where(mask, old, fresh)


def _is_like(moment: Any, mask: Any) -> bool:
    """Whether a moment has an element for each latent; L-BFGS has several."""
    shape = jnp.shape(moment)
    return (
        jnp.issubdtype(jnp.result_type(moment), jnp.floating)
        and shape[len(shape) - mask.ndim :] == mask.shape
    )


def hold_hidden(steps: PyTree, support: PyTree) -> PyTree:
    """The optimizer's steps with none for hidden latents, whatever momentum, noise or weight decay would do.

    >>> hold_hidden({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([True, False])})
    {'w': Array([3., 0.], dtype=float32)}
    """
    return jax.tree.map(lambda u, m: u if m is True else jnp.where(m, u, jnp.zeros_like(u)), steps, support)
