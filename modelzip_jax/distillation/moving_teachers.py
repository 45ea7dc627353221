"""A teacher that is the moving average of its student: the mean teacher."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from modelzip_jax.distillation.argument_checks import check_made_by
from modelzip_jax.distillation.array_checks import as_numbers
from modelzip_jax.distillation.finite_numbers import check_number
from modelzip_jax.errors import DistillationError
from modelzip_jax.tree import PyTree, named_leaves, unlike

__all__ = ["MovingTeacher", "move_teacher", "start_moving_teacher"]


class MovingTeacher(NamedTuple):
    """count: int32 scalar, students averaged. params: their average, float32; whole numbers are the last student's.

    >>> start_moving_teacher({"w": jnp.ones(2, jnp.bfloat16)})
    MovingTeacher(count=Array(0, dtype=int32), params={'w': Array([1., 1.], dtype=float32)})
    """

    count: jax.Array
    params: PyTree


def start_moving_teacher(params: PyTree) -> MovingTeacher:
    """The teacher before the first step: a float32 copy of the student, whose buffers may be donated.

    Args:
      params: the student's weights, with its batch statistics if it has some.

    Raises:
      DistillationError: a leaf is no array.

    >>> start_moving_teacher(jnp.float32(3.0)).params
    Array(3., dtype=float32)
    """

    for name, p in named_leaves(params):
        as_numbers(p, f"start_moving_teacher: params {name!r}")

    def copied(p: jax.Array) -> jax.Array:
        return jnp.array(p, jnp.float32 if _averaged(p) else None, copy=True)

    return MovingTeacher(jnp.zeros((), jnp.int32), jax.tree.map(copied, params))


def move_teacher(state: MovingTeacher, params: PyTree, decay: float | jax.Array) -> MovingTeacher:
    """The teacher after a step of its student: θ'_t = α_t θ'_{t-1} + (1 - α_t) θ_t, α_t = min(α, 1 - 1/t).

    Tarvainen & Valpola 2017 (https://arxiv.org/abs/1703.01780). Through α_t the first 1 / (1 - α) students count
    alike, and where training began is forgotten at once; the paper's code begins so. Teach with
    `Teacher(apply, state.params)`.

    Averages the weights that the network computes with. A teacher need not lie on the grid of a compressed student;
    the average that is to be shipped is one of latents, and is `mz.loop.with_average`'s.

    Args:
      params: the student's, as given to `start_moving_teacher`.
      decay: α in [0, 1), may be traced: 0.99 to 0.999 is usual, the larger the longer training is.

    Raises:
      DistillationError: the state is none; the decay is outside [0, 1); the params are of other names or shapes than
        the teacher's.

    >>> state = start_moving_teacher(jnp.float32(9.0))
    >>> for student in (1.0, 2.0, 3.0):
    ...     state = move_teacher(state, jnp.float32(student), decay=0.9)
    >>> state.params
    Array(2., dtype=float32)
    """
    check_made_by(
        state, MovingTeacher, "move_teacher(state, params, decay)", "state", "start_moving_teacher(params)"
    )
    if not isinstance(decay, jax.core.Tracer):
        check_number(decay, "decay", least=0, below=1)
    _check_alike(state.params, params)
    count = optax.safe_increment(state.count)
    newest = jnp.maximum(1.0 - jnp.asarray(decay, jnp.float32), 1.0 / count)

    def moved(old: jax.Array, p: jax.Array) -> jax.Array:
        # By the difference: a student that stands still leaves its teacher exactly where it is.
        return old + newest * (p.astype(old.dtype) - old) if _averaged(p) else jnp.asarray(p)

    return MovingTeacher(count, jax.tree.map(moved, state.params, jax.lax.stop_gradient(params)))


def _check_alike(teacher: PyTree, student: PyTree) -> None:
    """Other shapes would be broadcast."""
    if jax.tree.structure(teacher) != jax.tree.structure(student):
        raise DistillationError(
            f"move_teacher: the student's params are not those of start_moving_teacher: {unlike(student, teacher)}"
        )
    for (name, old), new in zip(named_leaves(teacher), jax.tree.leaves(student), strict=True):
        if jnp.shape(old) != jnp.shape(new):
            raise DistillationError(
                f"move_teacher: {name or 'the leaf'} is {jnp.shape(new)} in the student and {jnp.shape(old)} in the "
                "teacher, which was started of another network"
            )


def _averaged(p: jax.Array) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(p), jnp.floating))
