"""What a changed leaf costs the network: the base of all sensitivities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from modelzip_jax.tree import PyTree

__all__ = ["LeafCost", "Sensitivity"]

LeafCost = Callable[[str, np.ndarray, np.ndarray], float]
"""From a leaf's name, its weights and what they become: how much worse the network is, in the sensitivity's unit."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Base of sensitivities. Those of several leaves are added: choose a measure for which that is nearly right.

    A new one is a frozen dataclass with one method, from the params to a function of one leaf:

    >>> import modelzip_jax as mz
    >>> @dataclasses.dataclass(frozen=True)
    ... class LargestError(mz.sensitivity.Sensitivity):
    ...     def prepare(self, params):
    ...         return lambda name, weights, changed: float(abs(weights - changed).max())
    >>> params = {"a": np.float32([1.0, 0.3, 0.1, 0.1]), "b": np.float32([0.5, 0.5, 0.5, 0.5])}
    >>> found = mz.mixed_precision(
    ...     params, [mz.quantize(2), mz.quantize(8)], sensitivity=LargestError(), budget_bytes=50
    ... )
    >>> found.choices
    {'a': 'Quantize(bits=8)', 'b': 'Quantize(bits=2)'}
    """

    def prepare(self, params: PyTree) -> LeafCost:
        """What measures one leaf of these params; what is the same for all leaves is done here, once."""
        raise TypeError(f"{type(self).__name__} defines no prepare()")
