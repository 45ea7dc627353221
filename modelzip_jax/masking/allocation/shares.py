"""Allocations that give each leaf a sparsity, or all of them one threshold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.masking.allocation.allocator import Allocation, Part
from modelzip_jax.naming import nearest_name
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.recipe import recordable

__all__ = ["Erk", "Global", "Layers", "Uniform", "erk", "layers", "resolve", "shared_sparsities"]


@recordable
@dataclasses.dataclass(frozen=True)
class Uniform(Allocation):
    """The same share of every leaf.

    >>> Uniform()([Part("a", (4,), 4), Part("b", (8,), 8)], 0.5)
    [0.5, 0.5]
    """

    def __call__(self, parts: list[Part], sparsity: jax.Array) -> list[jax.Array]:
        return [sparsity] * len(parts)


@recordable
@dataclasses.dataclass(frozen=True)
class Global(Allocation):
    """One threshold over all leaves.

    >>> Global()([Part("a", (4,), 4), Part("b", (8,), 8)], 0.5) is None
    True
    """

    @property
    def leafwise(self) -> bool:
        return False

    def __call__(self, parts: list[Part], sparsity: jax.Array) -> None:
        return None


@recordable
@dataclasses.dataclass(frozen=True)
class Erk(Allocation):
    """See `erk`."""

    @property
    def leafwise(self) -> bool:
        return False

    def __call__(self, parts: list[Part], sparsity: jax.Array) -> list[jax.Array]:
        # A scalar has no axes: as dense as a vector of one.
        shapes = [p.shape or (1,) for p in parts]
        sizes = jnp.array([p.tensors * math.prod(s) for p, s in zip(parts, shapes, strict=True)], jnp.float32)
        raw = jnp.array([sum(s) / max(math.prod(s), 1) for s in shapes], jnp.float32)
        return shared_sparsities(raw, sizes, sparsity)


def shared_sparsities(raw: jax.Array, sizes: jax.Array, sparsity: jax.Array) -> list[jax.Array]:
    """The sparsity of each leaf whose densities are in the ratio of `raw`, where none is above 1.

    Args:
      raw: float32 `(leaves,)`, above 0. sizes: how many weights each leaf has. sparsity: of all of them together.

    >>> raw, sizes = jnp.array([1.0, 3.0]), jnp.array([10.0, 10.0])
    >>> [round(float(s), 3) for s in shared_sparsities(raw, sizes, 0.8)]
    [0.9, 0.7]
    """
    wanted = (1.0 - sparsity) * jnp.sum(sizes)

    def kept(scale: jax.Array) -> jax.Array:
        return jnp.sum(jnp.minimum(scale * raw, 1.0) * sizes)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        enough = kept(middle) >= wanted
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # The densest any leaf must become is 1, so the scale lies below the largest 1 / raw.
    bracket = jnp.float32(0.0), jnp.max(jnp.where(sizes > 0, 1.0 / raw, 0.0), initial=1.0)
    _, scale = jax.lax.fori_loop(0, 48, halve, bracket)
    return list(1.0 - jnp.minimum(scale * raw, 1.0))


def erk() -> Erk:
    """Erdős–Rényi–Kernel: a leaf's density goes with the sum of its axes over their product.

    Small layers stay denser. What would be denser than 1 is dense, and the others share the rest, so that the
    whole tree has the sparsity asked for, within one weight a leaf (Mocanu et al. 2018; Evci et al. 2020,
    arXiv:1911.11134, §3).

    >>> parts = [Part("a", (4, 4), 16), Part("b", (32, 32), 1024)]
    >>> [round(float(s), 3) for s in erk()(parts, jnp.float32(0.9))]
    [0.278, 0.91]
    """
    return Erk()


@recordable
@dataclasses.dataclass(frozen=True)
class Layers(Allocation):
    """See `layers`."""

    sparsities: tuple[tuple[str, float], ...]

    def __call__(self, parts: list[Part], sparsity: jax.Array) -> list[jax.Array]:
        require_matches([pattern for pattern, _ in self.sparsities], [part.name for part in parts])
        found = []
        for part in parts:
            own = next((s for pattern, s in self.sparsities if matches(pattern, part.name)), None)
            found.append(sparsity if own is None else jnp.float32(own))
        return found


def layers(sparsities: Mapping[str, float]) -> Layers:
    """A sparsity of its own for each leaf that a path pattern matches; the others take the one given to `prune`.

    Args:
      sparsities: path pattern → sparsity in [0, 1); the first pattern that matches decides. Leaves have the names
        they have in the whole tree.

    Raises:
      TransformError: a sparsity out of range. PatternError (when masks are chosen): a pattern matches no pruned leaf.

    >>> layers({"first/kernel": 0.5})([Part("first/kernel", (2,), 2), Part("b", (2,), 2)], 0.9)
    [Array(0.5, dtype=float32), 0.9]
    """
    for pattern, value in sparsities.items():
        if not 0.0 <= value < 1.0:
            raise TransformError(f"the sparsity of {pattern!r} must be in [0, 1), not {value!r}")
    return Layers(tuple(sparsities.items()))


_NAMED = {"uniform": Uniform(), "global": Global(), "erk": Erk()}


def resolve(allocation: str | Allocation) -> Allocation:
    """The allocation of a name, or the one given.

    Raises:
      TransformError: an unknown name.

    >>> resolve("erk"), resolve(Uniform())
    (Erk(), Uniform())
    """
    if isinstance(allocation, Allocation):
        return allocation
    if not isinstance(allocation, str):
        raise TransformError(
            "allocation takes a name or one of mz.allocation, such as mz.allocation.layers({...}), not "
            f"{allocation!r:.100}"
        )
    if allocation not in _NAMED:
        raise TransformError(f"allocation is {allocation!r}; {nearest_name(str(allocation), _NAMED)}")
    return _NAMED[allocation]
