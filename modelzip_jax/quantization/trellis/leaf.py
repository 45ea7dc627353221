"""Rounding to what a trellis allows of a row's and a column's step size."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modelzip_jax.concrete import host_views
from modelzip_jax.meshes import spec_of, under_any_mesh
from modelzip_jax.quantization.code_length import laplace_bits
from modelzip_jax.quantization.scaled import ScaledCodes
from modelzip_jax.quantization.scaled_leaf import ScaledLeaf
from modelzip_jax.quantization.trellis.codes import TrellisCodes
from modelzip_jax.quantization.trellis.lines import Lines
from modelzip_jax.quantization.trellis.viterbi import UNIT, in_256ths, integers, integers_on_host

__all__ = ["FINER", "TrellisLeaf", "index_costs"]

FINER = 0.6
"""A step's share at which a trellis errs as much as rounding to multiples of the step."""
_MAGNITUDES = 64
_FEW = 1e-3
"""A share of the weights, for what did not occur."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrellisLeaf(ScaledLeaf):
    """A `ScaledLeaf` whose multiples of steps follow a trellis along its lines.

    costs: int32 `(2, n)`, see `index_costs`, while codes are being chosen; else None, as what was chosen has to give
    itself. lines: where the trellis runs.
    """

    costs: jax.Array | None = None
    lines: Lines = dataclasses.field(kw_only=True, metadata={"static": True})

    def fake(self, w: jax.Array) -> jax.Array:
        return _straight_through(w, self.rows, self.columns, self.costs, self.lines)

    def stored(self, w: Any) -> np.ndarray:
        """The integers, 1-D, on the host."""
        optional = [x for x in (self.columns, self.costs) if x is not None]
        seen = host_views(w, self.rows, *optional)
        if seen is None:
            return np.asarray(_allowed(w, self.rows, self.columns, self.costs, self.lines)).reshape(-1)
        weights, rows, *rest = seen
        one = weights.dtype.type(1)
        u = np.asarray(weights * (one / rows))
        if self.columns is not None:
            u *= one / rest[0]
        return _along(
            in_256ths(u, np), None if self.costs is None else rest[-1], self.lines, integers_on_host
        ).reshape(-1)

    def packed(self, w: Any, dtype: str) -> ScaledCodes:
        columns = None if self.columns is None else self.columns.astype(jnp.bfloat16)
        codes = TrellisCodes.pack(self.stored(w), self.lines)
        return ScaledCodes(codes, self.rows.astype(jnp.bfloat16), columns, tuple(jnp.shape(w)), dtype)

    def code_bits(self, w: jax.Array) -> jax.Array:
        return laplace_bits(0.5 * w / self.steps(w.shape)[0])

    def codes(self, w: jax.Array, step: jax.Array, zero: jax.Array) -> jax.Array:
        """The integers of weights whose last axis is made of whole lines; the steps broadcast."""
        lines = self.lines._replace(before=w.size // self.lines.length, behind=1)
        return _along(in_256ths(w * (1.0 / step), jnp), self.costs, lines, integers).reshape(w.shape)


def index_costs(u: jax.Array, worth: float) -> jax.Array:
    """What an index of each magnitude costs in the two quantizers, as `viterbi` takes it: int32 `(2, 64)`.

    The bits of its share among the numbers that are nearest to it, times what a bit is worth.

    Args:
      u: weights in units of their steps. worth: squared error, in steps, that is as bad as a bit.
    """
    return under_any_mesh(functools.partial(_index_costs, worth=worth), (u,), PartitionSpec())  # type: ignore[no-any-return]


def _index_costs(u: jax.Array, worth: float) -> jax.Array:
    size = jnp.abs(u).reshape(-1)
    reached = 2.0 * jnp.arange(_MAGNITUDES)
    edges = (reached - 1.0).at[0].set(0.0), jnp.maximum(reached - 2.0, 0.0).at[1].set(0.5)
    found = []
    for edge in edges:
        beyond = jnp.append(jax.lax.map(lambda e: jnp.mean(size >= e, dtype=jnp.float32), edge), 0.0)
        share = (-jnp.diff(beyond) + _FEW / _MAGNITUDES) * jnp.where(jnp.arange(_MAGNITUDES) == 0, 1.0, 0.5)
        found.append(-jnp.log2(share / (1.0 + _FEW)))
    return jnp.round(jnp.stack(found) * (worth * UNIT * UNIT)).astype(jnp.int32)


def _along(x: Any, costs: Any, lines: Lines, search: Any) -> Any:
    """`search` over all runs of an array of the leaf's size."""
    xp = np if isinstance(x, np.ndarray) else jnp
    cube = x.reshape(lines.cube)
    found = []
    for part, run in lines.cuts():
        runs = cube[:, part].reshape(lines.before, -1, run, lines.behind)
        turned = xp.moveaxis(runs, 2, 0).reshape(run, -1)
        chosen = search(turned, costs, lines.states).reshape(run, *runs.shape[:2], lines.behind)
        found.append(xp.moveaxis(chosen, 0, 2).reshape(cube[:, part].shape))
    return xp.concatenate(found, axis=1)


def _allowed(
    w: jax.Array, rows: jax.Array, columns: jax.Array | None, costs: jax.Array | None, lines: Lines
) -> jax.Array:
    """The integers of all weights, in their shape."""

    def found(w: jax.Array, rows: jax.Array, columns: jax.Array | None, costs: jax.Array | None) -> jax.Array:
        u = w * (1.0 / rows)
        if columns is not None:
            u = u * (1.0 / columns)
        return _along(in_256ths(u, jnp), costs, lines, integers).reshape(w.shape)

    return under_any_mesh(found, (w, rows, columns, costs), spec_of(w))  # type: ignore[no-any-return]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _straight_through(
    w: jax.Array, rows: jax.Array, columns: jax.Array | None, costs: jax.Array | None, lines: Lines
) -> jax.Array:
    values = _allowed(w, rows, columns, costs, lines).astype(w.dtype) * rows
    return values if columns is None else values * columns


def _backward(lines: Lines, held: Any, g: jax.Array) -> tuple[Any, ...]:
    rows, columns, costs = held
    nothing = jax.tree.map(jnp.zeros_like, (rows, columns))
    return g, *nothing, None if costs is None else np.zeros(costs.shape, jax.dtypes.float0)


_straight_through.defvjp(
    lambda w, rows, columns, costs, lines: (
        _straight_through(w, rows, columns, costs, lines),
        (rows, columns, costs),
    ),
    _backward,
)
