"""GradNorm: weights by which the losses' gradients have norms that fit each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from modelzip_jax.distillation.argument_checks import check_function, check_made_by, check_optimizer
from modelzip_jax.distillation.balancing import (
    Balancer,
    check_losses,
    positive_losses,
    updated,
    weight_cotangents,
)
from modelzip_jax.distillation.finite_numbers import check_number
from modelzip_jax.errors import DistillationError
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.tree import PyTree, named_leaves

__all__ = ["GradNormState", "balanced_gradients", "grad_norm", "gradient_norms"]


class GradNormState(NamedTuple):
    """What GradNorm keeps; trees are like the losses, float32 scalars.

    logits: v_k, of which the weights are K softmax(v). first: the losses at `init`. opt_state: of the logits.

    >>> grad_norm().init({"labels": jnp.float32(3.0)}).first
    {'labels': Array(3., dtype=float32)}
    """

    logits: PyTree
    first: PyTree
    opt_state: optax.OptState


def grad_norm(alpha: float = 1.5, tx: optax.GradientTransformation | None = None) -> Balancer:
    """GradNorm: minimises sum_k |G_k - mean(G) r_k^alpha| over the weights, with G_k = |w_k grad L_k|_2.

    Chen et al. 2018 (https://arxiv.org/abs/1711.02257), Eq. 2 and Algorithm 1: r_k is the loss ratio L_k(t) / L_k(0)
    over its mean, a loss that falls slowly gets a larger gradient, and the target mean(G) r_k^alpha is a constant for
    the gradient. The weights are 1 at the start and sum to their number K.

    Two things differ from the paper, by which losses of scales 1 and 10^4 are balanced. Weights are K softmax(v) and v
    is trained: they are positive and sum to K at any step size, where the paper steps w and rescales it. And the
    objective is divided by mean(G), also a constant, so that its gradient has one scale throughout; Adam would
    otherwise remember the first, huge ones.

    Weights are NaN, and stay so, where a traced loss at `init` is not above zero while alpha > 0.

    Args:
      alpha: how much slow losses are pulled along, >= 0; 0 makes all norms equal, and reads no losses.
      tx: the optimizer of v; `optax.adam(0.025)` by default, a step that the paper uses, too.

    Raises:
      DistillationError: alpha is out of range; tx is no optimizer; (at `init`) a loss is no scalar, or not positive
        while alpha > 0; (at `update`) there are no gradient norms; a state is none of `init`.

    >>> balance = grad_norm(alpha=0.0, tx=optax.sgd(0.02))
    >>> losses = {"a": jnp.float32(1.0), "b": jnp.float32(1.0)}
    >>> state, update = balance.init(losses), jax.jit(balance.update)
    >>> for _ in range(50):
    ...     state = update(state, losses, {"a": 1.0, "b": 3.0})
    >>> {name: round(float(w), 1) for name, w in balance.weights(state).items()}  # norms 1.5 and 1.5
    {'a': 1.5, 'b': 0.5}
    """
    alpha = check_number(alpha, "alpha", least=0)
    tx = optax.adam(0.025) if tx is None else tx
    check_optimizer(tx, "grad_norm", "tx")

    def init(losses: PyTree) -> GradNormState:
        check_losses(losses)
        first = positive_losses(losses) if alpha else jax.tree.map(jnp.float32, losses)
        logits = jax.tree.map(
            lambda x: jnp.where((alpha > 0) & jnp.isnan(x), jnp.nan, jnp.float32(0.0)), first
        )
        return GradNormState(logits, first, tx.init(logits))

    def weights(state: GradNormState) -> PyTree:
        check_made_by(state, GradNormState, "weights(state)", "state", "grad_norm().init")
        return _weights(state.logits)

    def objective(logits: PyTree, norms: jax.Array, rates: jax.Array) -> jax.Array:
        weighted = jnp.stack(jax.tree.leaves(_weights(logits))) * norms
        mean = jax.lax.stop_gradient(jnp.mean(weighted))
        return jnp.sum(jnp.abs(weighted / jnp.where(mean > 0, mean, 1.0) - rates**alpha))

    def update(state: GradNormState, losses: PyTree, gradient_norms: PyTree | None = None) -> GradNormState:
        check_made_by(state, GradNormState, "update(state, losses, norms)", "state", "grad_norm().init")
        if gradient_norms is None:
            raise DistillationError(
                "grad_norm reads the norm of each loss's gradient: update(state, losses, norms), with norms as "
                "balanced_gradients gives them"
            )

        def new() -> GradNormState:
            norms = jnp.stack([jnp.asarray(x, jnp.float32) for x in jax.tree.leaves(gradient_norms)])
            ratios = jax.tree.map(lambda x, y: jnp.asarray(x, jnp.float32) / y, losses, state.first)
            ratios = jnp.stack(jax.tree.leaves(ratios)) if alpha else jnp.ones_like(norms)
            mean = jnp.mean(ratios)  # Zero once every loss is.
            rates = jnp.where(mean > 0, ratios / jnp.where(mean > 0, mean, 1.0), 1.0)
            grads = jax.grad(objective)(state.logits, norms, rates)
            steps, opt_state = tx.update(grads, state.opt_state, state.logits)
            return GradNormState(optax.apply_updates(state.logits, steps), state.first, opt_state)

        return updated(state, state.logits, losses, new, gradient_norms)

    return Balancer(init, weights, update, reads_gradients=True, needs_positive=alpha > 0)


def _weights(logits: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(logits)
    return treedef.unflatten(list(jax.nn.softmax(jnp.stack(leaves)) * len(leaves)))


def gradient_norms(
    pull: Callable[[PyTree], tuple[Any, ...]], losses: PyTree, shared: str | Sequence[str] = "**"
) -> PyTree:
    """The 2-norm of each loss's gradient, float32 scalars like the losses.

    One backward pass for each loss, of which XLA keeps only what leads to the shared leaves.

    Args:
      pull: from `jax.vjp` of a function of the params that gives the losses.
      shared: path patterns of the params whose gradients are compared: in the paper, the last layer that all losses
        share.

    Raises:
      PatternError: a pattern matches no leaf.

    >>> losses, pull = jax.vjp(lambda w: {"a": w["k"] @ w["k"], "b": 3 * w["k"][0]}, {"k": jnp.array([3.0, 4.0])})
    >>> gradient_norms(pull, losses)
    {'a': Array(10., dtype=float32), 'b': Array(3., dtype=float32)}
    """
    patterns = [shared] if isinstance(shared, str) else list(shared)
    leaves, treedef = jax.tree.flatten(losses)

    def norm(index: int) -> jax.Array:
        cotangents = [jnp.ones_like(x) if i == index else jnp.zeros_like(x) for i, x in enumerate(leaves)]
        named = named_leaves(pull(treedef.unflatten(cotangents))[0])
        require_matches(patterns, [name for name, _ in named])
        chosen = [
            g.astype(jnp.float32)
            for name, g in named
            # Whole numbers have no gradient.
            if any(matches(p, name) for p in patterns) and g.dtype != jax.dtypes.float0
        ]
        return jnp.sqrt(sum((jnp.sum(g * g) for g in chosen), jnp.float32(0.0)))

    return treedef.unflatten([norm(index) for index in range(len(leaves))])


def balanced_gradients(
    losses_of: Callable[[PyTree], Any],
    params: PyTree,
    weights: PyTree,
    *,
    norms: bool = False,
    shared: str | Sequence[str] = "**",
    has_aux: bool = False,
) -> tuple[Any, PyTree, PyTree | None]:
    """`(losses, gradient of their weighted sum, norm of each one's own gradient or None)`, for a loop of one's own.

    Args:
      losses_of: params -> tree of scalar losses.
      weights: a scalar for each loss, as `Balancer.weights` gives them.
      norms: whether to compute the norms, which `grad_norm` reads, by one backward pass more for each loss.
      shared: path patterns of the params that norms are taken over.
      has_aux: `losses_of` gives `(losses, aux)`, such as batch statistics, and so does the first of the results.

    Raises:
      DistillationError: a loss is no float scalar, or has no weight. PatternError: a pattern matches no leaf.

    >>> losses_of = lambda w: {"a": jnp.sum(w**2), "b": 3.0 * jnp.sum(w)}
    >>> balanced_gradients(losses_of, jnp.ones(2), {"a": 1.0, "b": 2.0})[1]
    Array([8., 8.], dtype=float32)
    """
    check_function(losses_of, "balanced_gradients", "losses_of", "params -> losses")
    losses, pull, aux = jax.vjp(
        losses_of if has_aux else lambda params: (losses_of(params), None), params, has_aux=True
    )
    check_losses(losses)
    grads = pull(weight_cotangents(weights, losses))[0]
    found = gradient_norms(pull, losses, shared) if norms else None
    return ((losses, aux) if has_aux else losses), grads, found
