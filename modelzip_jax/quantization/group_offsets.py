"""Offsets: zero points, which need not be integers, with which the mean of a group stays as it was."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from modelzip_jax.concrete import traced_once
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.rounding.strategy import Problem
from modelzip_jax.quantization.scaled_leaf import ScaledLeaf

__all__ = ["with_offset"]


@traced_once(2)
def _mean_errors(off: jax.Array, counted: jax.Array, groups: Granularity) -> jax.Array:
    counts = groups.reduce(jnp.sum, jnp.broadcast_to(counted.astype(off.dtype), off.shape))
    return groups.reduce(jnp.sum, jnp.where(counted, off, 0.0)) / jnp.maximum(counts, 1.0)


def with_offset(problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Latents, and zero points with which the mean of a group's rounded weights is that of its weights."""
    leaf, w, (step, zero) = problem.leaf, problem.weights, problem.steps()
    assert not isinstance(leaf, ScaledLeaf)
    codes = leaf.codes(w, step, zero)
    support = jnp.ones((), bool) if problem.support is None else problem.support
    mean = _mean_errors(w - leaf.values(codes, step, zero), support, leaf.groups)
    moved = (jnp.zeros_like(leaf.step) if leaf.zero is None else leaf.zero) - mean / leaf.step
    spread = jnp.broadcast_to(leaf.groups.expand(moved, w.shape), w.shape)
    return problem.kept(leaf.values(codes, step, spread)), moved
