"""Weights within a bound, by scales that the rest of the network takes up."""

from __future__ import annotations

import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.tree import PyTree

__all__ = ["within_reach"]


def within_reach(variables: PyTree, reach: float) -> PyTree:
    """The same function with kernels whose largest weight is `reach` in magnitude: `VGG`'s variables, rescaled.

    A convolution's kernel times s makes its outputs s times as large: the running mean that batch normalisation
    subtracts grows by s, and the variance by s². (Its small ε does not, so that outputs are the same to within ε over
    the variance.) The last layer has no normalisation behind it: there, relu and pooling hand on what the scale
    and bias before them are divided by. Zeros stay, and a kernel of nothing else stays as it is.

    Args:
      variables: `{"params": ..., "batch_stats": ...}` of layers `Conv_i`, `BatchNorm_i` and `Dense_0`.
      reach: above 0.

    Raises:
      TransformError: `reach` is not above 0.

    >>> norm = {"scale": jnp.ones(1), "bias": jnp.zeros(1)}
    >>> params = {"Conv_0": {"kernel": jnp.full((1, 1, 1, 1), 2.0)}, "BatchNorm_0": norm}
    >>> params["Dense_0"] = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    >>> stats = {"BatchNorm_0": {"mean": jnp.ones(1), "var": jnp.ones(1)}}
    >>> found = within_reach({"params": params, "batch_stats": stats}, 0.5)
    >>> [float(x.max()) for x in (found["params"]["Conv_0"]["kernel"], *found["batch_stats"]["BatchNorm_0"].values())]
    [0.5, 0.25, 0.0625]
    """
    if not reach > 0.0:
        raise TransformError(f"weights can only be within a reach above 0, not {reach!r}")
    leaves = dict(trees.named_leaves(variables))
    convolutions = sum(name.startswith("params/Conv_") and name.endswith("/kernel") for name in leaves)

    def scale(kernel: str) -> float:
        largest = float(jnp.abs(leaves[kernel]).max())
        return reach / largest if largest else 1.0

    factors = {}
    for i in range(convolutions):
        s = scale(f"params/Conv_{i}/kernel")
        factors[f"params/Conv_{i}/kernel"] = s
        factors[f"batch_stats/BatchNorm_{i}/mean"] = s
        factors[f"batch_stats/BatchNorm_{i}/var"] = s * s
    last = scale("params/Dense_0/kernel")
    factors["params/Dense_0/kernel"] = last
    for name in ("scale", "bias"):
        factors[f"params/BatchNorm_{convolutions - 1}/{name}"] = 1.0 / last
    return trees.map_named(lambda name, x: x * jnp.float32(factors.get(name, 1.0)), variables)
