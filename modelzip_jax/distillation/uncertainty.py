"""Uncertainty weighting: each loss has a learned variance, which divides it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from modelzip_jax.distillation.argument_checks import check_made_by, check_optimizer
from modelzip_jax.distillation.balancing import Balancer, positive_losses, updated
from modelzip_jax.distillation.finite_numbers import check_number
from modelzip_jax.tree import PyTree

__all__ = ["UncertaintyState", "uncertainty_weighting"]


class UncertaintyState(NamedTuple):
    """log_variances: float32 scalars s_k = log sigma_k^2, like the losses. opt_state: their optimizer's state.

    >>> uncertainty_weighting().init({"labels": jnp.float32(1.0)}).log_variances
    {'labels': Array(0., dtype=float32)}
    """

    log_variances: PyTree
    opt_state: optax.OptState


def uncertainty_weighting(
    tx: optax.GradientTransformation | None = None, log_variance: float | None = None
) -> Balancer:
    """Weights w_k = exp(-s_k) / 2 from s_k = log sigma_k^2 that minimise sum_k exp(-s_k) L_k / 2 + s_k / 2.

    Kendall, Gal & Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses"
    (https://arxiv.org/abs/1705.07115), Eq. 7; s_k rather than sigma_k is trained, as they advise. For a classification
    they write exp(-s_k) L_k + s_k / 2 (Eq. 10), which has the same weights at another s_k. The gradient
    (1 - exp(-s_k) L_k) / 2 is zero at s_k = log L_k, where the weight is 1 / (2 L_k): each loss then counts as its own
    logarithm does, whatever its scale.

    Args:
      tx: the optimizer of the s_k; `optax.adam(1e-2)` by default.
      log_variance: s_k at the start, of each loss. By default log L_k of the losses at `init`, so that no scale has to
        be learned: from 0 on, Adam takes thousands of steps to a loss of 10^4.

    The weight of a loss is NaN, and stays so, where it is traced at `init` and not above zero.

    Raises:
      DistillationError: log_variance is not finite; tx is no optimizer; (at `init`) a loss is no positive scalar; a
        state is none of `init`.

    >>> balance = uncertainty_weighting()
    >>> state = balance.init({"a": jnp.float32(1.0), "b": jnp.float32(2.0)})
    >>> balance.weights(state)["a"], balance.weights(state)["b"]
    (Array(0.5, dtype=float32), Array(0.25, dtype=float32))
    """
    tx = optax.adam(1e-2) if tx is None else tx
    check_optimizer(tx, "uncertainty_weighting", "tx")
    if log_variance is not None:
        log_variance = check_number(log_variance, "log_variance")

    def init(losses: PyTree) -> UncertaintyState:
        start = jnp.log if log_variance is None else lambda x: jnp.where(jnp.isnan(x), x, log_variance)
        log_variances = jax.tree.map(start, positive_losses(losses))
        return UncertaintyState(log_variances, tx.init(log_variances))

    def weights(state: UncertaintyState) -> PyTree:
        check_made_by(state, UncertaintyState, "weights(state)", "state", "uncertainty_weighting().init")
        return jax.tree.map(lambda s: 0.5 * jnp.exp(-s), state.log_variances)

    def update(
        state: UncertaintyState, losses: PyTree, gradient_norms: PyTree | None = None
    ) -> UncertaintyState:
        del gradient_norms
        check_made_by(
            state, UncertaintyState, "update(state, losses)", "state", "uncertainty_weighting().init"
        )
        slope = lambda s, x: 0.5 - 0.5 * jnp.exp(-s) * jnp.asarray(x, jnp.float32)  # noqa: E731

        def new() -> UncertaintyState:
            grads = jax.tree.map(slope, state.log_variances, losses)
            steps, opt_state = tx.update(grads, state.opt_state, state.log_variances)
            return UncertaintyState(optax.apply_updates(state.log_variances, steps), opt_state)

        return updated(state, state.log_variances, losses, new)

    return Balancer(init, weights, update, needs_positive=True)
