"""Weights of several losses that are minimised together: what balances them, and weights that are fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.argument_checks import check_mapping
from modelzip_jax.distillation.array_checks import as_numbers
from modelzip_jax.distillation.finite_numbers import check_number
from modelzip_jax.errors import DistillationError
from modelzip_jax.tree import PyTree, named_leaves

__all__ = [
    "Balancer",
    "check_losses",
    "fixed_weights",
    "positive_losses",
    "updated",
    "weight_cotangents",
    "weighted_sum",
]


class Balancer(NamedTuple):
    """How the weights of several losses follow the losses: pure functions, as of an optax optimizer.

    `init(losses) -> state`: losses are a tree of float scalars, such as `{"labels": ..., "hint": ...}`; the values
    are those before the first step. `weights(state) -> weights`: a float32 scalar for each loss.
    `update(state, losses, gradient_norms) -> state`: after a step, the unweighted losses of that step, and, where
    `reads_gradients`, the norm of each one's gradient; where one of these is NaN or infinite, the state stays as it
    is: it would be NaN for good. needs_positive: whether the losses must be greater than zero,
    which those that are estimates of information are not.

    >>> balance = fixed_weights({"labels": 1.0, "hint": 0.5})
    >>> state = balance.init({"labels": jnp.float32(2.0), "hint": jnp.float32(4.0)})
    >>> weighted_sum(balance.weights(state), {"labels": jnp.float32(2.0), "hint": jnp.float32(4.0)})
    Array(4., dtype=float32)
    """

    init: Callable[[PyTree], PyTree]
    weights: Callable[[PyTree], PyTree]
    update: Callable[..., PyTree]
    reads_gradients: bool = False
    needs_positive: bool = False


def fixed_weights(weights: Mapping[str, float] | None = None) -> Balancer:
    """Weights that stay as they are given; 1 for each loss by default.

    Args:
      weights: a finite number of at least 0 for each loss, by its name; 0 leaves a loss out.

    Raises:
      DistillationError: a weight is not finite, or below 0; (at `init`) the names are not those of the losses.

    >>> balance = fixed_weights()
    >>> balance.weights(balance.init({"labels": jnp.float32(2.0)}))
    {'labels': Array(1., dtype=float32)}
    """
    if weights is not None:
        check_mapping(weights, "fixed_weights", "weights", "{'labels': 1.0, 'hint': 0.5}")
        weights = {name: check_number(x, f"weights[{name!r}]", least=0) for name, x in weights.items()}

    def init(losses: PyTree) -> PyTree:
        check_losses(losses)
        if weights is None:
            return jax.tree.map(lambda _: jnp.float32(1.0), losses)
        names = [name for name, _ in named_leaves(losses)]
        if sorted(names) != sorted(weights):
            raise DistillationError(
                f"weights= has the names {sorted(weights)}, the losses are {sorted(names)}; give one for each"
            )
        return jax.tree.unflatten(jax.tree.structure(losses), [jnp.float32(weights[n]) for n in names])

    def update(state: PyTree, losses: PyTree, gradient_norms: PyTree | None = None) -> PyTree:
        del losses, gradient_norms
        return state

    return Balancer(init, lambda state: state, update)


def weighted_sum(weights: PyTree, losses: PyTree) -> jax.Array:
    """sum_k w_k L_k, float32. The weights are constants: no gradient flows into them.

    Raises:
      DistillationError: the two are not of one structure.

    >>> weighted_sum({"labels": 1.0, "hint": 0.5}, {"labels": 2.0, "hint": 4.0})
    Array(4., dtype=float32)
    """
    _check_structure(weights, losses)
    pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(losses), strict=True)
    terms = [jax.lax.stop_gradient(jnp.float32(w)) * jnp.asarray(x, jnp.float32) for w, x in pairs]
    return jnp.sum(jnp.stack(terms)) if terms else jnp.float32(0.0)


def weight_cotangents(weights: PyTree, losses: PyTree) -> PyTree:
    """The weights in the losses' dtypes: what `jax.vjp` pulls back to the gradient of `weighted_sum`.

    Raises:
      DistillationError: the two are not of one structure.

    >>> weight_cotangents({"labels": 0.5}, {"labels": jnp.bfloat16(2.0)})
    {'labels': Array(0.5, dtype=bfloat16)}
    """
    _check_structure(weights, losses)
    return jax.tree.map(lambda w, x: jnp.asarray(w, x.dtype), weights, losses)


def updated(old: PyTree, like: PyTree, losses: PyTree, new: Callable[[], PyTree], *others: PyTree) -> PyTree:
    """A balance's new state, or the old one where a loss, or what else is read, is not finite.

    Args:
      like: a tree of the names that the balance began with. others: what is read beside the losses, of the same names.

    Raises:
      DistillationError: there are other losses than the balance began with.

    >>> float(updated(jnp.float32(1.0), {"a": 0.0}, {"a": jnp.nan}, lambda: jnp.float32(2.0)))
    1.0
    """
    for given in (losses, *others):
        if jax.tree.structure(given) != jax.tree.structure(like):
            raise DistillationError(
                f"the balance began with the losses {_names(like)}, and is updated with {_names(given)}; give the same"
            )
    finite = jnp.all(jnp.stack([jnp.isfinite(x) for x in jax.tree.leaves((losses, others))]))
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new(), old)


def positive_losses(losses: PyTree) -> PyTree:
    """The losses as float32; traced ones that are not above zero, which nobody could refuse, as NaN.

    Raises:
      DistillationError: as of `check_losses`; of losses whose values can be read, also where one is not above zero.

    >>> jax.jit(positive_losses)({"labels": 2.0, "hint": 0.0})
    {'hint': Array(nan, dtype=float32), 'labels': Array(2., dtype=float32)}
    """
    check_losses(losses, positive=True)
    floats = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), losses)
    return jax.tree.map(lambda x: jnp.where(x > 0, x, jnp.nan), floats)


def _check_structure(weights: PyTree, losses: PyTree) -> None:
    if jax.tree.structure(weights) != jax.tree.structure(losses):
        raise DistillationError(
            f"there are weights of {_names(weights)} and losses of {_names(losses)}; give a weight for each loss"
        )


def check_losses(losses: PyTree, positive: bool = False) -> None:
    """Raises `DistillationError` naming a loss that is no float scalar, or, if so asked, is not above zero.

    Values of tracers are not looked at.

    >>> check_losses({"labels": jnp.ones(2)})
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: the loss 'labels' is not a floating-point scalar: float32 of shape (2,); ...
    """
    found = named_leaves(losses)
    if not found:
        raise DistillationError(
            "there is no loss to balance; give a tree of scalars such as {'labels': loss}"
        )
    for name, x in found:
        as_numbers(x, f"the loss {name!r}")
        if jnp.shape(x) != () or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise DistillationError(
                f"the loss {name!r} is not a floating-point scalar: {jnp.result_type(x)} of shape {jnp.shape(x)}; "
                "take its mean"
            )
        if positive and not isinstance(x, jax.core.Tracer) and not float(x) > 0:
            raise DistillationError(
                f"the loss {name!r} is {float(x)}; the balance reads ratios or logarithms of losses, so that it "
                "must be above zero from the start; use fixed weights (fixed_weights(), in a config 'fixed'), "
                "or leave this loss out"
            )


def _names(tree: PyTree) -> list[str]:
    return [name for name, _ in named_leaves(tree)]
