"""Lottery tickets: the masks of a trained network over the weights that it once had."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.loop.moments import clear_moments
from modelzip_jax.loop.wrapping import WrapState, find_state
from modelzip_jax.masking.pruning import Prune, PruneState
from modelzip_jax.transform import Transform

__all__ = ["rewind"]

PyTree = Any


def rewind(
    early: tuple[PyTree, PyTree], late: tuple[PyTree, PyTree], sparsity: float | None = None
) -> tuple[PyTree, PyTree]:
    """Takes training back to an earlier step, with the masks that were found later.

    A round of iterative magnitude pruning (Frankle & Carbin 2019, arXiv:1803.03635; with rewinding to a step after
    initialisation, Frankle et al. 2020, arXiv:1912.05671): train, `rewind`, train again. Weights, optimizer moments
    (cleared where the masks are) and step counters are those of the early step; repeated with a rising
    sparsity, each round prunes what the one before had kept, under scores that rank zeros last.

    Args:
      early, late: `(params, opt_state)` of one optimizer made by `mz.wrap`, of two steps.
      sparsity: of masks chosen anew from the late latents, in [0, 1); the late masks as they are if None. Start
        training with `mz.prune(sparsity=0.0)` to have masks that only `rewind` changes.

    Returns:
      `(params, opt_state)` to train on.

    Raises:
      WrapError: a state without an `mz.wrap`.
      TransformError: nothing is pruned by that optimizer, a sparsity outside [0, 1), a score that needs more than
        weights.

    >>> import optax, modelzip_jax as mz
    >>> tx = mz.wrap(optax.sgd(1.0), mz.prune(sparsity=0.0))
    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> early = mz.start(tx, params)
    >>> updates, state = tx.update({"w": jnp.array([-3.0, 0.0])}, early[1], early[0])
    >>> late = optax.apply_updates(early[0], updates), state
    >>> rewind(early, late, sparsity=0.5)[0]
    {'w': Array([1., 0.], dtype=float32)}
    """
    if sparsity is not None and not 0.0 <= sparsity < 1.0:
        raise TransformError(f"sparsity must be in [0, 1), not {sparsity!r}")
    before, after = find_state(early[1]), find_state(late[1])
    found = after.transform_state if sparsity is None else _chosen(after, sparsity)
    if not any(map(_is_pruned, jax.tree.leaves(found, is_leaf=_is_pruned))):
        raise TransformError(f"rewind() takes masks, and {before.transform.value} prunes nothing")

    def masked(old: Any, new: Any) -> Any:
        if not _is_pruned(old):
            return old
        return old._replace(masks=new.masks, churn=new.churn, thresholds=new.thresholds)

    state = jax.tree.map(masked, before.transform_state, found, is_leaf=_is_pruned)
    decoded = before.transform.value.decode(before.values, before.extras, state)

    trained = trees.merge(early[0], before.values)
    support = before.transform.value.support(before.values, state, None)
    inner = before.inner
    if support is not None:
        inner = clear_moments(inner, trained, trees.merge(jax.tree.map(lambda _: True, early[0]), support))

    def replaced(node: Any) -> Any:
        return node._replace(transform_state=state, inner=inner) if isinstance(node, WrapState) else node

    opt_state = jax.tree.map(replaced, early[1], is_leaf=lambda x: isinstance(x, WrapState))
    return trees.merge(early[0], decoded), opt_state


def _chosen(late: WrapState, sparsity: float) -> PyTree:
    """The transform's state, with masks chosen from its latents; what was pruned counts as zero."""
    transform, values, state = late.transform.value, late.values, late.transform_state
    support = transform.support(values, state, None)
    if support is not None:
        values = jax.tree.map(lambda v, m: jnp.where(m, v, 0), values, support)
    return _at(transform, sparsity).update(values, late.extras, state, step=jnp.int32(1)).state


def _at(transform: Any, sparsity: float) -> Any:
    """The transform with every pruning part at this sparsity, due at once."""
    if isinstance(transform, Prune):
        if transform.score.needs:
            needs = ", ".join(transform.score.needs)
            raise TransformError(
                f"rewind(sparsity=...) has the weights alone; {transform.score} needs {needs}"
            )
        return dataclasses.replace(transform, sparsity=sparsity, every=1)
    if isinstance(transform, tuple):
        return tuple(_at(part, sparsity) for part in transform)
    if isinstance(transform, Transform):
        held = {f.name: getattr(transform, f.name) for f in dataclasses.fields(transform)}
        inner = {k: _at(v, sparsity) for k, v in held.items() if isinstance(v, tuple | Transform)}
        return dataclasses.replace(transform, **inner)
    return transform


def _is_pruned(node: Any) -> bool:
    return isinstance(node, PruneState)
