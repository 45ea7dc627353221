"""Forgetting: how often an example, once classified correctly, is lost again during training."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Forgetting", "forgetting_scores", "record_forgetting", "start_forgetting"]


class Forgetting(NamedTuple):
    """What is known of each of n examples: bool, int32 and bool `(n,)`; a pytree that a jitted step may carry.

    correct: whether it was classified correctly when last seen. events: how often it has been forgotten.
    learned: whether it was ever classified correctly.

    >>> start_forgetting(2).events
    Array([0, 0], dtype=int32)
    """

    correct: jax.Array
    events: jax.Array
    learned: jax.Array


def start_forgetting(examples: int) -> Forgetting:
    """Nothing seen yet.

    >>> start_forgetting(2).correct
    Array([False, False], dtype=bool)
    """
    return Forgetting(jnp.zeros(examples, bool), jnp.zeros(examples, jnp.int32), jnp.zeros(examples, bool))


def record_forgetting(state: Forgetting, indices: jax.Array, correct: jax.Array) -> Forgetting:
    """After a step on a batch: an event is an example that was correct when last seen, and is not now.

    Toneva et al. 2019 (https://arxiv.org/abs/1812.05159, §3.1 and algorithm 1): examples are looked at when they are
    in the batch, with the predictions that the training step makes anyway. Jittable.

    Args:
      indices: integers `(batch,)`, no two alike: a field `"index": np.arange(n)` of the data comes with each batch.
      correct: bool `(batch,)`, `jnp.argmax(logits, -1) == labels`.

    >>> state = start_forgetting(3)
    >>> for seen in ([True, False, True], [False, False, True], [True, False, True]):
    ...     state = record_forgetting(state, jnp.arange(3), jnp.array(seen))
    >>> state.events
    Array([1, 0, 0], dtype=int32)
    """
    forgotten = state.correct[indices] & ~correct
    return Forgetting(
        state.correct.at[indices].set(correct),
        state.events.at[indices].add(forgotten.astype(jnp.int32)),
        state.learned.at[indices].max(correct),
    )


def forgetting_scores(state: Forgetting) -> jax.Array:
    """Events of each example, float32 `(n,)`; infinite for what was never learned, as the paper sorts them (§3.1).

    `hardest` chooses by it.

    >>> state = record_forgetting(start_forgetting(2), jnp.arange(2), jnp.array([True, False]))
    >>> forgetting_scores(state)
    Array([ 0., inf], dtype=float32)
    """
    return jnp.where(state.learned, state.events.astype(jnp.float32), jnp.inf)
