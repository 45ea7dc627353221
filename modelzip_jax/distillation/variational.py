"""Variational information distillation: the teacher's features as a Gaussian around what the student says of them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modelzip_jax.distillation.finite_numbers import check_count, check_number
from modelzip_jax.errors import DistillationError

__all__ = ["init_variance", "learned_variance", "variational_information"]

FLOOR = 1e-5
"""The least variance, epsilon of Ahn et al. 2019."""


def init_variance(channels: int, variance: float = 5.0) -> Float[Array, " channels"]:
    """Raw params of a variance for each channel, float32; `learned_variance` of them is `variance`.

    Args:
      variance: above 1e-5. The authors' code begins with 5.

    Raises:
      DistillationError: channels is no count, or variance is out of range.

    >>> learned_variance(init_variance(2, 3.0))
    Array([3., 3.], dtype=float32)
    """
    excess = check_number(variance, "variance", above=FLOOR) - FLOOR
    raw = excess + math.log(-math.expm1(-excess))  # The inverse of softplus, without overflow.
    return jnp.full(check_count(channels, "channels"), raw, jnp.float32)


def learned_variance(raw_variance: Float[Array, " channels"]) -> Float[Array, " channels"]:
    """sigma_c^2 = log(1 + exp(raw_c)) + 1e-5, float32 (Ahn et al. 2019).

    >>> learned_variance(jnp.array([-1e4, 1e4]))
    Array([1.e-05, 1.e+04], dtype=float32)
    """
    return jax.nn.softplus(jnp.asarray(raw_variance, jnp.float32)) + FLOOR


def variational_information(
    student: Float[Array, "... channels"],
    teacher: Float[Array, "... channels"],
    raw_variance: Float[Array, " channels"],
) -> Float[Array, ""]:
    """-E log q(t | s) = E [(t - mu)^2 / (2 sigma_c^2) + log(2 pi sigma_c^2) / 2], in nats per element.

    Variational information distillation (VID), Ahn et al. 2019 (https://arxiv.org/abs/1904.05835). q is a
    Gaussian with the mean mu, what the student says of the teacher's feature t, and a variance for each channel. As
    I(t; s) >= H(t) + E log q(t | s), minimising it over the student, its projector and the variances maximises a bound
    on their information. H(t) does not depend on the student, and is not known. The mean is over all elements: times
    `teacher[0].size` it is the sum that the paper writes. Unlike it, the constant log(2 pi) / 2 is kept, so that the
    value is in nats. Student, projector and variances are all to be trained by it; no gradient flows to the teacher.

    At given means the best variance is the mean squared error of the channel, v, and the loss (1 + log(2 pi v)) / 2:
    channels that the student cannot predict cost it little, which is the point of learning the variances.

    Args:
      student: floats (batch, ..., channels) in the teacher's shape, by a projector if need be. For logits, channels are
        the classes.
      teacher: floats of the same shape.
      raw_variance: from `init_variance`.

    Raises:
      DistillationError: the shapes differ, there is no element, or something is not floating-point.

    >>> t = jax.random.normal(jax.random.key(0), (64, 3))
    >>> x = variational_information(jnp.zeros_like(t), t, init_variance(3, 1.0))
    >>> bool(jnp.isclose(x, 0.5 * jnp.mean(t**2) + 0.5 * jnp.log(2 * jnp.pi), rtol=1e-4))
    True
    """
    shapes = [jnp.shape(x) for x in (student, teacher)]
    if shapes[0] != shapes[1] or not math.prod(shapes[0]) or len(shapes[0]) < 2:
        raise DistillationError(
            f"variational_information: the student's features are of shape {shapes[0]}, the teacher's of {shapes[1]}; "
            "both must be (batch, ..., channels) and alike: put the student's through a projector"
        )
    if jnp.shape(raw_variance) != shapes[0][-1:]:
        raise DistillationError(
            f"variational_information: raw_variance is of shape {jnp.shape(raw_variance)}, for features of "
            f"{shapes[0][-1]} channels; init_variance({shapes[0][-1]}) makes one"
        )
    for name, x in [("student", student), ("teacher", teacher), ("raw_variance", raw_variance)]:
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise DistillationError(
                f"variational_information: {name} is {jnp.result_type(x)}, not floating-point"
            )
    variance = learned_variance(raw_variance)
    errors = jnp.asarray(student, jnp.float32) - jax.lax.stop_gradient(jnp.asarray(teacher, jnp.float32))
    axes = tuple(range(errors.ndim - 1))
    # Means over each channel first: the variances then have a gradient of `channels` numbers, not of all elements.
    squares = jnp.mean(errors**2, axis=axes)
    return 0.5 * jnp.mean(squares / variance + jnp.log(variance)) + 0.5 * math.log(2.0 * math.pi)
