"""What compression changed in each layer's weights, by the weights that it was made of."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TreeError
from modelzip_jax.suggestions import listed
from modelzip_jax.tree import PyTree, named_leaves

__all__ = ["WeightError", "leaves_like", "weight_error"]

_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class WeightError:
    """How far a layer's weights are from what they were.

    squared: sum of the squared differences, of finite weights. norm: sum of their squares before. largest: the
    largest difference.
    """

    squared: float
    norm: float
    largest: float

    @property
    def relative(self) -> float:
        """‖ŵ − w‖ / ‖w‖; 0 where nothing changed, infinite where only zeros did."""
        if not self.squared:
            return 0.0
        return float(np.sqrt(self.squared / self.norm)) if self.norm else float("inf")


def weight_error(before: np.ndarray, after: np.ndarray) -> WeightError:
    """Sums in float64, of float arrays of one shape.

    >>> weight_error(np.float32([3.0, 4.0]), np.float32([3.0, 3.0])).relative
    0.2
    """
    squared = norm = largest = 0.0
    x, y = before.reshape(-1), after.reshape(-1)
    for start in range(0, x.size, _BLOCK):
        w, v = (a[start : start + _BLOCK].astype(np.float64) for a in (x, y))
        here = np.isfinite(w) & np.isfinite(v)
        w, error = w[here], np.abs(v[here] - w[here])
        squared += float(error @ error)
        norm += float(w @ w)
        largest = max(largest, float(error.max(initial=0.0)))
    return WeightError(squared, norm, largest)


def leaves_like(names: list[str], shapes: list[tuple[int, ...]], against: PyTree) -> list[Any]:
    """The leaves of another tree by name, as arrays of the host; of a checkpoint's `{"params": …}` those below.

    Raises:
      TreeError: a name is missing, or has another shape.

    >>> leaves_like(["w"], [(2,)], {"params": {"w": np.ones(2)}})
    [array([1., 1.])]
    """
    held = dict(named_leaves(against))
    if names and not any(name in held for name in names):
        held = {name.removeprefix("params/"): leaf for name, leaf in held.items()}
    for name, shape in zip(names, shapes, strict=True):
        if name not in held:
            raise TreeError(
                f"the weights to compare with have no {name!r}, which the compressed model has; "
                f"theirs are {listed(list(held))}"
            )
        if tuple(jnp.shape(held[name])) != tuple(shape):
            raise TreeError(
                f"{name!r} has the shape {tuple(shape)} in the compressed model and {jnp.shape(held[name])} in the "
                "weights to compare with: they are not what it was made of"
            )
    return [np.asarray(held[name]) for name in names]
