"""Layers that see little of the input lose more."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.masking.allocation.allocator import Allocation, Part
from modelzip_jax.masking.allocation.shares import shared_sparsities
from modelzip_jax.recipe import recordable

if TYPE_CHECKING:
    from modelzip_jax.trace import ReceptiveField

__all__ = ["ByReceptiveField", "by_receptive_field"]


@recordable
@dataclasses.dataclass(frozen=True)
class ByReceptiveField(Allocation):
    """See `by_receptive_field`. shares: of the input that each leaf's outputs see, by its name."""

    shares: tuple[tuple[str, float], ...]
    power: float

    @property
    def leafwise(self) -> bool:
        return False

    def __call__(self, parts: list[Part], sparsity: jax.Array) -> list[jax.Array]:
        known = dict(self.shares)
        if not any(part.name in known for part in parts):
            raise TransformError(
                f"by_receptive_field has fields of {', '.join(list(known)[:6])}, and none of the pruned leaves "
                f"{', '.join(part.name for part in parts[:6])}: trace the same tree that is pruned"
            )
        raw = jnp.array([known.get(part.name, 1.0) ** self.power for part in parts], jnp.float32)
        sizes = jnp.array([part.tensors * math.prod(part.shape) for part in parts], jnp.float32)
        return shared_sparsities(raw, sizes, sparsity)


def by_receptive_field(found: Mapping[str, ReceptiveField], power: float = 0.25) -> ByReceptiveField:
    """Layers of small receptive field lose more: a leaf's density goes with the share of the input it sees, to a power.

    What surveys of compression call cutting weak features "such as layers of small receptive field". What would be
    denser than 1 is dense, and the others share the rest, so that the whole tree has the sparsity asked for, within one
    weight a leaf. Leaves without a field see all. What it does beside other allocations is measured in
    docs/benchmarks.md ("The survey's methods on one network").

    Args:
      found: of `trace.receptive_fields`, for the same tree of params.
      power: 0 is the same share of every leaf; 1 makes densities proportional to what is seen.

    Raises:
      TransformError: a negative power, no fields; (when masks are chosen) no pruned leaf has a field.

    >>> from modelzip_jax.trace import ReceptiveField
    >>> found = {"a": ReceptiveField((1, 4), (1, 64)), "b": ReceptiveField((1, 64), (1, 64))}
    >>> parts = [Part("a", (4, 4), 16), Part("b", (4, 4), 16)]
    >>> [round(float(s), 3) for s in by_receptive_field(found)(parts, jnp.float32(0.7))]
    [0.8, 0.6]
    """
    if not power >= 0.0:
        raise TransformError(f"by_receptive_field takes a power of at least 0, not {power!r}")
    shares = tuple((name, float(field.share)) for name, field in found.items() if field.share > 0.0)
    if not shares:
        raise TransformError(
            "by_receptive_field was given no fields: none of the model's layers sees its input"
        )
    return ByReceptiveField(shares, float(power))
