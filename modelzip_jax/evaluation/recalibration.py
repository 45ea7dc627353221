"""Batch statistics of a compressed model, measured anew before it is judged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import EvaluationError
from modelzip_jax.leaf_checks import check_finite
from modelzip_jax.tree import PyTree

__all__ = ["adapt_batch_norm", "adapted"]


# A power of two, so that multiplying by it rounds nothing, and far above any batch's mean or variance.
PROBE = 2.0**60


def adapt_batch_norm(apply: Callable[..., Any], variables: PyTree, batches: PyTree) -> PyTree:
    """The variables with running statistics that are the mean of these batches' (adaptive BN of EagleEye).

    Pruned or rounded weights change the distributions that batch normalisation sees; with the statistics of the
    original model, accuracy before fine-tuning says little about accuracy after it (Li et al. 2020, EagleEye,
    arXiv:2007.02491, §3.3). Weights stay as they are; only forward passes run. One compiled call.

    Training updates statistics by μ_t = m μ_(t−1) + (1 − m) μ_batch, and σ² likewise (ibid. eq. 3). Here step t = 1,
    2, ... has m = (t − 1)/t, which makes them the plain mean over the batches and keeps nothing of the old ones. That
    holds whatever momentum the model has: each batch's own statistics are read out of an update that begins at
    zero. Variances are the mean of those within batches, without what differs between them, as in training.

    Args:
      apply: `model.apply` of a Linen module that is called as `apply(variables, x, train=True,
        mutable=["batch_stats"])` and updates `batch_stats` as above. Compiled once for each `apply`: give a function
        that lives on.
      variables: `{"params": ..., "batch_stats": ...}`, and other collections, which are not updated.
      batches: inputs of several batches of training data, `(batches, n, ...)`: an array or a pytree of them. The
        paper uses a few dozen.

    Returns:
      `variables` with other `batch_stats`, to within some units in the last place of float32, or as far as momentum
      is one of up to six decimals below 1: others lose up to 6e-8 / (1 − m) of their relative precision.

    Raises:
      EvaluationError: there are no `batch_stats`, or `apply` does not update them; no batches.
      NonFiniteError: weights or inputs make statistics that are NaN or infinite.

    >>> import flax.linen as nn
    >>> class Model(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train=False):
    ...         return nn.BatchNorm(use_running_average=not train, momentum=0.99)(x)
    >>> model, batches = Model(), jnp.array([[[1.0], [3.0]], [[5.0], [9.0]]])
    >>> variables = model.init(jax.random.key(0), batches[0])
    >>> stats = adapt_batch_norm(model.apply, variables, batches)["batch_stats"]["BatchNorm_0"]
    >>> [round(float(stats[name][0]), 5) for name in ("mean", "var")]
    [4.5, 2.5]
    """
    check(variables, batches)
    found, rates = _adapt(apply, variables, batches)
    check_rates(rates)
    check_finite(found["batch_stats"], "the batches hold them, or the model makes them of the batches")
    return found


@functools.partial(jax.jit, static_argnums=0)
def _adapt(apply: Callable[..., Any], variables: PyTree, batches: PyTree) -> tuple[PyTree, PyTree]:
    return adapted(apply, variables, batches)


def adapted(apply: Callable[..., Any], variables: PyTree, batches: PyTree) -> tuple[PyTree, PyTree]:
    """`adapt_batch_norm` for use under a transformation, and 1 − momentum of each statistic: see `check_rates`."""

    def statistics(begin: jax.Array, inputs: PyTree) -> PyTree:
        old = jax.tree.map(lambda s: jnp.full(s.shape, begin, s.dtype), variables["batch_stats"])
        _, new = apply({**variables, "batch_stats": old}, inputs, train=True, mutable=["batch_stats"])
        return new["batch_stats"]

    count = len(jax.tree.leaves(batches)[0])
    # The first batch is read twice, from PROBE for the momentum, so that the model is compiled once.
    begins = jnp.zeros(count + 1).at[0].set(PROBE)
    order = jnp.maximum(jnp.arange(count + 1) - 1, 0)
    updates = jax.lax.map(
        lambda step: statistics(step[0], jax.tree.map(lambda x: jnp.asarray(x)[step[1]], batches)),
        (begins, order),
    )
    rates = jax.tree.map(lambda s: _rate(s[0].astype(jnp.float32) / PROBE), updates)
    stats = jax.tree.map(lambda s, rate: (jnp.mean(s[1:], axis=0) / rate).astype(s.dtype), updates, rates)
    return {**variables, "batch_stats": stats}, rates


def check(variables: PyTree, batches: PyTree) -> None:
    """Refuses variables without statistics, and batches of different numbers or none."""
    if "batch_stats" not in variables or not jax.tree.leaves(variables["batch_stats"]):
        raise EvaluationError("the variables have no batch_stats: there is no batch normalisation to adapt")
    counts = {np.shape(x)[:1] for x in jax.tree.leaves(batches)}
    if len(counts) != 1 or not all(count and count[0] for count in counts):
        raise EvaluationError(
            f"batches are stacked along their first axis, at least one; got {sorted(counts)}"
        )


def check_rates(rates: PyTree) -> None:
    """Refuses statistics that no update of the form of eq. 3 made."""
    for name, rate in trees.named_leaves(rates):
        # NaN passes: it comes from weights that are NaN, not from the update.
        if np.any((np.asarray(rate) <= 0) | (np.asarray(rate) > 1)):
            raise EvaluationError(
                f"apply(..., train=True, mutable=['batch_stats']) does not update {name!r} as a running mean does: "
                "is it frozen, or no batch normalisation?"
            )


def _rate(momentum: jax.Array) -> jax.Array:
    """1 − m of a momentum that is known in float32: of the decimal that was written, where it is one."""
    rate = 1.0 - momentum
    decimal = jnp.round(rate * 1e6) / 1e6
    return jnp.where(jnp.abs(rate - decimal) <= 2.0**-24, decimal, rate)
