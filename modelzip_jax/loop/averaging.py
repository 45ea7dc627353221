"""A moving average of the weights, kept in the optimizer's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError, WrapError
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.tree import PyTree

__all__ = ["AverageState", "mean_of", "with_average"]


class AverageState(NamedTuple):
    """count: int32 scalar, steps averaged. mean: float32, of the leaves of what `inner` trains that are averaged.

    inner: the state of the optimizer inside.

    >>> state = with_average(optax.sgd(1.0), decay=0.5).init({"w": jnp.ones(2, jnp.bfloat16)})
    >>> state.count, state.mean
    (Array(0, dtype=int32), {'w': Array([1., 1.], dtype=float32)})
    """

    count: jax.Array
    mean: PyTree
    inner: optax.OptState


def with_average(
    inner: optax.GradientTransformation, decay: float, only: str | Sequence[str] = "**"
) -> optax.GradientTransformationExtraArgs:
    """Keeps an exponential moving average of the weights that `inner` trains; `mz.averaged` reads it.

    Stands inside `mz.wrap`, where it averages the latents: an average of decoded weights would lie
    between the points of the quantizer's grid.

    Args:
      decay: weight of the old average at each step, in (0, 1). The average is corrected for its bias
        towards where it began, as in Kingma & Ba 2015, arXiv:1412.6980, §3: after t steps the newest
        weights count (1 - decay) / (1 - decay^t).
      only: path patterns of the layers whose weights are averaged; others are, at the end, what they are.

    Raises:
      TransformError: decay is outside (0, 1).
      PatternError (at `init`): a pattern matches nothing.

    >>> tx = with_average(optax.sgd(1.0), decay=0.5)
    >>> params = jnp.float32(4.0)
    >>> state = tx.init(params)
    >>> updates, state = tx.update(jnp.float32(1.0), state, params)
    >>> mean_of(state, optax.apply_updates(params, updates))
    Array(3., dtype=float32)
    """
    if not 0.0 < decay < 1.0:
        raise TransformError(f"decay must be in (0, 1), not {decay!r}")
    inner = optax.with_extra_args_support(inner)
    patterns = [only] if isinstance(only, str) else list(only)

    def chosen(tree: PyTree) -> PyTree:
        names = [name for name, _ in trees.named_leaves(tree)]
        return trees.select(
            tree, [any(matches(p, name) for p in patterns) for name in names], jax.tree.structure(tree)
        )

    def init(params: PyTree) -> AverageState:
        require_matches(patterns, [name for name, _ in trees.named_leaves(params)])
        mean = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), chosen(params))
        return AverageState(jnp.zeros((), jnp.int32), mean, inner.init(params))

    def update(
        updates: PyTree, state: AverageState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AverageState]:
        if params is None:
            raise TransformError("with_average needs the params: tx.update(grads, opt_state, params)")
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        count = optax.safe_increment(state.count)
        weight = (1.0 - decay) / (1.0 - jnp.float32(decay) ** count)
        new = chosen(optax.apply_updates(params, updates))
        mean = jax.tree.map(lambda m, p: m + weight * (p.astype(m.dtype) - m), state.mean, new)
        return updates, AverageState(count, mean, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def mean_of(opt_state: optax.OptState, params: PyTree) -> PyTree:
    """The average that a `with_average` within the optimizer's state keeps, in the dtypes of what it trains.

    Raises:
      WrapError: there is none.

    >>> tx, params = with_average(optax.sgd(1.0), decay=0.5), jnp.float32(4.0)
    >>> mean_of(tx.init(params), params)
    Array(4., dtype=float32)
    """
    is_average = lambda x: isinstance(x, AverageState)  # noqa: E731
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_average) if is_average(x)]
    if not found:
        raise WrapError(
            "no average here; inside mz.wrap, keep one by mz.wrap(mz.loop.with_average(tx, decay), transform), or pass "
            "how the optimizer's own is read, such as optax.contrib.schedule_free_eval_params"
        )
    mean = trees.merge(params, found[0].mean)
    return jax.tree.map(lambda m, p: m.astype(p.dtype), mean, params)
