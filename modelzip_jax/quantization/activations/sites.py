"""Where activations are quantized: the products of a model with leaves of its parameters, and what is fed to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TraceError
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.trace.jaxpr.interpreter import equations_at
from modelzip_jax.trace.jaxpr.programs import Program, Scan
from modelzip_jax.trace.measures.input_statistics import scans_around
from modelzip_jax.trace.usage.use import Use, uses_of
from modelzip_jax.tree import PyTree

__all__ = ["fed", "product_sites", "site_name"]


def product_sites(traced: Program, patterns: Sequence[str]) -> dict[str, Use]:
    """The products with leaves that match, by the path of their equation; leaves put together there count once.

    Raises:
      PatternError: a pattern matches no leaf. TraceError: there is no such product.
    """
    require_matches(patterns, traced.names)
    found: dict[str, Use] = {}
    for use in uses_of(traced):
        product = use.kind in ("dot", "conv") and not use.derived
        if product and any(matches(pattern, use.leaf) for pattern in patterns):
            found.setdefault(use.path, use)
    if not found:
        raise TraceError(f"the model has no product with a leaf that {list(patterns)} matches")
    return found


def site_name(use: Use) -> str:
    """The name of a product: its leaf, and which use of it where that has several.

    >>> import modelzip_jax as mz
    >>> tied = mz.trace.uses(lambda p, x: x @ p["w"] @ p["w"], {"w": jnp.ones((2, 2))}, jnp.ones((1, 2)))
    >>> [site_name(use) for use in tied]
    ['w', 'w#1']
    """
    return f"{use.leaf}#{use.index}" if use.index else use.leaf


def fed(traced: Program, numbers: Mapping[str, PyTree], sites: Mapping[str, Use]) -> dict[str, PyTree]:
    """What is fed to each product: arrays whose leading axes are the layers of its leaf, for all scans around it.

    numbers: by path. Iterations of a scan that share the leaf share its numbers.

    Raises:
      TraceError: a scan runs over layers of several leaves.
    """
    scans = equations_at(traced, {scan for path in numbers for scan in scans_around(path)})
    lengths = {path: Scan.of(equation.eqn).length for path, equation in scans.items()}
    return {path: _spread(own, path, sites[path], lengths) for path, own in numbers.items()}


def _spread(own: PyTree, path: str, use: Use, lengths: Mapping[str, int]) -> PyTree:
    taken = {layer.scan: layer.axis for layer in use.view.layers}
    for scan, axis in taken.items():
        if not axis.full:
            raise TraceError(
                f"the scan {scan} runs over layers of {use.leaf!r} and of other leaves: nothing is kept for each"
            )

    def spread(x: jax.Array) -> jax.Array:
        for place, scan in enumerate(scans_around(path)):
            if scan not in taken:
                shape = (*x.shape[:place], lengths[scan], *x.shape[place:])
                x = jnp.broadcast_to(jnp.expand_dims(x, place), shape)
        return x

    def checked(x: Any) -> jax.Array:
        sizes = tuple(axis.size for axis in taken.values())
        if jnp.shape(x)[: len(sizes)] != sizes:
            raise TraceError(
                f"{site_name(use)!r} has {sizes} layers, and numbers of shape {jnp.shape(x)} are given for it"
            )
        return spread(jnp.asarray(x))

    return jax.tree.map(checked, own)
