"""Rounding without data: to the nearest value, or to one of both neighbours at random."""

from __future__ import annotations

import dataclasses
import zlib

import jax
import jax.numpy as jnp

from modelzip_jax.given_values import as_whole
from modelzip_jax.quantization.rounding.strategy import Problem, Rounded, Rounding
from modelzip_jax.recipe import recordable

__all__ = ["Nearest", "Stochastic", "nearest", "stochastic"]


@recordable
@dataclasses.dataclass(frozen=True)
class Nearest(Rounding):
    """See `nearest`."""


@recordable
@dataclasses.dataclass(frozen=True)
class Stochastic(Rounding):
    """See `stochastic`."""

    seed: int

    def __call__(self, problem: Problem) -> Rounded:
        leaf, w, (step, zero) = problem.leaf, problem.weights, problem.steps()
        codes = leaf.codes(w, step, zero)
        here = leaf.values(codes, step, zero)
        others = jnp.clip(codes + jnp.where(w > here, 1, -1), leaf.first, leaf.last)
        there = leaf.values(others, step, zero)
        # Beyond the outer codes, and on a code, there is no other side.
        between = (w - here) * (there - w) > 0
        share = jnp.where(between, (w - here) / jnp.where(between, there - here, 1.0), 0.0)
        key = jax.random.key(self.seed) if problem.key is None else problem.key
        key = jax.random.fold_in(key, zlib.crc32(problem.name.encode()))
        return Rounded(
            problem.kept(jnp.where(jax.random.uniform(key, w.shape, w.dtype) < share, there, here))
        )


def nearest() -> Nearest:
    """To the nearest value of the grid: the default.

    >>> nearest()
    Nearest()
    """
    return Nearest()


def stochastic(seed: int = 0) -> Stochastic:
    """To one of the two neighbouring values, so that the mean is the weight itself.

    Drawn once, at `init`: what training begins with, or what is stored.

    Args:
      seed: of the draws, unless the context has a `key`.

    Gupta et al. 2015, arXiv:1502.02551, section 3.

    >>> import modelzip_jax as mz
    >>> w = {"w": jnp.full((1000, 1), 0.3).at[0].set(7.0)}
    >>> found = mz.decoded(w, mz.quantize(4, rounding=stochastic()))["w"]
    >>> sorted({float(x) for x in found.ravel()}), abs(float(found.mean()) - 0.3067) < 0.05
    ([0.0, 1.0, 7.0], True)
    """
    return Stochastic(as_whole(seed, "seed", 0))
