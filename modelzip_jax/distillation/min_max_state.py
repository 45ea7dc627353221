"""What a min–max step reads and writes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax

from modelzip_jax.tree import PyTree

__all__ = ["CriticState", "MinMaxState", "StudentOutput"]


class StudentOutput(NamedTuple):
    """What the student's function gives for a batch.

    losses: its own losses by name, float scalars, unweighted; may be empty. views: what critics read, by the critic's
    name, floats (batch, ...). variables: what the network updates by itself, such as batch statistics.

    >>> import jax.numpy as jnp
    >>> StudentOutput({"labels": jnp.float32(1.0)}, {"logits": jnp.ones((2, 3))}).variables
    ()
    """

    losses: dict[str, jax.Array]
    views: dict[str, jax.Array]
    variables: PyTree = ()


class CriticState(NamedTuple):
    """A critic's params, its memory, and its optimizer's state.

    >>> CriticState({}, (), ()).memory
    ()
    """

    params: PyTree
    memory: PyTree
    opt_state: optax.OptState


class MinMaxState(NamedTuple):
    """What a step takes and gives back.

    step: int32 scalar, steps taken. params, variables, opt_state: the student's. critics: `CriticState` by name.
    balance: the balancer's state. counts: of signs of collapse. key: the run's PRNG key; a step uses
    `fold_in(key, step)`.

    >>> import jax.numpy as jnp
    >>> MinMaxState(jnp.int32(0), {}, (), (), {}, (), {}, jax.random.key(0)).step
    Array(0, dtype=int32)
    """

    step: jax.Array
    params: PyTree
    variables: PyTree
    opt_state: optax.OptState
    critics: dict[str, CriticState]
    balance: PyTree
    counts: dict[str, jax.Array]
    key: jax.Array
