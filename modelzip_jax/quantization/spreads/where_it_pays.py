"""Another spread's factors, where they save more than they take."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_positive
from modelzip_jax.quantization.spreads.spread import RelativeSteps, Spread
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Context

__all__ = ["Paying", "paying"]


@recordable
@dataclasses.dataclass(frozen=True)
class Paying(Spread):
    """See `paying`."""

    spread: Spread
    bits: float

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.spread.needs

    def __call__(self, name: str, w: jax.Array, layers: tuple[int, ...], context: Context) -> RelativeSteps:
        found = self.spread(name, w, layers, context)
        rows = _paying(found.rows, w.size, self.bits)
        return RelativeSteps(
            rows, None if found.columns is None else _paying(found.columns, w.size, self.bits)
        )


@functools.partial(jax.jit, static_argnums=(1,))
def _paying(steps: jax.Array, weights: int, bits: float) -> jax.Array:
    """These steps, or everywhere the one of the same cost if they save too little."""
    logs = jnp.log2(steps)
    # Relative to the mean of their logarithms, as they may be far from 1.
    middle = jnp.mean(logs)
    same = middle - 0.5 * jnp.log2(jnp.mean(jnp.exp2(-2.0 * (logs - middle))))
    one = jnp.exp2(same).astype(steps.dtype)
    # Steps that are hundreds of octaves apart, or none at all, are left to whoever bounds them.
    little = ((middle - same) * weights <= bits * steps.size) & jnp.isfinite(one) & (one > 0)
    return jnp.where(little, one, steps)


def paying(spread: Spread, *, bits: float = 10.0) -> Paying:
    """Another spread; but where its factors for rows, or for columns, save fewer bits than they take, one for all.

    Steps α_j that all cost alike, as those of `by_importance` and `water_filling` do, save
    mean log₂ α + ½ log₂ mean α⁻² bits a weight over one step of the same cost: nothing if they are equal.
    Small leaves, and those whose rows matter alike, do without.

    Args:
      spread: such as `mz.spreads.water_filling()`.
      bits: what a factor takes in the file.

    >>> import modelzip_jax as mz
    >>> w, rows = {"w": jnp.full((4, 2), 0.5)}, jnp.array([[1.0], [4.0], [1.0], [4.0]])
    >>> fisher = {"w": jnp.tile(rows, (1, 2))}
    >>> spread = mz.spreads.by_importance(soften=0.0)
    >>> for bits in (0.1, 10.0):
    ...     t = mz.entropy_constrained(0.1, spread=paying(spread, bits=bits))
    ...     mz.compress(w, t, importance=fisher).params["w"].rows.ravel()
    Array([0.100098, 0.0500488, 0.100098, 0.0500488], dtype=bfloat16)
    Array([0.0625, 0.0625, 0.0625, 0.0625], dtype=bfloat16)
    """
    if not isinstance(spread, Spread):
        raise TransformError(
            f"paying() takes a spread such as mz.spreads.water_filling(), not {spread!r:.100}"
        )
    return Paying(spread, as_positive(bits, "bits of paying()"))
