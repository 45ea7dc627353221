"""What reads student and teacher and is trained beside them: a discriminator, or a bound on their information.

A critic has params, a memory, and two losses of the same features: its own, and the student's term. For a bound the
two are one; for a discriminator they oppose each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.finite_numbers import check_count
from modelzip_jax.distillation.perceptrons import init_perceptron, perceptron
from modelzip_jax.errors import DistillationError
from modelzip_jax.tree import PyTree

__all__ = [
    "Critic",
    "CriticOutput",
    "InitApply",
    "check_network",
    "check_views",
    "perceptron_network",
    "placeholder",
]

InitApply = tuple[Callable[..., PyTree], Callable[..., jax.Array]]
"""`(init, apply)`: `init(key, features) -> params`, `apply(params, features) -> outputs`, such as a Linen module's."""


class CriticOutput(NamedTuple):
    """What a critic says of a batch.

    loss: what the critic minimises, float32 scalar. memory: the next one. metrics: float32 scalars to watch.
    signs: of trouble, bool scalars; `check_collapse` says what each means.

    >>> CriticOutput(jnp.float32(1.0), (), {}, {}).loss
    Array(1., dtype=float32)
    """

    loss: jax.Array
    memory: PyTree
    metrics: dict[str, jax.Array]
    signs: dict[str, jax.Array]


class Critic(NamedTuple):
    """Pure functions of params, memory and the features of student and teacher, floats (batch, ...).

    `init(key, student, teacher) -> (params, memory)`, from arrays or their shapes. `critic_loss(params, memory,
    student, teacher) -> CriticOutput`. `student_loss(params, memory, student, teacher) -> float32 scalar`.
    positive: whether the student's loss is never negative, so that balances that read ratios of losses can have it.

    >>> from modelzip_jax.distillation import info_nce_critic
    >>> critic, features = info_nce_critic(), jnp.ones((4, 3))
    >>> params, memory = critic.init(jax.random.key(0), features, features)
    >>> round(float(critic.student_loss(params, memory, features, features)), 4)  # all alike: log 4
    1.3863
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    critic_loss: Callable[..., CriticOutput]
    student_loss: Callable[..., jax.Array]
    positive: bool


def perceptron_network(widths: Sequence[int], outputs: int, silent: bool = False) -> InitApply:
    """A perceptron on flattened features as `(init, apply)`; `silent` ones give zeros until they are trained.

    Raises:
      DistillationError: widths are no list of counts.

    >>> init, apply = perceptron_network([16], 1)
    >>> apply(init(jax.random.key(0), jnp.ones((4, 2, 3))), jnp.ones((4, 2, 3))).shape
    (4, 1)
    """
    if not isinstance(widths, Sequence) or isinstance(widths, str):
        raise DistillationError(
            f"widths must be a list, of one number for each hidden layer, not {widths!r:.100}"
        )
    for width in widths:
        check_count(width, "a width")

    def init(key: jax.Array, features: jax.Array) -> PyTree:
        params = init_perceptron(key, math.prod(features.shape[1:]), widths, outputs)
        last = f"Dense_{len(params) - 1}"
        return {**params, last: jax.tree.map(jnp.zeros_like, params[last])} if silent else params

    return init, perceptron


def check_network(network: Any, call: str, argument: str) -> None:
    """Refuses what is no `(init, apply)` of functions.

    >>> check_network(len, "discriminator", "network")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: discriminator: network must be two functions, (init, apply), not a ...
    """
    if not isinstance(network, tuple | list) or len(network) != 2 or not all(map(callable, network)):
        raise DistillationError(
            f"{call}: {argument} must be two functions, (init, apply), not a {type(network).__name__}; of a Linen "
            "module they are module.init and module.apply"
        )


def check_views(student: Any, teacher: Any, name: str, axes: int | None = None) -> None:
    """Refuses features of student and teacher that do not fit each other, are empty or not floating-point.

    Args:
      axes: None compares whole shapes, -1 all axes but the last, 0 the batch alone.

    >>> check_views(jnp.ones((4, 3)), jnp.ones((4, 5)), "discriminator")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: discriminator: the student's features are of shape (4, 3), ...
    """
    shapes = [jnp.shape(x) for x in (student, teacher)]
    compared = [shape if axes is None else shape[:-1] if axes == -1 else shape[:1] for shape in shapes]
    if compared[0] != compared[1] or not compared[0] or 0 in shapes[0] + shapes[1]:
        what = {None: "in shape", -1: "in more than their channels", 0: "in their batch"}[axes]
        raise DistillationError(
            f"{name}: the student's features are of shape {shapes[0]}, the teacher's of {shapes[1]}; they may "
            f"not differ {what}, nor be empty{'' if axes == 0 else ': put the student through a projector'}"
        )
    for side, x in [("student", student), ("teacher", teacher)]:
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise DistillationError(
                f"{name}: the {side}'s features are {jnp.result_type(x)}, not floating-point"
            )


def placeholder(like: Any) -> jax.Array:
    """Zeros of the shape and dtype of an array, or of what stands for one.

    >>> placeholder(jax.ShapeDtypeStruct((2,), jnp.float32))
    Array([0., 0.], dtype=float32)
    """
    return jnp.zeros(jnp.shape(like), jnp.result_type(like))
