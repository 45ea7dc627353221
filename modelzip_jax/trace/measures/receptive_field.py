"""Receptive fields: how much of an input each layer of a model sees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from modelzip_jax.errors import TraceError
from modelzip_jax.trace.jaxpr.interpreter import interpret
from modelzip_jax.trace.jaxpr.programs import program
from modelzip_jax.trace.measures.reach_domain import ReachDomain
from modelzip_jax.trace.measures.reach_rules import reach_rule
from modelzip_jax.trace.usage.use import uses_of
from modelzip_jax.tree import PyTree

__all__ = ["ReceptiveField", "receptive_fields"]


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """Of one layer's outputs.

    size: along each axis of the input, how many elements lie between the first and the last one that an output depends
    on, both included; padding counts, so that it may be larger than the input. extent: the input's shape.

    >>> ReceptiveField(size=(1, 3, 40, 2), extent=(8, 32, 32, 2)).share
    0.09375
    """

    size: tuple[int, ...]
    extent: tuple[int, ...]

    @property
    def share(self) -> float:
        """Which share of one example an output may depend on, in (0, 1]; examples lie along the first axis."""
        pairs = zip(self.size[1:], self.extent[1:], strict=True)
        return math.prod(min(size, extent) / extent for size, extent in pairs)


def receptive_fields(apply_fn: Callable[..., Any], params: PyTree, *inputs: Any) -> dict[str, ReceptiveField]:
    """The receptive field of every layer: of each parameter's products, what of the first input they depend on.

    Follows windows, strides and dilations of convolutions and pooling through the jaxpr (size += (window - 1) jump,
    jump *= stride; Araujo et al. 2019, doi:10.23915/distill.00021), through whatever else stands between, and what a
    flattened or averaged axis gathers. An upper bound: attention, recurrences over time and what no rule covers see all
    that reaches them. Of several uses of a leaf the largest counts. Nothing is computed.

    Args:
      apply_fn, params, *inputs: as for `uses`; shapes suffice. Fields are of the first array among the inputs; the
        first axis counts examples.

    Returns:
      A `ReceptiveField` for each leaf that takes part in a product (`dot_general`, `conv_general_dilated`).

    Raises:
      LeafError: a leaf is no array. TraceError: there is no input.

    >>> from jax import lax
    >>> import jax.numpy as jnp
    >>> def model(p, x):
    ...     for kernel in (p["a"], p["b"]):
    ...         x = lax.conv_general_dilated(x, kernel, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    ...     return x
    >>> found = receptive_fields(model, {"a": jnp.ones((3, 1, 4)), "b": jnp.ones((3, 4, 4))}, jnp.ones((1, 16, 1)))
    >>> {name: field.size for name, field in found.items()}
    {'a': (1, 3, 1), 'b': (1, 7, 1)}
    """
    traced = program(apply_fn, params, *inputs)
    if not jax.tree.leaves(inputs):
        raise TraceError("receptive fields are of an input, and the model was given none beside its params")
    shapes = [tuple(v.aval.shape) for v in traced.jaxpr.jaxpr.invars]
    first = len(traced.names)
    domain = ReachDomain(shapes[first], reach_rule)
    arguments = [
        domain.source(shape) if i == first else domain.constant(shape) for i, shape in enumerate(shapes)
    ]
    interpret(domain, traced, arguments)
    found: dict[str, ReceptiveField] = {}
    for use in uses_of(traced):
        if use.kind not in ("dot", "conv"):
            continue
        field = ReceptiveField(tuple(math.ceil(s) for s in domain.found[use.path]), shapes[first])
        best = found.get(use.leaf)
        found[use.leaf] = field if best is None or field.share >= best.share else best
    return found
