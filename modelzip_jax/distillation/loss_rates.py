"""Dynamic weight average: losses that fall slowly count more."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.argument_checks import check_made_by
from modelzip_jax.distillation.balancing import Balancer, positive_losses, updated
from modelzip_jax.distillation.finite_numbers import check_count, check_number
from modelzip_jax.tree import PyTree

__all__ = ["LossRatesState", "dynamic_weight_average"]


class LossRatesState(NamedTuple):
    """What a dynamic weight average remembers; trees are like the losses, float32 scalars.

    count: int32 scalar, updates. total: the sum of the losses of the epoch that runs. last, before: their means in
    the last epoch, and in the one before; ones until there are such.

    >>> dynamic_weight_average().init({"labels": jnp.float32(3.0)}).last
    {'labels': Array(1., dtype=float32)}
    """

    count: jax.Array
    total: PyTree
    last: PyTree
    before: PyTree


def dynamic_weight_average(temperature: float = 2.0, every: int = 1) -> Balancer:
    """Dynamic weight average (DWA): w_k = K exp(r_k / T) / sum_i exp(r_i / T), with r_k = L_k(t-1) / L_k(t-2).

    Liu et al. 2019, "End-to-End Multi-Task Learning with Attention" (https://arxiv.org/abs/1803.10704), Eq. 7. t
    counts epochs, L_k(t) is the mean of the loss in epoch t, and r_k = 1 in the first two, and where L_k(t-2) is zero.
    The K weights sum to K.

    Only ratios are read, so the weights do not change when a loss is rescaled. For the same reason DWA does **not**
    make up for different scales: of two losses of 1 and 10^4 that fall alike, each gets the weight 1. It balances
    rates; `uncertainty_weighting` and `grad_norm` balance scales.

    Args:
      temperature: T > 0; large ones make the weights equal. Liu et al. use 2.
      every: steps in an epoch, whose losses are averaged; 1 follows the noise of each batch.

    Weights are NaN, and stay so, where a traced loss at `init` is not above zero.

    Raises:
      DistillationError: temperature or every is out of range; (at `init`) a loss is no positive scalar; a state is none
        of `init`.

    >>> balance = dynamic_weight_average()
    >>> state = balance.init({"a": jnp.float32(8.0), "b": jnp.float32(3.0)})
    >>> for a, b in [(8.0, 3.0), (4.0, 3.0)]:  # a falls to a half, b does not
    ...     state = balance.update(state, {"a": jnp.float32(a), "b": jnp.float32(b)})
    >>> {name: round(float(w), 4) for name, w in balance.weights(state).items()}
    {'a': 0.8756, 'b': 1.1244}
    """
    temperature, every = check_number(temperature, "temperature", above=0), check_count(every, "every")

    def init(losses: PyTree) -> LossRatesState:
        # The total carries NaN on: it alone is never forgotten.
        nothing = jax.tree.map(_emptied, positive_losses(losses))
        ones = jax.tree.map(lambda _: jnp.float32(1.0), losses)
        return LossRatesState(jnp.int32(0), nothing, ones, ones)

    def weights(state: LossRatesState) -> PyTree:
        check_made_by(state, LossRatesState, "weights(state)", "state", "dynamic_weight_average().init")
        trees = state.total, state.last, state.before
        total, last, before = (jnp.stack(jax.tree.leaves(tree)) for tree in trees)
        known = (state.count >= 2 * every) & (before > 0)
        rates = jnp.where(known, last / jnp.where(known, before, 1.0), 1.0)
        rates = jnp.where(jnp.isnan(total), jnp.nan, rates)
        shares = jax.nn.softmax(rates / temperature) * len(rates)
        return jax.tree.unflatten(jax.tree.structure(state.last), list(shares))

    def update(state: LossRatesState, losses: PyTree, gradient_norms: PyTree | None = None) -> LossRatesState:
        del gradient_norms
        check_made_by(
            state, LossRatesState, "update(state, losses)", "state", "dynamic_weight_average().init"
        )

        def new() -> LossRatesState:
            count = state.count + 1
            total = jax.tree.map(lambda s, x: s + jnp.asarray(x, jnp.float32), state.total, losses)
            ended = count % every == 0
            choose = lambda new, old: jax.tree.map(lambda a, b: jnp.where(ended, a, b), new, old)  # noqa: E731
            mean = jax.tree.map(lambda s: s / every, total)
            return LossRatesState(
                count,
                choose(jax.tree.map(_emptied, total), total),
                choose(mean, state.last),
                choose(state.last, state.before),
            )

        return updated(state, state.total, losses, new)

    return Balancer(init, weights, update, needs_positive=True)


def _emptied(x: jax.Array) -> jax.Array:
    """0, or NaN of what is NaN."""
    return jnp.where(jnp.isnan(x), jnp.nan, jnp.float32(0.0))
