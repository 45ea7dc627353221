"""Projectors: they bring the student's features to the teacher's width, are trained with it and dropped afterwards."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.array_checks import as_weight, check_features, check_key
from modelzip_jax.distillation.safe_norms import centred
from modelzip_jax.errors import DistillationError
from modelzip_jax.meshes import spec_of, under_any_mesh
from modelzip_jax.tree import PyTree

__all__ = [
    "init_orthogonal_projector",
    "init_projector",
    "orthogonal_matrix",
    "project",
    "project_orthogonally",
    "standardize_features",
    "whiten",
]


def init_projector(key: jax.Array, student_width: int, teacher_width: int) -> PyTree:
    """Parameters of `project`: "kernel" `(student_width, teacher_width)`, LeCun normal, and "bias", zeros; float32.

    Raises:
      DistillationError: a width is not a positive integer.

    >>> params = init_projector(jax.random.key(0), 4, 8)
    >>> params["kernel"].shape, params["bias"].shape
    ((4, 8), (8,))
    """
    check_key(key, "init_projector")
    _check_widths(student_width, teacher_width, "init_projector")
    kernel = jax.nn.initializers.lecun_normal()(key, (student_width, teacher_width))
    return {"kernel": kernel, "bias": jnp.zeros(teacher_width)}


def project(params: PyTree, features: jax.Array) -> jax.Array:
    """x W + b at every position: a 1×1 convolution, or a dense layer.

    Args:
      params: of `init_projector`. features: `(..., student_width)`, any floating dtype.

    Returns:
      float32 `(..., teacher_width)`.

    Raises:
      DistillationError: the features are not floating, or of another width.

    >>> project(init_projector(jax.random.key(0), 4, 8), jnp.ones((2, 7, 7, 4))).shape
    (2, 7, 7, 8)
    """
    _check_params(params, ("kernel", "bias"), "project", "init_projector")
    _check_width(features, params["kernel"].shape[0], "project")
    product = jnp.dot(features.astype(jnp.float32), params["kernel"], precision=jax.lax.Precision.HIGHEST)
    return product + params["bias"]


def init_orthogonal_projector(key: jax.Array, student_width: int, teacher_width: int) -> PyTree:
    """Parameters of `project_orthogonally`: free numbers, of which any values give an isometry; float32.

    "within" `(student_width, student_width)` and "across" `(teacher_width - student_width, student_width)`.
    Weight decay on them draws the isometry to that which appends zeros.

    Raises:
      DistillationError: a width is not a positive integer, or the student's is the larger one.

    >>> {k: v.shape for k, v in init_orthogonal_projector(jax.random.key(0), 3, 8).items()}
    {'within': (3, 3), 'across': (5, 3)}
    """
    check_key(key, "init_orthogonal_projector")
    _check_widths(student_width, teacher_width, "init_orthogonal_projector")
    if student_width > teacher_width:
        raise DistillationError(
            f"init_orthogonal_projector: features of width {student_width} cannot be put into a space of "
            f"{teacher_width} dimensions without losing any: the student must not be wider than the teacher; use "
            "init_projector"
        )
    free = jax.random.normal(key, (teacher_width, student_width)) / jnp.sqrt(teacher_width)
    return {"within": free[:student_width], "across": free[student_width:]}


def orthogonal_matrix(params: PyTree) -> jax.Array:
    """The isometry W `(student_width, teacher_width)`, W Wᵀ = 1, that the parameters stand for.

    The first columns of exp(A), transposed, with A the skew-symmetric matrix ((B - Bᵀ, -Cᵀ), (C, 0)), of B = "within"
    and C = "across". The exponential of a skew-symmetric matrix is a rotation, and every isometry into a wider space is
    one of these. Some ten products of teacher_width × teacher_width matrices.

    >>> w = orthogonal_matrix(init_orthogonal_projector(jax.random.key(0), 3, 8))
    >>> bool(jnp.allclose(w @ w.T, jnp.eye(3), atol=1e-5))
    True
    """
    within, across = params["within"], params["across"]
    upper = jnp.concatenate([within - within.T, -across.T], 1)
    lower = jnp.pad(across, ((0, 0), (0, len(across))))
    return jax.scipy.linalg.expm(jnp.concatenate([upper, lower]))[:, : len(within)].T


def project_orthogonally(params: PyTree, features: jax.Array) -> jax.Array:
    """x W with orthonormal rows in W: the student's features, isometrically in the teacher's space.

    Lengths and angles, and so all similarities between examples, stay what they are: the projector cannot learn
    the teacher's features in the student's place. With `hint` against `standardize_features` of the teacher's
    (classification) or `whiten` (generation, where features have to stay diverse) it is V_kD, but for the distance:
    the authors' code has PyTorch's smooth L1 loss, d² / 2 up to 1, then |d| - 1 / 2, in place of d².

    Source: Miles et al. 2024, "V_kD: improving knowledge distillation using orthogonal projections",
    https://arxiv.org/abs/2403.06213. The authors' code takes PyTorch's `parametrizations.orthogonal`: the same set of
    matrices, by other parameters.

    Features, result and errors are those of `project`; params are of `init_orthogonal_projector`.

    >>> x = jnp.array([[3.0, 4.0]])
    >>> projected = project_orthogonally(init_orthogonal_projector(jax.random.key(0), 2, 6), x)
    >>> projected.shape, round(float(jnp.linalg.norm(projected)), 4)
    ((1, 6), 5.0)
    """
    _check_params(params, ("within", "across"), "project_orthogonally", "init_orthogonal_projector")
    _check_width(features, params["within"].shape[0], "project_orthogonally")
    matrix = orthogonal_matrix(params)
    return jnp.dot(features.astype(jnp.float32), matrix, precision=jax.lax.Precision.HIGHEST)


def standardize_features(teacher: jax.Array, *, epsilon: float = 1e-5) -> jax.Array:
    """(x - mean) / √(variance + ε) over the channels at every position; no gradient flows into it.

    Source: as `project_orthogonally`; layer normalisation without parameters, as in the authors' code.

    Args:
      teacher: `(..., channels)`, any floating dtype. epsilon: ε, above 0.

    Returns:
      float32, of the same shape.

    Raises:
      DistillationError: the features are not floating, or ε not positive.

    >>> standardize_features(jnp.array([[1.0, 3.0]])).round(3)
    Array([[-1.,  1.]], dtype=float32)
    """
    check_features(teacher, "teacher", "standardize_features")
    as_weight(epsilon, "epsilon", "standardize_features", positive=True)
    x = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    away = x - jnp.mean(x, -1, keepdims=True)
    return away / jnp.sqrt(jnp.mean(jnp.square(away), -1, keepdims=True) + epsilon)


def whiten(teacher: jax.Array, *, epsilon: float = 1e-5) -> jax.Array:
    """(x - mean) (Σ + ε v 1)^(-1/2): channels without correlation, of unit variance; no gradient flows into it.

    mean and Σ are over all positions of the batch, and v is the mean variance of channels. Of all whitening matrices it
    is the symmetric one (ZCA), which changes features least. With no more rows than channels, only the directions that
    occur are whitened; the others stay 0. One singular value decomposition of `(rows, channels)`.

    Source: as `project_orthogonally`, for tasks in which features have to stay diverse. Arguments, result and errors
    are those of `standardize_features`.

    >>> x = whiten(jax.random.normal(jax.random.key(0), (64, 3)) @ jnp.array([[1.0, 2, 3], [0, 1, 2], [0, 0, 1]]))
    >>> bool(jnp.allclose(x.T @ x / 64, jnp.eye(3), atol=1e-2))
    True
    """
    check_features(teacher, "teacher", "whiten")
    as_weight(epsilon, "epsilon", "whiten", positive=True)
    x = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    return under_any_mesh(functools.partial(_whitened, epsilon=epsilon), (x,), spec_of(x))


def _whitened(x: jax.Array, epsilon: float) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1])
    rows = centred(rows, 0)  # Else the rounding of what does not vary would be blown up.
    left, values, right = jnp.linalg.svd(rows, full_matrices=False)
    variances = jnp.square(values) / len(rows)
    floor = epsilon * jnp.sum(variances) / x.shape[-1]
    scale = values / jnp.sqrt(jnp.where(variances == 0, 1.0, variances + floor))
    return jnp.dot(left * scale, right, precision=jax.lax.Precision.HIGHEST).reshape(x.shape)


def _check_widths(student_width: int, teacher_width: int, name: str) -> None:
    for size in (student_width, teacher_width):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise DistillationError(f"{name}: widths must be integers of at least 1, not {size!r}")


def _check_params(params: PyTree, names: tuple[str, ...], name: str, init: str) -> None:
    found = sorted(params) if isinstance(params, Mapping) else type(params).__name__
    if found != sorted(names):
        raise DistillationError(f"{name}: params must be those of {init}, {sorted(names)}, not {found}")


def _check_width(features: jax.Array, width: int, name: str) -> None:
    check_features(features, "student", name, least=1)
    if features.shape[-1] != width:
        raise DistillationError(
            f"{name}: student features {features.shape} have another width than the projector's, {width}"
        )
