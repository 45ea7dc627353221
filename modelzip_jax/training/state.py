"""The state of a training run: everything that a step reads and writes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from modelzip_jax.tree import PyTree

__all__ = ["TrainState", "begin"]


class TrainState(NamedTuple):
    """What a training step takes and gives back.

    step: int32 scalar, steps taken. params: the weights. variables: what the network updates by itself,
    such as batch statistics. opt_state: the optimizer's state. key: the run's PRNG key; a step uses
    `fold_in(key, step)`, so that its randomness depends on nothing but the step. beside: what a run keeps and
    trains beside the network and never ships, such as a teacher and its projectors.
    """

    step: jax.Array
    params: PyTree
    variables: PyTree
    opt_state: optax.OptState
    key: jax.Array
    beside: PyTree = ()


def begin(
    params: PyTree,
    variables: PyTree,
    opt_state: optax.OptState,
    key: jax.Array,
    step: int = 0,
    beside: PyTree = (),
) -> TrainState:
    """A state at the given step, copied so that the loop may donate it.

    Args:
      key: a typed PRNG key, as from `jax.random.key`.

    >>> begin({"w": jnp.ones(2)}, {}, (), jax.random.key(0)).step
    Array(0, dtype=int32)
    """
    state = TrainState(jnp.asarray(step, jnp.int32), params, variables, opt_state, key, beside)
    return jax.tree.map(lambda x: jnp.array(x, copy=True), state)
