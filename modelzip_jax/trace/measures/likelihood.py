"""What the Fisher information is the information of: the model's outputs as a distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TraceError

__all__ = ["Likelihood", "Loss", "losses"]

Likelihood = Literal["categorical", "gaussian"] | Callable[[Any, Any], jax.Array]
Loss = Callable[[Any, Any, Any], jax.Array]
"""From outputs, a key to sample labels with and labels (or None): the loss of each example, `(batch,)`."""


def losses(likelihood: Likelihood) -> Loss:
    """The negative log-likelihood of each example, its positions summed.

    "categorical": outputs are logits `(batch, ..., classes)`, labels int `(batch, ...)`, or sampled from
    the softmax. "gaussian": outputs are means `(batch, ...)` of unit variance, labels of the same shape,
    or sampled: the pseudo-loss ½‖y − (y + ε)‖² with constant y + ε, whose Fisher is the Gauss-Newton
    matrix of the squared error. A function gets outputs and labels.

    Raises:
      TraceError: an unknown name, or outputs that are not one array.

    >>> logits = jnp.log(jnp.array([[0.25, 0.75]]))
    >>> losses("categorical")(logits, None, jnp.array([0]))
    Array([1.3862944], dtype=float32)
    """
    if callable(likelihood):
        return lambda outputs, key, labels: likelihood(outputs, labels)
    named = {"categorical": _categorical, "gaussian": _gaussian}
    if likelihood not in named:
        raise TraceError(f"likelihood must be 'categorical', 'gaussian' or a function, not {likelihood!r}")
    return named[likelihood]


def _array(outputs: Any) -> jax.Array:
    leaves = jax.tree.leaves(outputs)
    if len(leaves) != 1:
        raise TraceError(
            f"the model returns {len(leaves)} arrays: give a function of (outputs, labels) as the likelihood"
        )
    return leaves[0].astype(jnp.float32)


def _categorical(outputs: Any, key: Any, labels: Any) -> jax.Array:
    scores = jax.nn.log_softmax(_array(outputs))
    if labels is None:
        labels = jax.random.categorical(key, jax.lax.stop_gradient(scores))
    picked = jnp.take_along_axis(scores, labels[..., None], axis=-1)
    return -jnp.sum(picked.reshape(picked.shape[0], -1), axis=1)


def _gaussian(outputs: Any, key: Any, labels: Any) -> jax.Array:
    means = _array(outputs)
    if labels is None:
        labels = jax.lax.stop_gradient(means) + jax.random.normal(key, means.shape)
    return 0.5 * jnp.sum(jnp.square(means - labels).reshape(means.shape[0], -1), axis=1)
