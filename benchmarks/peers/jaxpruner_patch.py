"""Importing this makes JaxPruner run on current JAX (tried on 0.10 and 0.12).

JaxPruner (version 0.1, last commit of April 2024) is not on PyPI: put a checkout of its repository
on the path, or name the checkout in MODELZIP_JAXPRUNER_SOURCE. It also needs `ml_collections`. What
is timed is left as it is: masks are found by `argsort`, and scores and schedules are JaxPruner's.

What breaks, and what is done:

- All updaters, `MagnitudePruning` included: they call `jax.tree_map`, which JAX removed. It is put
  back under its old name; nothing else is needed for magnitude, random, saliency, global and
  straight-through pruning and for `StaticRandomSparse`.
- `SET` and `RigL` crash on trees with biases, or any leaf that is kept dense: its mask is None, and
  `tree_map(f, masks, scores)` once took a None that comes first for a prefix of the array beside
  it. JAX no longer does ("pytree structure error: different types at key path"). Their one method
  that has masks first is replaced by the same computation with None as a leaf. Where params come
  first a None beside an array is still allowed, so that magnitude pruning does not crash.

Not patched: the state holds target sparsities as Python floats, which come back from the first
jitted step as arrays, so that a step traces twice. Warm up with two steps before timing.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import jax

if "MODELZIP_JAXPRUNER_SOURCE" in os.environ:
    sys.path.insert(0, os.environ["MODELZIP_JAXPRUNER_SOURCE"])
# `tree_map` still exists as a deprecation that raises AttributeError, so that hasattr answers no.
if not hasattr(jax, "tree_map"):
    jax.tree_map = jax.tree.map  # type: ignore[attr-defined]

from jaxpruner.algorithms import sparse_trainers


def _map_masks(function: Callable[..., Any], masks: Any, *trees: Any) -> Any:
    """`tree_map` with the masks first, where None stands for a leaf that is kept dense."""
    return jax.tree.map(
        lambda mask, *leaves: None if mask is None else function(mask, *leaves),
        masks,
        *trees,
        is_leaf=lambda mask: mask is None,
    )


def _update_state(self: Any, sparse_state: Any, params: Any, grads: Any) -> Any:
    """`SET.update_state`, line by line, but for `_map_masks`."""
    drop_scores = self._get_drop_scores(sparse_state, params, grads)
    grow_scores = self._get_grow_scores(sparse_state, params, grads)
    update_masks = functools.partial(
        self._update_masks, drop_fraction=self.drop_fraction_fn(sparse_state.count)
    )
    new_masks = _map_masks(update_masks, sparse_state.masks, drop_scores, grow_scores)
    masks_activated = _map_masks(
        lambda old_mask, new_mask: (old_mask == 0) & (new_mask == 1), sparse_state.masks, new_masks
    )
    inner_state = sparse_trainers.restart_inner_state(sparse_state.inner_state, masks_activated)
    return sparse_state._replace(masks=new_masks, inner_state=inner_state)


sparse_trainers.SET.update_state = _update_state
