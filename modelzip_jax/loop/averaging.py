"""A moving average of the weights, kept in the optimizer's state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError, WrapError
from modelzip_jax.loop.wrapping import WrapState

__all__ = ["AverageState", "adopt", "averaged", "with_average"]

PyTree = Any


class AverageState(NamedTuple):
    """count: int32 scalar, steps averaged. mean: float32, the structure of what `inner` trains.

    inner: the state of the optimizer inside.
    """

    count: jax.Array
    mean: PyTree
    inner: optax.OptState


def with_average(inner: optax.GradientTransformation, decay: float) -> optax.GradientTransformationExtraArgs:
    """Keeps an exponential moving average of the weights that `inner` trains; `averaged` reads it.

    Stands inside `mz.wrap`, where it averages the latents: an average of decoded weights would lie
    between the points of the quantizer's grid.

    Args:
      decay: weight of the old average at each step, in (0, 1). The average is corrected for its bias
        towards where it began, as in Kingma & Ba 2015, arXiv:1412.6980, §3: after t steps the newest
        weights count (1 - decay) / (1 - decay^t).

    >>> tx = with_average(optax.sgd(1.0), decay=0.5)
    >>> params = jnp.float32(4.0)
    >>> state = tx.init(params)
    >>> updates, state = tx.update(jnp.float32(1.0), state, params)
    >>> averaged(state, optax.apply_updates(params, updates))
    Array(3., dtype=float32)
    """
    if not 0.0 < decay < 1.0:
        raise TransformError(f"decay must be in (0, 1), not {decay!r}")
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> AverageState:
        mean = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        return AverageState(jnp.zeros((), jnp.int32), mean, inner.init(params))

    def update(
        updates: PyTree, state: AverageState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AverageState]:
        if params is None:
            raise TransformError("with_average needs the params: tx.update(grads, opt_state, params)")
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        count = optax.safe_increment(state.count)
        weight = (1.0 - decay) / (1.0 - jnp.float32(decay) ** count)
        new = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda m, p: m + weight * (p.astype(m.dtype) - m), state.mean, new)
        return updates, AverageState(count, mean, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged(opt_state: optax.OptState, params: PyTree) -> PyTree:
    """The averaged weights, in the dtypes of `params`; see `adopt`."""
    return adopt(opt_state, params)[0]


def adopt(opt_state: optax.OptState, params: PyTree) -> tuple[PyTree, optax.OptState]:
    """`(params, opt_state)` with the average in the place of the current weights.

    Under `mz.wrap` the latents are replaced and decoded, so that `mz.pack` ships the average.

    Args:
      opt_state: the state of an optimizer, anywhere within which a `with_average` may stand; where
        none does, everything comes back as it was.
      params: the current weights.

    Raises:
      WrapError: the average is of decoded weights, because it stands around `mz.wrap`, not inside.
    """
    average, wrapped = _find(opt_state, AverageState), _find(opt_state, WrapState)
    if average is None:
        return params, opt_state
    if wrapped is None:
        return jax.tree.map(_cast, average.mean, params), opt_state
    if _find(wrapped.inner, AverageState) is None:
        raise WrapError(
            "the moving average stands around mz.wrap and averages decoded weights; put it inside: "
            "mz.wrap(with_average(tx, decay), transform)"
        )
    treedef = jax.tree.structure(params)
    latents, means = treedef.flatten_up_to(wrapped.values), treedef.flatten_up_to(average.mean)
    values, others = [], []
    for mean, latent, param in zip(means, latents, jax.tree.leaves(params), strict=True):
        selected = not isinstance(latent, trees.Unselected)
        values.append(jax.tree.map(_cast, mean, latent) if selected else latent)
        others.append(param if selected else _cast(mean, param))
    wrapped = wrapped._replace(values=treedef.unflatten(values))
    decoded = wrapped.transform.value.decode(*wrapped.encoded)
    is_wrapped = lambda x: isinstance(x, WrapState)  # noqa: E731
    state = jax.tree.map(lambda x: wrapped if is_wrapped(x) else x, opt_state, is_leaf=is_wrapped)
    return trees.merge(treedef.unflatten(others), decoded), state


def _cast(mean: jax.Array, like: jax.Array) -> jax.Array:
    return mean.astype(like.dtype)


def _find(state: PyTree, kind: type) -> Any:
    """The first node of that kind within an optimizer's state."""
    is_kind = lambda x: isinstance(x, kind)  # noqa: E731
    return next((x for x in jax.tree.leaves(state, is_leaf=is_kind) if is_kind(x)), None)
