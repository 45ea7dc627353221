"""Spreads that need no data: one step for all, or steps by how far the weights of a channel spread."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_positive
from modelzip_jax.patterns import matches
from modelzip_jax.quantization.channel_axis import check_axis, find_axis
from modelzip_jax.quantization.spreads.spread import RelativeSteps, Spread, over_all_but
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Context

__all__ = ["TABLES", "WORDS", "Even", "RootDeviation", "even", "root_deviation"]

TABLES = ("**/*embed*", "**/*embed*/**", "**/wte*", "**/wte*/**")
"""Names of tables of embeddings."""
WORDS = 1024
"""Rows from which on a table of embeddings is one of words: of positions, which every text meets, there are fewer."""


@recordable
@dataclasses.dataclass(frozen=True)
class Even(Spread):
    """See `even`."""

    def __call__(self, name: str, w: jax.Array, layers: tuple[int, ...], context: Context) -> RelativeSteps:
        return RelativeSteps(jnp.ones((1,) * w.ndim, w.dtype))


def even() -> Even:
    """One step for all weights of all leaves: the least squared error at a given code length, at high rates.

    Gish & Pierce 1968, doi:10.1109/TIT.1968.1054193.

    >>> even()
    Even()
    """
    return Even()


@recordable
@dataclasses.dataclass(frozen=True)
class RootDeviation(Spread):
    """See `root_deviation`."""

    axis: int | tuple[int, ...] | str
    seldom: tuple[str, ...]
    factor: float
    size_power: float = 0.0

    def __call__(self, name: str, w: jax.Array, layers: tuple[int, ...], context: Context) -> RelativeSteps:
        axis = find_axis(name, w, self.axis, "channel", layers)
        own = (axis,) if isinstance(axis, int) else axis
        own = own if w.ndim > 1 else layers
        if not w.size:
            return RelativeSteps(jnp.ones((1,) * w.ndim, w.dtype))
        roots = _root_deviations(w, over_all_but(w, own))
        table = w.ndim - len(layers) == 2 and max(w.shape) >= WORDS
        seldom = table and any(matches(pattern, name) for pattern in self.seldom)
        count = w.size / math.prod(w.shape[axis] for axis in layers)
        return RelativeSteps(roots * (count**self.size_power * (self.factor if seldom else 1.0)))


@functools.partial(jax.jit, static_argnums=1)
def _root_deviations(w: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Over these axes, which are kept; one program, so that nothing of the leaf's size is in between."""
    largest = jnp.maximum(jnp.max(jnp.abs(w)), jnp.finfo(w.dtype).tiny)
    squares = jnp.mean(jnp.square(w / largest), axis=axes, keepdims=True)
    # A channel of zeros, or nearly so, shares the step of the least that is taken for a channel.
    return jnp.sqrt(jnp.sqrt(jnp.maximum(squares, 1e-4 * jnp.mean(squares))) * largest)


def root_deviation(
    axis: int | tuple[int, ...] | str = "auto",
    *,
    seldom: tuple[str, ...] = TABLES,
    factor: float = 4.0,
    size_power: float = 0.0,
) -> RootDeviation:
    """Steps by the root of each channel's standard deviation, coarser for tables of which an input reads few rows.

    Between one step for all, which takes weights to matter alike, and steps in proportion to the deviation, which
    takes their relative errors to. An embedding of a word is read where the word occurs, a kernel always.

    Args:
      axis: of the channels, as of `mz.quantize`.
      seldom: path patterns of tables of embeddings; matrices of less than 1,024 rows and columns, such as those of
        positions, are none.
      factor: by how much their steps are larger.
      size_power: steps are also in proportion to this power of how many weights a leaf has, or one layer of it. What
        all errors of a leaf do to its outputs is worth as much as those of another, however many weights that is, so
        that few of them should be finer: by the half power if errors in proportion to outputs are what counts, not at
        all if weights matter alike.

    >>> import modelzip_jax as mz
    >>> w = {"w": jnp.array([[0.01, 1.0], [-0.01, -1.0]])}
    >>> mz.compress(w, mz.entropy_constrained(0.1, spread=root_deviation())).params["w"].rows
    Array([[0.0101318, 0.100098]], dtype=bfloat16)
    """
    axis = check_axis(axis)
    if isinstance(seldom, str) or not all(isinstance(pattern, str) for pattern in seldom):
        raise TransformError(f"seldom= takes path patterns such as ('**/embedding',), not {seldom!r}")
    return RootDeviation(
        axis, tuple(seldom), as_positive(factor, "factor"),
        as_positive(size_power, "size_power", or_zero=True),
    )  # fmt: skip
