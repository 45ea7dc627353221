"""Rounding without data that chooses zero points for a sparse error: half-quadratic quantization."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_positive, as_whole
from modelzip_jax.meshes import under_any_mesh
from modelzip_jax.quantization.fits import UniformLeaf
from modelzip_jax.quantization.granularity import max_abs
from modelzip_jax.quantization.rounding.strategy import Problem, Rounded, Rounding
from modelzip_jax.recipe import recordable

__all__ = ["HalfQuadratic", "half_quadratic"]


@recordable
@dataclasses.dataclass(frozen=True)
class HalfQuadratic(Rounding):
    """See `half_quadratic`."""

    iterations: int
    norm: float
    penalty: float
    growth: float

    moves_zero = True

    def __call__(self, problem: Problem) -> Rounded:
        leaf, w = problem.leaf, problem.weights
        if not isinstance(leaf, UniformLeaf):
            raise TransformError("half_quadratic() finds zero points of the uniform grid: leave grid= out")
        zero = under_any_mesh(
            lambda leaf, w, support: _zero_points(self, leaf, w, support, problem.layers),
            (leaf, w, problem.support),
            leaf.groups.steps_spec(w),
        )
        step, place = Problem(problem.name, w, dataclasses.replace(leaf, zero=zero)).steps()
        return Rounded(problem.kept(leaf.values(leaf.codes(w, step, place), step, place)), None, zero)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _zero_points(
    how: HalfQuadratic,
    leaf: UniformLeaf,
    w: jax.Array,
    support: jax.Array | None,
    layers: tuple[int, ...],
) -> jax.Array:
    """The zero points, `(groups, channels)`; each layer stops for itself."""
    groups, step = leaf.groups, jnp.broadcast_to(leaf.groups.expand(leaf.step, w.shape), w.shape)
    counted = jnp.ones(w.shape, w.dtype) if support is None else support.astype(w.dtype)
    counts = groups.reduce(jnp.sum, counted)
    within = tuple(a for a in range(w.ndim) if a not in layers)
    seen = jnp.maximum(jnp.sum(counted, within, keepdims=True), 1.0)

    def once(i: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        zero, best, going, beta = carry
        z = jnp.broadcast_to(groups.expand(zero, w.shape), w.shape)
        q = leaf.codes(w, step, z)
        off = w - leaf.values(q, step, z)
        size = jnp.abs(off)
        # The proximal operator of |·|^p, near enough (Badri & Shaji, "generalized soft-thresholding").
        lifted = jnp.where(size > 0, size, 1.0) ** (how.norm - 1.0)
        shrunk = jnp.sign(off) * jnp.maximum(size - lifted / beta, 0.0)
        whole = leaf.values(
            q, jnp.ones_like(step), jnp.zeros_like(z)
        )  # The code, as it is counted from zero.
        mean = groups.reduce(jnp.sum, counted * (whole - (w - shrunk) / step)) / jnp.maximum(counts, 1.0)
        moves = groups.reduce(max_abs, jnp.broadcast_to(going, w.shape).astype(w.dtype)) > 0
        zero = jnp.where(moves & (counts > 0), mean, zero)
        error = jnp.sum(counted * size, within, keepdims=True) / seen
        better = error < best
        return zero, jnp.where(going & better, error, best), going & better, beta * how.growth

    best = jnp.full(seen.shape, jnp.inf, w.dtype)
    start = (leaf.zero, best, jnp.ones(seen.shape, bool), jnp.asarray(how.penalty, w.dtype))
    return jax.lax.fori_loop(0, how.iterations, once, start)[0]


def half_quadratic(
    iterations: int = 20, norm: float = 0.7, penalty: float = 10.0, growth: float = 1.01
) -> HalfQuadratic:
    """To nearest, with zero points for which errors are sparse: half-quadratic quantization (HQQ). Without data.

    Minimises Σ |w - ŵ|^p over each group's zero point, the step being fixed: errors are split off by
    e = sign(r) max(|r| - |r|^(p-1) / β, 0) of the residuals r = w - ŵ, and z = mean(q - (w - e) / s), as β grows.
    It stops once the mean |r| of the leaf (of each layer, of stacked ones) grows. Zero points need not be integers:
    `mz.quantize(4, symmetric=False, offset=True, rounding=mz.rounding.half_quadratic())`.

    Args:
      iterations: at most, at least 1. norm: p, in (0, 1]. penalty: β at first. growth: of β, κ ≥ 1.

    Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", eqs. 3-6 and the published code.

    >>> import modelzip_jax as mz
    >>> w = jax.random.t(jax.random.key(0), 3.0, (64, 4))
    >>> for rounding in (None, half_quadratic()):
    ...     t = mz.quantize(2, symmetric=False, offset=True, rounding=rounding)
    ...     print(round(float(jnp.mean(jnp.abs(mz.decoded({"w": w}, t)["w"] - w))), 2))
    0.76
    0.74
    """
    iterations = as_whole(iterations, "iterations of half_quadratic()", 1)
    numbers = {"norm": norm, "penalty": penalty, "growth": growth}
    norm, penalty, growth = (as_positive(x, f"{name} of half_quadratic()") for name, x in numbers.items())
    if norm > 1 or growth < 1:
        raise TransformError(
            f"half_quadratic() takes a norm in (0, 1] and a growth of at least 1, not {norm!r}, {growth!r}"
        )
    return HalfQuadratic(iterations, norm, penalty, growth)
