"""Rounding up or down, learned for each weight by what it does to a layer's outputs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from modelzip_jax.given_values import as_whole
from modelzip_jax.quantization.fits import LevelLeaf, UniformLeaf
from modelzip_jax.quantization.rounding.feedback import check_positive
from modelzip_jax.quantization.rounding.strategy import Problem, Rounded, Rounding
from modelzip_jax.quantization.scaled_leaf import ScaledLeaf
from modelzip_jax.recipe import recordable
from modelzip_jax.trace.measures.layer_matrices import Layout, products

__all__ = ["AdaRound", "ada_round"]

_LOW, _HIGH = -0.1, 1.1
"""γ and ζ: the sigmoid is stretched beyond 0 and 1, so that it reaches them."""
_BEGIN, _END, _WARM = 20.0, 2.0, 0.2
"""β at first and at last, and the share of iterations without the regularizer."""


@recordable
@dataclasses.dataclass(frozen=True)
class AdaRound(Rounding):
    """See `ada_round`."""

    iterations: int
    rate: float
    strength: float

    needs = ("stats",)

    def __call__(self, problem: Problem) -> Rounded:
        w = problem.weights
        if w.size == 0:
            return Rounded(w)
        found = products(problem.name, w.shape, problem.measured, "ada_round()")
        new = _learned(self, problem.leaf, w, problem.support, found.gram, found.layout)
        return Rounded(problem.kept(new))


def _stretched(v: jax.Array) -> jax.Array:
    """h(V) of eq. 23: the rectified sigmoid."""
    return jnp.clip(jax.nn.sigmoid(v) * (_HIGH - _LOW) + _LOW, 0.0, 1.0)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _learned(
    how: AdaRound,
    leaf: UniformLeaf | LevelLeaf | ScaledLeaf,
    w: jax.Array,
    support: jax.Array | None,
    gram: jax.Array,
    layout: Layout,
) -> jax.Array:
    below, above = _neighbours(leaf, w)
    gap = above - below
    share = jnp.where(gap > 0, (w - below) / jnp.where(gap > 0, gap, 1.0), 0.0)
    v = -jnp.log((_HIGH - _LOW) / (jnp.clip(share, 0.0, 1.0) - _LOW) - 1.0)
    kept = jnp.ones(w.shape, w.dtype) if support is None else support.astype(w.dtype)
    gram = gram.astype(w.dtype)

    def error(values: jax.Array) -> jax.Array:
        """tr(ΔW H ΔWᵀ), of each layer."""
        off = layout.stack(kept * (values - w))
        product = jnp.einsum("lon,lnm->lom", off, gram, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(off * product, (1, 2))

    # Rounding to nearest costs 1 a weight, whatever the units of the layer are.
    nearest = error(jnp.where(share > 0.5, above, below))
    each = w.size / len(nearest)
    norms = jnp.where(nearest > 0, nearest / each, 1.0)

    def loss(v: jax.Array, beta: jax.Array, strength: jax.Array) -> jax.Array:
        h = _stretched(v)
        distance = jnp.abs(2.0 * h - 1.0)
        regularizer = jnp.sum(kept * jnp.where(gap > 0, 1.0 - distance**beta, 0.0))  # eq. 24
        return jnp.sum(error(below + gap * h) / norms) + strength * regularizer

    adam = optax.adam(how.rate)

    def once(carry: tuple[jax.Array, Any], i: jax.Array) -> tuple[tuple[jax.Array, Any], None]:
        v, memory = carry
        done = jnp.maximum(i / how.iterations - _WARM, 0.0) / (1.0 - _WARM)
        beta = _END + (_BEGIN - _END) * (1.0 - done)
        strength = jnp.where(i >= _WARM * how.iterations, how.strength, 0.0)
        updates, memory = adam.update(jax.grad(loss)(v, beta, strength), memory)
        return (v + updates, memory), None

    (v, _), _ = jax.lax.scan(once, (v, adam.init(v)), jnp.arange(how.iterations))
    return jnp.where(_stretched(v) >= 0.5, above, below)


def _neighbours(leaf: UniformLeaf | LevelLeaf | ScaledLeaf, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The values of the grid on both sides of each weight; beyond the outer ones twice the same."""
    step, zero = Problem("", w, leaf).steps()
    codes = leaf.codes(w, step, zero)
    low = jnp.where(leaf.values(codes, step, zero) > w, codes - 1, codes)
    values = [leaf.values(jnp.clip(c, leaf.first, leaf.last), step, zero) for c in (low, low + 1)]
    return values[0], values[1]


def ada_round(iterations: int = 500, rate: float = 0.01, strength: float = 10.0) -> AdaRound:
    """Up or down, learned for each weight, layer by layer, by what it does to the layer's outputs.

    Minimises tr(ΔW H ΔWᵀ) + strength · Σ 1 - |2 h(V) - 1|^β over V by Adam, where ŵ lies between the two values beside
    a weight at the share h(V), a rectified sigmoid, and H = E[x xᵀ]; β falls from 20 to 2, and shares end at 0 or 1.
    The first fifth of the iterations is without the second term. The first term is divided by what it is of rounding to
    nearest, for each weight. Neighbours are those of the grid, whichever it is. Kernels and statistics as of
    `mz.rounding.error_feedback`, which is much faster and moves weights further than to their two neighbours.

    Args:
      iterations: of Adam, at least 1. rate: its step size. strength: λ of the regularizer.

    Raises:
      LeafError, NonFiniteError (at `init`): as of `error_feedback`.

    Nagel et al. 2020, arXiv:2004.10568, eqs. 21-24.

    >>> import modelzip_jax as mz
    >>> x = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.9, 0.0], [0.0, 0.0, 1.0]])
    >>> params = {"kernel": jnp.array([[1.4], [1.45], [7.0]])}
    >>> stats = mz.trace.statistics(lambda p, x: x @ p["kernel"], params, [x], kinds=("gram",))
    >>> found = mz.decoded(params, mz.quantize(4, rounding=ada_round()), stats=stats)
    >>> [float(w) for w in found["kernel"].ravel()]
    [1.0, 2.0, 7.0]
    """
    iterations = as_whole(iterations, "iterations of ada_round()", 1)
    check_positive("ada_round()", rate=rate, strength=strength)
    return AdaRound(iterations, float(rate), float(strength))
