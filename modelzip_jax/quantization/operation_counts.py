"""Bit operations: what products cost on hardware whose multipliers are as wide as their factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.tree import PyTree

if TYPE_CHECKING:
    from modelzip_jax.trace import Cost

__all__ = ["ActivationBits", "bit_operations"]

ActivationBits = int | Mapping[str, int]
"""Bits of the activations that meet weights: of all products, or by path pattern of the leaf they meet."""


def bit_operations(
    costs: Cost, params: PyTree, leaves: tuple[str, ...], widths: np.ndarray, activation_bits: ActivationBits
) -> tuple[np.ndarray, int]:
    """Bit operations of one call of a model: multiplications × bits of a weight × bits of an activation.

    The leading term of Baskin et al. 2018 (UNIQ, arXiv:1804.10969, §4.2), as van Baalen et al. 2020 (Bayesian Bits,
    arXiv:2005.07093, eq. 22) count. A product of several leaves, such as fused ones, has shares by their sizes.
    Products of activations with each other, as in attention, have factors of the widest activations.

    Args:
      costs: of `trace.cost`, for the same params. leaves: whose widths are to be chosen. widths: bits `(leaves,
      candidates)` of their weights. activation_bits: those met by a leaf without a pattern have its own dtype's.

    Returns:
      int64 `(leaves, candidates)`, rounded up, and the operations of everything else.

    Raises:
      TransformError: `costs` that are none of `trace.cost`; bits that are none, or none of the leaves is in a product.
      PatternError: a pattern matches nothing.
    """
    if not hasattr(costs, "equations"):
        raise TransformError(
            f"costs= takes trace.cost(apply_fn, params, *inputs), not a {type(costs).__name__}"
        )
    named = trees.named_leaves(params)
    sizes = {name: int(np.size(x)) for name, x in named}
    own = {name: 8 * trees.nbytes(x) // max(sizes[name], 1) for name, x in named}
    met = _met(activation_bits, own)
    shares = dict.fromkeys(leaves, 0.0)
    rest = 0.0
    for equation in costs.equations:
        products = equation.flops / 2
        if unknown := [name for name in equation.leaves if name not in sizes]:
            raise TransformError(
                f"costs have the leaf {unknown[0]!r}, which the params lack: trace the cost with the tree that is "
                "compressed"
            )
        if not equation.leaves:
            rest += products * max(met.values(), default=32) ** 2
        together = max(sum(sizes[name] for name in equation.leaves), 1)
        for name in equation.leaves:
            part = products * sizes[name] / together * met[name]
            if name in shares:
                shares[name] += part
            else:
                rest += part * own[name]
    if leaves and not any(shares.values()):
        raise TransformError(f"none of the leaves {list(leaves)[:5]} is in a product of `costs`")
    each = np.array([shares[name] for name in leaves])
    return np.ceil(each[:, None] * widths).astype(np.int64), int(np.ceil(rest))


def _met(activation_bits: Any, own: dict[str, int]) -> dict[str, int]:
    """Bits of the activations that each leaf meets."""
    by_pattern = activation_bits if isinstance(activation_bits, Mapping) else {"**": activation_bits}
    if not all(type(bits) is int and 1 <= bits <= 64 for bits in by_pattern.values()):
        raise TransformError(f"activation_bits are integers from 1 to 64, not {activation_bits!r}")
    require_matches(by_pattern, list(own))
    return {
        name: next((bits for p, bits in by_pattern.items() if matches(p, name)), width)
        for name, width in own.items()
    }
