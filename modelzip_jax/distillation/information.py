"""Lower bounds on the mutual information of student and teacher, from scores of pairs, in nats.

A score function T gives a number for a student's features and a teacher's. Of a batch of N examples all pairs are
scored: `scores[i, j] = T(s_i, t_j)`. Those on the diagonal are draws from the joint distribution, the others from
the product of the marginals. Each bound is maximised over T and over the student alike.

| bound | I >= | at most | estimate from a batch |
| --- | --- | --- | --- |
| InfoNCE | E log(e^T(s_i, t_i) / mean_j e^T(s_i, t_j)) | log N | low variance; a bound in expectation |
| Donsker–Varadhan | E_joint T - log E_product e^T | – | variance like e^I / N; the log of a mean is biased upwards |

Poole et al. 2019 (https://arxiv.org/abs/1905.06922) derive and compare them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modelzip_jax.distillation.array_checks import as_numbers
from modelzip_jax.distillation.finite_numbers import check_number
from modelzip_jax.errors import DistillationError

__all__ = ["corrected_donsker_varadhan", "donsker_varadhan", "info_nce"]


def info_nce(scores: Float[Array, "batch batch"]) -> Float[Array, ""]:
    """log N + mean_i [T_ii - log sum_j e^T_ij], nats: the information of each student's feature on its teacher's.

    van den Oord et al. 2018 (https://arxiv.org/abs/1807.03748), §2.3: log N less the cross-entropy, Eq. 4, of finding
    the teacher's features that belong to the student's among the N of the batch. It is never above log N, so that a
    batch of 64 cannot show more than 4.16 nats. `math.log(N) - info_nce(scores)` is that cross-entropy, >= 0. To be
    maximised; gradients flow to all scores.

    Args:
      scores: floats; row i is the student's example i, column j the teacher's j.

    Raises:
      DistillationError: the scores are not square, or not floating-point.

    >>> round(float(info_nce(50.0 * jnp.eye(4))), 4), round(math.log(4), 4)
    (1.3863, 1.3863)
    """
    scores = _square(scores, "info_nce")
    return math.log(len(scores)) + jnp.mean(jnp.diagonal(jax.nn.log_softmax(scores, axis=1)))


def donsker_varadhan(scores: Float[Array, "batch batch"]) -> Float[Array, ""]:
    """mean_i T_ii - log mean_{i != j} e^T_ij, nats.

    Donsker & Varadhan 1983, as Belghazi et al. 2018 estimate it with a network for T (MINE,
    https://arxiv.org/abs/1801.04062); here all N (N - 1) pairs of different examples stand for the product of the
    marginals. The gradient is that of the batch's estimate, which is biased; `corrected_donsker_varadhan` has a better
    one. To be maximised; gradients flow to all scores.

    Args:
      scores: floats; row i is the student's example i, column j the teacher's j. Two examples at least.

    Raises:
      DistillationError: the scores are not square, of one example, or not floating-point.

    >>> donsker_varadhan(jnp.full((4, 4), 3.0))  # a constant score knows nothing
    Array(0., dtype=float32)
    """
    scores = _square(scores, "donsker_varadhan", least=2)
    return jnp.mean(jnp.diagonal(scores)) - _log_mean_of_others(scores)


def corrected_donsker_varadhan(
    scores: Float[Array, "batch batch"], log_average: Float[Array, ""], decay: float = 0.99
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`(bound, log_average)`: the value of `donsker_varadhan`, with MINE's gradient of less bias.

    Belghazi et al. 2018, §3.2, Eq. 12. The gradient of log E e^T is E[e^T grad T] / E e^T; a batch's mean in the
    denominator biases it, so there stands a moving average over the steps: a <- decay a + (1 - decay) mean e^T.
    It is kept as its logarithm, so that large scores do not overflow, and includes this batch, so that the
    ratio is at most 1 / (1 - decay).

    Args:
      scores: as `donsker_varadhan` takes them.
      log_average: float32 scalar, log a of the steps before; `-jnp.inf` before the first one, where a is this batch's.
      decay: of the average, in [0, 1); 0 is the gradient of `donsker_varadhan`.

    Raises:
      DistillationError: the scores are not square, of one example, or not floating-point; decay is out of range.

    >>> bound, log_average = corrected_donsker_varadhan(jnp.eye(2), jnp.float32(-jnp.inf))
    >>> bound, log_average
    (Array(1., dtype=float32), Array(0., dtype=float32))
    """
    decay = check_number(decay, "decay", least=0, below=1)
    scores = _square(scores, "corrected_donsker_varadhan", least=2)
    log_average = as_numbers(log_average, "corrected_donsker_varadhan: log_average")
    joint, log_mean = jnp.mean(jnp.diagonal(scores)), _log_mean_of_others(scores)
    now, old = jax.lax.stop_gradient(log_mean), jax.lax.stop_gradient(jnp.asarray(log_average, jnp.float32))
    mixed = jnp.logaddexp(old + math.log(decay), now + math.log1p(-decay)) if decay else now
    log_average = jnp.where(jnp.isneginf(old), now, mixed)
    # The gradient of exp(log_mean - log_average) is E[e^T grad T] / a, its value is taken out again.
    ratio = jnp.exp(now - log_average)
    return joint - (now + ratio * (log_mean - now)), log_average


def _log_mean_of_others(scores: jax.Array) -> jax.Array:
    n = len(scores)
    others = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, scores)
    return jax.nn.logsumexp(others) - math.log(n * (n - 1))


def _square(scores: jax.Array, name: str, least: int = 1) -> jax.Array:
    scores = as_numbers(scores, f"{name}: scores")
    shape, dtype = jnp.shape(scores), jnp.result_type(scores)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < least:
        raise DistillationError(
            f"{name}: scores are of shape {shape}; they must be (batch, batch), of every student's features with every "
            f"teacher's, with a batch of at least {least}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise DistillationError(f"{name}: scores are {dtype}, not floating-point")
    return jnp.asarray(scores, jnp.float32)
