"""Lottery tickets: the masks of a trained network over the weights that it once had."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.combinator import support_of
from modelzip_jax.errors import TransformError, WrapError
from modelzip_jax.loop.reading import params
from modelzip_jax.loop.states import WrapState, replace_states, wrap_states
from modelzip_jax.masking.masks import PruneState
from modelzip_jax.masking.pruning import Prune
from modelzip_jax.transform import Context, Transform
from modelzip_jax.tree import PyTree

__all__ = ["rewind"]


def rewind(
    early: tuple[PyTree, PyTree], late: tuple[PyTree, PyTree], sparsity: float | None = None
) -> tuple[PyTree, PyTree]:
    """Takes training back to an earlier step, with the masks that were found later.

    A round of iterative magnitude pruning (Frankle & Carbin 2019, arXiv:1803.03635; with rewinding to a step after
    initialisation, Frankle et al. 2020, arXiv:1912.05671): train, `rewind`, train again. Weights, optimizer moments
    and step counters are those of the early step; repeated with a rising
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
    for name, step in (("early", early), ("late", late)):
        if not isinstance(step, tuple | list) or len(step) != 2:
            raise WrapError(f"rewind() takes {name}=(params, opt_state), not a {type(step).__name__}")
    before, after = wrap_states(early[1]), wrap_states(late[1])
    if len(before) != len(after):
        raise WrapError("rewind() takes two steps of one optimizer")
    turned = iter([_rewound(early[0], b, a, sparsity) for b, a in zip(before, after, strict=True)])
    opt_state = replace_states(early[1], lambda _: next(turned))
    return params(opt_state, early[0]), opt_state


def _rewound(early: PyTree, before: WrapState, after: WrapState, sparsity: float | None) -> WrapState:
    """The early state with the late masks, under which `mz.wrap` holds the latents where they are."""
    found = after.state if sparsity is None else _chosen(after, sparsity)
    if not any(map(_is_pruned, jax.tree.leaves(found, is_leaf=_is_pruned))):
        raise TransformError(f"rewind() takes masks, and {before.transform.value} prunes nothing")

    def masked(old: Any, new: Any) -> Any:
        if not _is_pruned(old):
            return old
        return old._replace(masks=new.masks, churn=new.churn, thresholds=new.thresholds)

    return before._replace(state=jax.tree.map(masked, before.state, found, is_leaf=_is_pruned))


def _chosen(late: WrapState, sparsity: float) -> PyTree:
    """The transform's state, with masks chosen from its latents; what was pruned counts as zero."""
    transform, encoded = late.transform.value, late.encoded
    support = support_of(transform, encoded)
    if support is not None:
        hidden = jax.tree.map(lambda v, m: jnp.where(m, v, 0), encoded.latents, support)
        encoded = encoded._replace(latents=hidden)
    return _at(transform, sparsity).update(encoded, Context(step=jnp.int32(1))).state


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
