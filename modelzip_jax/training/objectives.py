"""What training minimises, and what it reports on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from modelzip_jax.training.center_objective import center_losses

__all__ = ["Objective", "objective_of", "softmax_cross_entropy"]

Objective = Callable[[jax.Array, Any], tuple[jax.Array, dict[str, jax.Array]]]
"""`(outputs, batch) -> (loss, metrics)`: float32 scalars, means over the batch."""


def softmax_cross_entropy(label_smoothing: float = 0.0) -> Objective:
    """Mean softmax cross-entropy in nats of `batch["labels"]`, an integer for each row of logits.

    Logits may have any leading axes: `(batch, classes)`, or `(batch, length, vocabulary)` for a language
    model. The loss is computed in float32 whatever their dtype.

    Args:
      label_smoothing: probability spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567, §7).

    >>> loss, metrics = softmax_cross_entropy()(jnp.array([[0.0, 9.0]]), {"labels": jnp.array([1])})
    >>> round(float(loss), 4), float(metrics["accuracy"])
    (0.0001, 1.0)
    """

    def objective(outputs: jax.Array, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, labels = outputs.astype(jnp.float32), batch["labels"]
        if label_smoothing:
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
            losses = optax.softmax_cross_entropy(logits, targets)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
        return jnp.mean(losses), {"accuracy": accuracy}

    return objective


def objective_of(kind: str, label_smoothing: float = 0.0) -> Objective:
    """What a network is trained for on data of a kind (`training.data.DataSpec.kind`).

    The cross-entropy of labels; of "scenes", the losses of centres and boxes (`center_losses`).

    >>> objective_of("images")(jnp.array([[0.0, 9.0]]), {"labels": jnp.array([1])})[1]["accuracy"].item()
    1.0
    """
    if kind != "scenes":
        return softmax_cross_entropy(label_smoothing)
    return lambda outputs, batch: (jnp.mean(center_losses(outputs, batch)), {})
