"""Which layers are pruned at all, by how active they are."""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.masking.allocation.allocator import Allocation, Part
from modelzip_jax.recipe import recordable

if TYPE_CHECKING:
    from modelzip_jax.trace import Activity

__all__ = ["ByActivation", "by_activation"]


@recordable
@dataclasses.dataclass(frozen=True)
class ByActivation(Allocation):
    """See `by_activation`. thinned: names of the leaves that are pruned."""

    thinned: tuple[str, ...]

    def __call__(self, parts: list[Part], sparsity: jax.Array) -> list[jax.Array]:
        return [sparsity if part.name in self.thinned else jnp.zeros_like(sparsity) for part in parts]


def by_activation(found: Activity, limit: float) -> ByActivation:
    """Layers whose share of non-zero activations is under a limit are pruned; all other leaves stay dense.

    The allocation rule of compression surveys, "a layer whose activation sparsity is under a limit is thinned
    and replaced by its sparse matrix", read so: activation sparsity is the share of a layer's activations that
    are not zero, over all neurons and all data; layers under the limit take the sparsity given to `mz.prune`,
    and the file stores them as a mask and the weights that stay. Layers without a nonlinearity have hardly a
    zero, so they stay dense.

    Args:
      found: what `trace.neuron_activity` gives for the same tree of params. A leaf of several layers (stacked
        for a scan) or uses counts by all of its activations together.
      limit: in (0, 1].

    Raises:
      TransformError: a limit outside (0, 1], or no layer under it, with the least active one's share.

    >>> from modelzip_jax import trace
    >>> model = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    >>> params = {"a": jnp.array([[1.0, -1.0, -2.0]]), "b": jnp.ones((3, 1))}
    >>> found = trace.neuron_activity(model, params, [jnp.array([[1.0], [3.0], [2.0], [4.0]])])
    >>> by_activation(found, limit=0.5)  # a third of the activations of "a" is not zero
    ByActivation(thinned=('a',))
    """
    if not 0.0 < limit <= 1.0:
        raise TransformError(f"the limit is a share of activations in (0, 1], not {limit!r}")
    zeros: dict[str, float] = collections.defaultdict(float)
    seen: dict[str, float] = collections.defaultdict(float)
    for layer in found.layers:
        # Of "[i]", the layer in a scan, and "#1", a second use, which `LayerActivity.name` may end with.
        name = re.sub(r"(#\d+)?(\[[\d, ]+\])?$", "", layer.name)
        zeros[name] += layer.count * float(np.sum(layer.zeros))
        seen[name] += layer.count * layer.zeros.size
    active = {name: 1.0 - zeros[name] / max(seen[name], 1.0) for name in seen}
    thinned = tuple(name for name, share in active.items() if share < limit)
    if not thinned:
        least = min(active, key=lambda name: active[name], default="(no layer)")
        raise TransformError(
            f"no layer has a share of non-zero activations under {limit}; the least is "
            f"{active.get(least, 1.0):.4f} of {least!r}"
        )
    return ByActivation(thinned)
