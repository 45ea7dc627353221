"""Knowledge review: each level of the teacher is compared with what the student says at that level and at deeper ones.

The student's features go through attention-based fusions (ABF), whose parameters are trained beside the student and
dropped after training. They are normalised over the batch, so that nothing but parameters is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.array_checks import check_features, check_key, check_same_shape, pairs_of
from modelzip_jax.distillation.pooling import nearest_resized, pooled_to
from modelzip_jax.errors import DistillationError
from modelzip_jax.tree import PyTree

__all__ = ["hierarchical_context", "init_review", "reviewed"]


def init_review(
    key: jax.Array, student_channels: Sequence[int], teacher_channels: Sequence[int], width: int = 64
) -> tuple[PyTree, ...]:
    """Parameters of the fusions, one a level, shallow to deep.

    Args:
      key: a random key.
      student_channels, teacher_channels: of the features at each level, shallow to deep.
      width: channels in which levels are fused; the authors take the student's deepest, at most 512.

    Returns:
      For each level a dict of float32 arrays: "narrow" `(1, 1, student, width)`, "widen" `(3, 3, width, teacher)`,
      their "scale" and "bias" of the normalisation, and, but for the deepest, "attention" `(1, 1, 2 width, 2)`.

    Raises:
      DistillationError: the lists differ in length or are empty, or a number is not a positive integer.

    >>> params = init_review(jax.random.key(0), [8, 16], [32, 64], width=16)
    >>> [sorted(level) for level in params]
    [['attention', 'narrow', 'widen'], ['narrow', 'widen']]
    """
    check_key(key, "init_review")
    pairs = pairs_of(student_channels, teacher_channels, "init_review")
    for size in (*(x for pair in pairs for x in pair), width):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise DistillationError(
                f"init_review: channels and width must be integers of at least 1, not {size!r}"
            )
    init = jax.nn.initializers.lecun_uniform()

    def normalised(key: jax.Array, *shape: int) -> dict[str, jax.Array]:
        return {"kernel": init(key, shape), "scale": jnp.ones(shape[-1]), "bias": jnp.zeros(shape[-1])}

    levels = []
    for number, (own, others) in enumerate(pairs):
        keys = jax.random.split(jax.random.fold_in(key, number), 3)
        level: dict[str, Any] = {
            "narrow": normalised(keys[0], 1, 1, own, width),
            "widen": normalised(keys[1], 3, 3, width, others),
        }
        if number < len(pairs) - 1:
            level["attention"] = {"kernel": init(keys[2], (1, 1, 2 * width, 2)), "bias": jnp.zeros(2)}
        levels.append(level)
    return tuple(levels)


def reviewed(
    params: Sequence[PyTree], student: Sequence[jax.Array], positions: Sequence[tuple[int, int]]
) -> list[jax.Array]:
    """The student's features, level by level fused with those of the deeper ones, in the shapes of the teacher's.

    From the deepest level up, with x the level's features through a 1×1 convolution, and y what the deeper levels
    have come to, at x's positions: (z_x, z_y) = sigmoid(1×1 convolution of both), f = z_x x + z_y y. f at the
    teacher's positions goes up to the next level, and through a 3×3 convolution becomes the result. Both convolutions
    of features are followed by batch normalisation with the moments of this batch.

    Source: Chen et al. 2021, "Distilling knowledge via knowledge review", https://arxiv.org/abs/2104.09044; details as
    in the authors' code.

    Args:
      params: of `init_review`.
      student: features `(batch, height, width, channels)`, shallow to deep.
      positions: height and width of the teacher's features at each level.

    Returns:
      Features of the teacher's shapes, float32, shallow to deep, for `hierarchical_context`.

    Raises:
      DistillationError: features do not fit the parameters or each other.

    >>> params = init_review(jax.random.key(0), [8, 16], [32, 64], width=16)
    >>> student = [jnp.ones((2, 8, 8, 8)), jnp.ones((2, 4, 4, 16))]
    >>> [x.shape for x in reviewed(params, student, [(8, 8), (2, 2)])]
    [(2, 8, 8, 32), (2, 2, 2, 64)]
    """
    pairs_of(student, params, "reviewed")
    pairs_of(student, positions, "reviewed")
    found: list[jax.Array] = []
    deeper: jax.Array | None = None
    for x, level, place in reversed(list(zip(student, params, positions, strict=True))):
        _check_level(x, level, student[0])
        fused = _normalised(level["narrow"], x.astype(jnp.float32))
        if deeper is not None:
            deeper = nearest_resized(deeper, fused.shape[1:3])
            both = jnp.concatenate([fused, deeper], -1)
            attention = level["attention"]
            weights = jax.nn.sigmoid(_convolved(attention["kernel"], both) + attention["bias"])
            fused = fused * weights[..., :1] + deeper * weights[..., 1:]
        deeper = nearest_resized(fused, tuple(place))
        found.append(_normalised(level["widen"], deeper))
    return found[::-1]


def hierarchical_context(student: Sequence[jax.Array], teacher: Sequence[jax.Array]) -> jax.Array:
    """The hierarchical context loss (HCL): mean squared differences of features and of their means over windows.

    For each level of the networks, the weighted mean of the mean squared difference as it is, weight 1, and pooled to
    4×4, 2×2 and 1×1 positions, as far as these are less than the features have, weights 1/2, 1/4, 1/8 in this order.
    Summed over levels. No gradient flows into the teacher.

    Source: Chen et al. 2021, "Distilling knowledge via knowledge review", https://arxiv.org/abs/2104.09044; the weights
    as in the authors' code.

    Args:
      student: of `reviewed`. teacher: features of the same shapes `(batch, height, width, channels)`.

    Raises:
      DistillationError: numbers, shapes or dtypes of features do not fit.

    >>> teacher = [jnp.ones((2, 8, 8, 3))]
    >>> float(hierarchical_context([3.0 * teacher[0]], teacher))
    4.0
    """
    total = jnp.zeros((), jnp.float32)
    for own, others in pairs_of(student, teacher, "hierarchical_context"):
        check_same_shape(own, others, "hierarchical_context")
        if jnp.ndim(own) != 4:
            raise DistillationError(
                f"hierarchical_context: features must be (batch, height, width, channels), not {jnp.shape(own)}"
            )
        difference = own.astype(jnp.float32) - jax.lax.stop_gradient(others.astype(jnp.float32))
        weight, weights, loss = 1.0, 1.0, jnp.mean(jnp.square(difference))
        for size in (4, 2, 1):
            if size < own.shape[1]:
                weight /= 2.0
                weights += weight
                # Pooling is linear: the difference of means is the mean difference.
                pooled = pooled_to(difference, (size, min(size, own.shape[2])))
                loss += weight * jnp.mean(jnp.square(pooled))
        total += loss / weights
    return total


def _convolved(kernel: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _normalised(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A convolution, and batch normalisation with the moments of this batch."""
    x = _convolved(params["kernel"], x)
    mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
    return (x - mean) * (params["scale"] / jnp.sqrt(variance + 1e-5)) + params["bias"]


def _check_level(x: jax.Array, level: PyTree, first: jax.Array) -> None:
    check_features(x, "student", "reviewed", least=4)
    channels = level["narrow"]["kernel"].shape[2]
    if x.ndim != 4 or x.shape[-1] != channels or len(x) != len(first):
        raise DistillationError(
            f"reviewed: features {x.shape} do not fit: (batch, height, width, {channels}) is what the parameters are "
            f"for, and all levels have one batch, of {len(first)}"
        )
