"""The energy of one call of a model, estimated from its FLOPs and bytes: no meter was read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from modelzip_jax.errors import EvaluationError
from modelzip_jax.evaluation.report import Report, inspect
from modelzip_jax.packing import Packed

if TYPE_CHECKING:
    from modelzip_jax.trace import Cost, EquationCost

__all__ = ["HOROWITZ", "EnergyEstimate", "EnergyTable", "energy"]


@dataclasses.dataclass(frozen=True)
class EnergyTable:
    """What operations cost on some hardware, in picojoules.

    source: where the numbers are from. products: of one multiplication and its accumulation, by the dtype of the
    factors. elementwise: of one operation outside of products. weight_bit, activation_bit: of moving one bit of
    weights, and of activations, to the arithmetic.

    >>> own = dataclasses.replace(HOROWITZ, source="all weights in a cache of 32 KB", weight_bit=20.0 / 64)
    >>> own.weight_bit, own.products["int8"]
    (0.3125, 0.30000000000000004)
    """

    source: str
    products: Mapping[str, float]
    elementwise: float
    weight_bit: float
    activation_bit: float


HOROWITZ = EnergyTable(
    source="Horowitz 2014, ISSCC, doi:10.1109/ISSCC.2014.6757323, figure 1.1.9: 45 nm, 0.9 V; weights from DRAM "
    "(1.3 nJ for 64 bits), activations from a cache of 32 KB (20 pJ for 64 bits)",
    products=MappingProxyType({
        "float32": 3.7 + 0.9,
        "float16": 1.1 + 0.9,  # Sums in float32.
        "int8": 0.2 + 0.1,  # Sums in int32.
    }),
    elementwise=0.9,
    weight_bit=1300.0 / 64,
    activation_bit=20.0 / 64,
)  # fmt: skip
"""Of 2014: later processes need less for all of it; what lasts is that memory costs more than arithmetic."""


@dataclasses.dataclass(frozen=True)
class EnergyEstimate:
    """What `energy` estimates of one call, in joules: an estimate, not a measurement.

    products: multiplications and additions of products. elementwise: everything else that is computed. weights,
    activations: moving them. by_leaf: products and weights of each parameter; what several share counts for each.
    assumptions: in words.

    >>> print(EnergyEstimate(2e-6, 0.0, 5e-6, 1e-6, {}, "Horowitz 2014"))
    estimated 8 µJ a call (products 2, elementwise 0, weights 5, activations 1); Horowitz 2014
    """

    products: float
    elementwise: float
    weights: float
    activations: float
    by_leaf: Mapping[str, float]
    assumptions: str

    @property
    def total(self) -> float:
        """Of everything together, in joules."""
        return self.products + self.elementwise + self.weights + self.activations

    def __str__(self) -> str:
        parts = ("products", "elementwise", "weights", "activations")
        said = ", ".join(f"{name} {1e6 * getattr(self, name):.3g}" for name in parts)
        return f"estimated {1e6 * self.total:.3g} µJ a call ({said}); {self.assumptions}"


def energy(
    costs: Cost,
    model: Packed | Report | None = None,
    *,
    arithmetic: str = "float32",
    activation_bits: float = 32.0,
    skip_zeros: bool = False,
    table: EnergyTable = HOROWITZ,
) -> EnergyEstimate:
    """Estimates the energy of one call: operations times what one costs, plus bits moved times what moving one costs.

    A rough one: each product reads its weights once from memory and its activations once from a cache, nothing is
    reused between products, and control, idle silicon and decoding cost nothing. Good for ratios of two forms of one
    model under the same table, not for a battery's life.

    Args:
      costs: of `trace.cost`, for the shapes of the call.
      model: whose weights are moved as they are packed in memory (`packed_bytes` of `mz.inspect`); None: dense.
      arithmetic: the dtype in which products are computed, a name of `table.products`.
      activation_bits: of the activations that `costs` saw in float32; 8 for int8.
      skip_zeros: whether the hardware leaves out products with weights that a mask has set to zero; most do not.
      table: the constants; make your own with `dataclasses.replace(HOROWITZ, ...)`.

    Raises:
      EvaluationError: an unknown arithmetic; a leaf of `costs` that the model does not have.

    >>> import jax.numpy as jnp
    >>> from modelzip_jax import trace
    >>> costs = trace.cost(lambda p, x: x @ p["w"], {"w": jnp.ones((8, 4))}, jnp.ones((2, 8)))
    >>> found = energy(costs)
    >>> [round(1e12 * x, 1) for x in (found.products, found.weights, found.activations)]  # Picojoules.
    [294.4, 20800.0, 240.0]
    """
    _check(arithmetic, table)
    kept = _kept(costs, model)
    products = weights = elementwise = activations = 0.0
    by_leaf: dict[str, float] = {}
    for equation in costs.equations:
        bits, density = _means(equation, kept)
        computed = equation.flops / 2 * table.products[arithmetic] * (density if skip_zeros else 1.0)
        moved = 8 * equation.weight_bytes * bits * table.weight_bit
        products, weights = products + computed, weights + moved
        elementwise += equation.elementwise * table.elementwise
        activations += 8 * equation.activation_bytes * activation_bits / 32 * table.activation_bit
        for leaf in equation.leaves if equation.flops else ():
            by_leaf[leaf] = by_leaf.get(leaf, 0.0) + 1e-12 * (computed + moved)
    said = f"{arithmetic} products{', those with zeros left out' if skip_zeros else ''}; {table.source}"
    return EnergyEstimate(
        1e-12 * products, 1e-12 * elementwise, 1e-12 * weights, 1e-12 * activations, by_leaf, said
    )


def _check(arithmetic: str, table: EnergyTable) -> None:
    if arithmetic not in table.products:
        known = ", ".join(map(repr, table.products))
        raise EvaluationError(f"energy() has constants for products in {known}, not in {arithmetic!r}")


def _kept(costs: Cost, model: Packed | Report | None) -> dict[str, tuple[float, float, int]] | None:
    """Of each leaf: packed over dense bytes, the share that no mask hides, and its size; None without a model."""
    if model is None:
        return None
    rows = (model if isinstance(model, Report) else inspect(model)).tensors
    found = {r.name: (r.packed_bytes / max(r.dense_bytes, 1), 1.0 - r.sparsity, r.size) for r in rows}
    unknown = {leaf for e in costs.equations if e.flops for leaf in e.leaves} - set(found)
    if unknown:
        raise EvaluationError(
            f"costs have the leaf {min(unknown)!r}, which the model lacks: it has {', '.join(list(found)[:6])}; trace "
            "the cost with the tree that was compressed"
        )
    return found


def _means(equation: EquationCost, kept: dict[str, tuple[float, float, int]] | None) -> tuple[float, float]:
    """Packed over dense bytes, and the share kept, of the weights of one product."""
    if kept is None or not equation.flops or not equation.leaves:
        return 1.0, 1.0
    rows = [kept[leaf] for leaf in equation.leaves]
    total = max(sum(size for *_, size in rows), 1)
    return sum(b * n for b, _, n in rows) / total, sum(d * n for _, d, n in rows) / total
