"""What every distillation loss asks of its arguments; shapes and dtypes only, so that checks run under `jit`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import DistillationError

__all__ = [
    "as_numbers",
    "as_weight",
    "check_features",
    "check_indices",
    "check_key",
    "check_labels",
    "check_logits",
    "check_same_batch",
    "check_same_shape",
    "check_temperature",
    "check_weights",
    "nan_where_outside",
    "pairs_of",
]


def check_logits(student: Any, teacher: Any, loss_name: str) -> None:
    """Logits of both networks: floating, of one shape `(..., classes)`, with at least one class and one row.

    Raises:
      DistillationError: they are not; the message names the loss, the argument and both shapes.

    >>> check_logits(jnp.ones((8, 10)), jnp.ones((8, 100)), "soft_targets")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: soft_targets: student and teacher have different numbers of classes:
    student logits (8, 10), teacher logits (8, 100)
    """
    for who, array in (("student", student), ("teacher", teacher)):
        _check_floating(array, f"{who} logits", loss_name)
        if jnp.ndim(array) < 1 or math.prod(jnp.shape(array)) == 0:
            raise DistillationError(
                f"{loss_name}: {who} logits must be (..., classes) with at least one class and one row, not "
                f"{jnp.shape(array)}"
            )
    if jnp.shape(student) != jnp.shape(teacher):
        shapes = f"student logits {jnp.shape(student)}, teacher logits {jnp.shape(teacher)}"
        differ = "numbers of classes" if jnp.shape(student)[-1] != jnp.shape(teacher)[-1] else "batch shapes"
        raise DistillationError(f"{loss_name}: student and teacher have different {differ}: {shapes}")


def check_labels(labels: Any, logits: Any, loss_name: str) -> None:
    """Labels: integers, one for each row of the logits; where their values can be read, from 0 to classes - 1.

    Raises:
      DistillationError: they are not.

    >>> check_labels(jnp.array([0, 10]), jnp.ones((2, 10)), "decoupled")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: decoupled: labels must be from 0 to 9, not from 0 to 10
    """
    _check_array(labels, "labels", loss_name)
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise DistillationError(f"{loss_name}: labels must be integers, not {jnp.result_type(labels)}")
    if jnp.shape(labels) != jnp.shape(logits)[:-1]:
        raise DistillationError(
            f"{loss_name}: labels must have a number for each row of logits: labels {jnp.shape(labels)}, "
            f"logits {jnp.shape(logits)}"
        )
    check_indices(labels, jnp.shape(logits)[-1], f"{loss_name}: labels")


def check_indices(indices: Any, size: int, what: str, *, or_none: bool = False) -> None:
    """Indices from 0 to size - 1; those of a tracer are not looked at: `nan_where_outside` says it of them.

    Args:
      or_none: whether numbers below 0 stand for no index and pass.

    Raises:
      DistillationError: they are not.

    >>> check_indices(jnp.array([2]), 2, "contrastive: examples")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: contrastive: examples must be from 0 to 1, not from 2 to 2
    """
    if isinstance(indices, jax.core.Tracer) or not getattr(indices, "is_fully_addressable", True):
        return
    # NumPy's own: a JAX array's methods are traced under jit, also where its values are known.
    seen = np.asarray(indices)
    if seen.size and not ((or_none or seen.min() >= 0) and seen.max() < size):
        beside = ", or below 0 where there is none" if or_none else ""
        raise DistillationError(
            f"{what} must be from 0 to {size - 1}{beside}, not from {seen.min()} to {seen.max()}"
        )


def nan_where_outside(values: jax.Array, indices: jax.Array, size: int) -> jax.Array:
    """The values, and NaN, gradients too, where a traced index is not from 0 to size - 1: nobody could refuse it.

    Args:
      values: floats, of which the indices' axes are the first.

    >>> nan_where_outside(jnp.ones(3), jnp.array([0, 2, -1]), 2)
    Array([ 1., nan, nan], dtype=float32)
    """
    factor = jnp.where((indices >= 0) & (indices < size), 1.0, jnp.nan).astype(values.dtype)
    return values * factor.reshape(*factor.shape, *(1,) * (values.ndim - factor.ndim))


def check_key(key: Any, name: str) -> None:
    """A random key: of `jax.random.key`, or two raw words of `jax.random.PRNGKey`.

    Raises:
      DistillationError: it is none, or several.

    >>> check_key(0, "init_projector")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: init_projector: key must be one random key, jax.random.key(0), not 0
    """
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32 and jnp.ndim(key) == 1
    if not ((typed and jnp.ndim(key) == 0) or raw):
        raise DistillationError(f"{name}: key must be one random key, jax.random.key(0), not {key!r:.100}")


def check_features(array: Any, name: str, loss_name: str, least: int = 2) -> None:
    """Features: floating, with at least one entry along every one of at least `least` axes.

    Raises:
      DistillationError: they are not.

    >>> check_features(jnp.ones(3), "student", "similarity")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: similarity: student features must have 2 axes or more, none of them empty,
    not the shape (3,)
    """
    _check_floating(array, f"{name} features", loss_name)
    if jnp.ndim(array) < least or math.prod(jnp.shape(array)) == 0:
        raise DistillationError(
            f"{loss_name}: {name} features must have {least} axes or more, none of them empty, not the shape "
            f"{jnp.shape(array)}"
        )


def check_same_batch(student: Any, teacher: Any, loss_name: str) -> None:
    """Features of both networks, of one batch.

    Raises:
      DistillationError: the first axes differ, or either is no array of features.

    >>> check_same_batch(jnp.ones((8, 3)), jnp.ones((4, 3)), "similarity")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: similarity: student and teacher have different batch sizes: student (8, 3),
    teacher (4, 3)
    """
    check_features(student, "student", loss_name)
    check_features(teacher, "teacher", loss_name)
    if jnp.shape(student)[0] != jnp.shape(teacher)[0]:
        raise DistillationError(
            f"{loss_name}: student and teacher have different batch sizes: student {jnp.shape(student)}, "
            f"teacher {jnp.shape(teacher)}"
        )


def check_same_shape(student: Any, teacher: Any, loss_name: str) -> None:
    """Features of both networks, of one shape.

    Raises:
      DistillationError: they are not; other widths need a projector.

    >>> check_same_shape(jnp.ones((8, 3)), jnp.ones((8, 4)), "hint")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: hint: student features (8, 3) and teacher features (8, 4) have different
    shapes; bring the student's to the teacher's width with a projector, distillation.project
    """
    check_same_batch(student, teacher, loss_name)
    if jnp.shape(student) != jnp.shape(teacher):
        raise DistillationError(
            f"{loss_name}: student features {jnp.shape(student)} and teacher features {jnp.shape(teacher)} have "
            "different shapes; bring the student's to the teacher's width with a projector, distillation.project"
        )


def check_temperature(temperature: Any, loss_name: str) -> None:
    """A temperature: a finite positive number, or a scalar array whose value is then asked for.

    Raises:
      DistillationError: it is not.

    >>> check_temperature(0.0, "soft_targets")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: soft_targets: temperature must be a positive finite number, not 0.0
    """
    as_weight(temperature, "temperature", loss_name, positive=True)


def as_weight(value: Any, name: str, loss_name: str, *, positive: bool = False) -> Any:
    """A hyperparameter: a finite number of at least 0, given back. A tracer's value, of a schedule, is not looked at.

    Args:
      value: a number, or a scalar array. positive: whether it has to be above 0.

    Raises:
      DistillationError: it is not.

    >>> as_weight(float("nan"), "alpha", "decoupled")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: decoupled: alpha must be a finite number of at least 0, not nan
    """
    wanted = "a positive finite number" if positive else "a finite number of at least 0"
    scalar = isinstance(value, int | float | np.number | np.ndarray | jax.Array) and jnp.ndim(value) == 0
    if not scalar or isinstance(value, bool):
        raise DistillationError(f"{loss_name}: {name} must be {wanted}, not {value!r:.100}")
    if isinstance(value, jax.core.Tracer):
        return value
    number = float(value)
    if not 0 <= number < math.inf or (positive and number == 0):
        raise DistillationError(f"{loss_name}: {name} must be {wanted}, not {number}")
    return value


def as_numbers(value: Any, what: str) -> jax.Array | np.ndarray:
    """An array, or one of the numbers in a list.

    Raises:
      DistillationError: it is none; the message begins with `what`.

    >>> as_numbers("x", "hardest: scores")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: hardest: scores must be an array of numbers, not a str
    """
    if isinstance(value, jax.Array):
        return value
    for convert in (np.asarray, jnp.asarray):  # NumPy has no lists of tracers.
        try:
            found = convert(value)
        except (ValueError, TypeError):
            continue
        if found.dtype.kind in "OSUmM":
            break
        return found
    raise DistillationError(f"{what} must be an array of numbers, not a {type(value).__name__}")


def check_weights(weights: Any, what: str) -> None:
    """Weights of examples: finite numbers of at least 0; those of a tracer are not looked at.

    Raises:
      DistillationError: they are not.

    >>> check_weights(jnp.array([1.0, -0.5]), "weights")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: weights must be finite numbers of at least 0; number 1 is -0.5
    """
    if isinstance(weights, jax.core.Tracer) or not getattr(weights, "is_fully_addressable", True):
        return
    seen = np.asarray(weights)
    wrong = ~((seen >= 0) & np.isfinite(seen))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DistillationError(
            f"{what} must be finite numbers of at least 0; number {first} is {seen.reshape(-1)[first]}"
        )


def pairs_of(student: Sequence[Any], teacher: Sequence[Any], loss_name: str) -> list[tuple[Any, Any]]:
    """What two lists of features have at the same place.

    Raises:
      DistillationError: they are of different lengths, or empty, or no lists.

    >>> pairs_of([1, 2], [3], "hierarchical_context")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: hierarchical_context: as many features of the student as of the teacher are
    needed, in a list or tuple each: student 2, teacher 1
    """
    counts = [
        len(x) if isinstance(x, list | tuple) else f"one {type(x).__name__}" for x in (student, teacher)
    ]
    if counts[0] != counts[1] or counts[0] == 0 or isinstance(counts[0], str):
        raise DistillationError(
            f"{loss_name}: as many features of the student as of the teacher are needed, in a list or tuple each: "
            f"student {counts[0]}, teacher {counts[1]}"
        )
    return list(zip(student, teacher, strict=True))


def _check_array(array: Any, what: str, loss_name: str) -> None:
    if not isinstance(array, jax.Array | np.ndarray):
        raise DistillationError(f"{loss_name}: {what} must be an array, not a {type(array).__name__}")


def _check_floating(array: Any, what: str, loss_name: str) -> None:
    _check_array(array, what, loss_name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise DistillationError(f"{loss_name}: {what} must be of a floating dtype, not {array.dtype}")
