"""As many weights as a bound on parameters or FLOPs lets stay."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from modelzip_jax.concrete import any_nan
from modelzip_jax.errors import NonFiniteError, TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.masking.allocation.allocator import Allocation, Groups, Part
from modelzip_jax.masking.allocation.solver import within
from modelzip_jax.masking.schedules import Schedule, as_schedule
from modelzip_jax.masking.structures import Structure
from modelzip_jax.recipe import recordable

if TYPE_CHECKING:
    from modelzip_jax.trace import Cost

__all__ = ["AtMost", "at_most"]

_FINE = 1 << 12
"""FLOPs of a weight are a fraction where a window meets padding; they are rounded up to this share of one."""


@recordable
@dataclasses.dataclass(frozen=True)
class AtMost(Allocation):
    """See `at_most`. costs: `(leaves, FLOPs)` of the products of the model, by the leaves in them."""

    fixes_sparsity: ClassVar[bool] = True

    params: int | None = None
    flops: int | None = None
    costs: tuple[tuple[tuple[str, ...], int], ...] = ()

    @property
    def leafwise(self) -> bool:
        return False

    def __call__(self, parts: list[Part], sparsity: jax.Array) -> list[jax.Array]:
        raise TransformError("a budget depends on the scores, so only mz.prune takes mz.allocation.at_most")

    def check(self, sparsity: Any, structure: Structure) -> None:
        """Refuses what a budget does not go with: a sparsity of its own, n of m, a schedule that ends dense."""
        if structure.fixes_sparsity:
            raise TransformError(
                f"{structure} fixes the sparsity, so there is none left to fit a budget with"
            )
        if sparsity is not None and not callable(sparsity):
            raise TransformError(
                f"at_most finds the sparsity itself: leave out sparsity={sparsity!r}, or pass a schedule, which says "
                "when the budget is reached"
            )
        if callable(sparsity) and as_schedule(sparsity).last == 0.0:
            raise TransformError(f"{sparsity} ends dense, so that no budget would hold")

    def amount(self, schedule: Schedule | None, step: Any) -> jax.Array:
        """How far the way from dense to the budget is gone at a step: float32 scalar in [0, 1]."""
        if schedule is None:
            return jnp.float32(1.0)
        value, last = schedule(step), schedule.last
        return jnp.where(value >= jnp.float32(last), 1.0, jnp.clip(value / last, 0.0, 1.0))

    def choose(self, groups: Groups, amount: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        """Which groups stay, when `amount` of the way to the budget is gone.

        Raises:
          TransformError: the budget is not above what is not pruned, or the FLOPs do not fit the leaves.
          NonFiniteError: a score is NaN (traced ones, which nobody can look at, rank highest).
        """
        parts, arrays, score, structure, frozen, near = groups
        for part, group in zip(parts, arrays, strict=True):
            if any_nan(score(group)):
                raise NonFiniteError(f"leaf {part.name!r} has scores that are NaN, which have no order")
        largest = [structure.largest(part.shape) for part in parts]
        if self.params is not None:
            spare, whole = self.params - frozen, sum(map(_weights, parts))
            costs, asked, what = largest, self.params, "parameters"
        else:
            shares, frozen = self._flops(parts)
            assert self.flops is not None
            spare, whole = (self.flops - frozen) * _FINE, sum(shares) * _FINE
            # Rounded up: what is counted is never less than what it is.
            costs = [
                -(-flops * _FINE * n // max(_weights(p), 1))
                for p, n, flops in zip(parts, largest, shares, strict=True)
            ]
            asked, what = self.flops, "FLOPs"
        if whole and spare <= 0:
            raise TransformError(
                f"a budget of {asked} {what} is not above the {frozen} of what is not pruned: biases, norms and "
                "other leaves outside of the selection count"
            )
        # Also where groups at an edge, smaller than they are counted, make the difference.
        if whole <= max(spare, 0):
            spare = sum(g.size * c for g, c in zip(arrays, costs, strict=True))
        return within(arrays, amount, score=score, costs=tuple(costs), limit=spare), near

    def _flops(self, parts: list[Part]) -> tuple[list[int], int]:
        """FLOPs of each leaf, and of everything else."""
        sizes = {p.name: _weights(p) for p in parts}
        found: collections.Counter[str] = collections.Counter()
        frozen = 0
        for leaves, flops in self.costs:
            here = [name for name in leaves if name in sizes]
            if not here:
                frozen += flops
            elif len(here) < len(leaves):
                raise TransformError(
                    f"the leaves {list(leaves)} share a product, of which only {here} are pruned, so that nobody "
                    "can tell whose FLOPs they are: prune all of them or none"
                )
            else:
                left, size = flops, sum(sizes[name] for name in here)
                for name in here:  # The last takes what division leaves.
                    part = left if name == here[-1] else flops * sizes[name] // max(size, 1)
                    found[name] += part
                    left -= part
        if parts and not found:
            known = sorted({name for leaves, _ in self.costs for name in leaves})
            raise TransformError(
                f"none of the pruned leaves, {sorted(sizes)[:5]}, is in a product of `costs`, whose leaves are "
                f"{known[:5]}: trace the cost with the tree that is compressed"
            )
        return [found[p.name] for p in parts], frozen


def _weights(part: Part) -> int:
    return part.tensors * math.prod(part.shape)


def at_most(*, params: int | None = None, flops: int | None = None, costs: Cost | None = None) -> AtMost:
    """A budget: as many weights stay as it lets, by one threshold over score ÷ cost.

    For `mz.prune(score, allocation=at_most(...))` without a sparsity: the masks are chosen once, at `init`. The
    cost of a weight is 1, or the FLOPs of its leaf's products over the leaf's size; a group of a structure costs
    its weights together (blocks cut off at an edge are counted whole) and has their mean score. What the threshold
    leaves of the budget goes to the next best weights, dearest leaves first. So the budget is never exceeded,
    and of single weights less than the cheapest one is left over. Equal scores stay in order of leaf, then
    C-order index; negative ones are multiplied by the cost. NaN is an error, or traced ranks highest.

    Everything that is not pruned counts as well: leaves outside of the selection, and FLOPs of products without a
    pruned leaf. `mz.wrap`, `mz.compress`, `mz.decoded` and `mz.partition` tell `prune` of those parameters, as
    `frozen=`; who calls `Transform.init` directly passes it. A smaller model stays as it is.

    With a schedule as `sparsity`, its values over its final one say how much of the way from dense to the budget is
    gone: under `mz.schedules.cubic(0.9, 0, 1000)` the budget holds from step 1000 on, whatever the 0.9.

    Args:
      params: most parameters, kept weights and those not pruned.
      flops: most FLOPs, as `costs` counts them, a product's in proportion to the weights kept.
      costs: what `trace.cost(apply_fn, params, *inputs)` gives for the same tree of params.

    Raises:
      TransformError: neither or both bounds, FLOPs without costs, a bound below 1. (At `init`) the bound is not
        above what is not pruned; a product has both pruned and other leaves.

    >>> import modelzip_jax as mz
    >>> params = {"kernel": jnp.array([[4.0, -1.0], [2.0, 3.0]]), "bias": jnp.zeros(2)}
    >>> t = mz.only("kernel", mz.prune(allocation=mz.allocation.at_most(params=5)))
    >>> mz.decoded(params, t)["kernel"]
    Array([[4., 0.],
           [2., 3.]], dtype=float32)
    """
    if (params is None) == (flops is None):
        raise TransformError("at_most takes a bound on params or on flops, and not both")
    params = None if params is None else as_whole(params, "params", 1)
    flops = None if flops is None else as_whole(flops, "flops", 1)
    if (flops is None) != (costs is None):
        raise TransformError(
            "a bound on flops needs costs=trace.cost(apply_fn, params, *inputs), others do not"
        )
    by_leaves: collections.Counter[tuple[str, ...]] = collections.Counter()
    for equation in costs.equations if costs is not None else ():
        if equation.flops:
            by_leaves[equation.leaves] += equation.flops
    return AtMost(params, flops, tuple(by_leaves.items()))
