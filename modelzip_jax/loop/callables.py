"""What a loop passes to an optimizer beside gradients, restated for the latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.tree import PyTree

__all__ = ["at_weights"]


def at_weights(
    extra: Mapping[str, Any],
    params: PyTree,
    keep: list[bool],
    decode: Callable[[PyTree], PyTree],
    trained: PyTree,
) -> dict[str, Any]:
    """Extra arguments of `update` as the optimizer of the latents is to see them.

    A function of the params (`value_fn` of line searches, `grad_fn` of SAM, `obj_fn` of Sophia) becomes one of what
    is trained: it is called with decoded weights, and a gradient that it returns is pulled back. So is `grad`.

    Args:
      extra: what `update` was called with. params: the loop's, whose structure functions are called with.
      keep: for each leaf of the params whether it has a latent. decode: latents to weights. trained: the tree of
        latents and unselected params that the optimizer trains.
    """
    plain = trees.plain(params)
    structure = jax.tree.structure(plain)

    def weights(latents: PyTree) -> PyTree:
        parts, decoded = structure.flatten_up_to(latents), structure.flatten_up_to(decode(chosen(latents)))
        return structure.unflatten([d if k else p for p, d, k in zip(parts, decoded, keep, strict=True)])

    def chosen(tree: PyTree) -> PyTree:
        return trees.select(tree, keep, structure)

    def pulled(grads: PyTree, latents: PyTree) -> PyTree:
        decoded, pull = jax.vjp(decode, chosen(latents))
        cast = jax.tree.map(lambda g, d: g.astype(d.dtype), chosen(grads), decoded)
        return trees.merge(grads, pull(cast)[0])

    def is_gradient(out: PyTree) -> bool:
        if jax.tree.structure(out) != structure:
            return False
        shapes = [[jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (out, plain)]
        return shapes[0] == shapes[1] != [()]

    def composed(function: Callable[..., Any]) -> Callable[..., Any]:
        def at_latents(latents: PyTree, *args: Any, **named: Any) -> Any:
            out = function(trees.restored(weights(latents), params), *args, **named)
            found = trees.plain(out)
            return pulled(found, latents) if is_gradient(found) else out

        return at_latents

    told = {name: composed(x) if callable(x) else x for name, x in extra.items()}
    if told.get("grad") is not None:
        told["grad"] = pulled(trees.plain(told["grad"]), trained)
    return told
