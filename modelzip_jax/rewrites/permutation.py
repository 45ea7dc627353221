"""Channels in an order in which neighbours resemble each other: the same network, for bases that profit from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, NonFiniteError, TransformError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.trace.coupling.groups import Group
from modelzip_jax.tree import PyTree
from modelzip_jax.wavelets.path import short_path

__all__ = ["Orders", "permute", "similarity_order"]

Orders = Mapping[Group, Any]
"""For each group, int `(units,)`: which unit comes to each place."""


def similarity_order(params: PyTree, group: Group) -> np.ndarray:
    """An order of a group's units in which neighbours resemble each other: a short path through their weights.

    A unit's vector is all weights that belong to it, its slices of every member, each leaf divided by its root mean
    square, so that leaves count by their number of weights and not by their scale. The path is
    found without data by the nearest neighbour, and shortened by reversing stretches (`short_path`). Units of
    different kinds (`Group.kinds`) do not change places.

    Args:
      params: the tree that `trace.couplings` was given, with all collections.
      group: one of its groups.

    Returns:
      int64 `(units,)`: which unit comes to each place. Found on the host: not for use under `jit`.

    Raises:
      LeafError: a leaf of the group is missing, or has another size than it had when it was traced.
      NonFiniteError: a leaf holds NaN or infinity.

    >>> from modelzip_jax import trace
    >>> params = {"up": jnp.array([[1.0, 5.0, 2.0, 6.0]]), "down": jnp.ones((4, 1))}
    >>> (group,) = trace.couplings(lambda p, x: x @ p["up"] @ p["down"], params, jnp.ones((1, 1))).groups
    >>> similarity_order(params, group)
    array([0, 2, 1, 3])
    """
    leaves = _leaves([group], params)
    squares = np.zeros((group.units, group.units))
    for member in group.members:
        if not jnp.issubdtype(jnp.result_type(leaves[member.leaf]), jnp.floating):
            continue
        x = np.asarray(leaves[member.leaf], np.float32)
        size = float(np.sqrt(np.mean(np.square(x), dtype=np.float64)))
        if not np.isfinite(size):
            raise NonFiniteError(f"leaf {member.leaf!r} holds NaN or infinity")
        rows = np.moveaxis(x, member.axis, 0)[member.indices].reshape(group.units, -1)
        squares += _squared_distances(rows / size if size else rows)
    order = np.arange(group.units)
    for kind in np.unique(group.kinds):
        units = np.flatnonzero(group.kinds == kind)
        order[units] = units[short_path(np.sqrt(squares[np.ix_(units, units)]))]
    return order


def _squared_distances(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=0)  # Products of rows far from zero would cancel.
    products = (rows @ rows.T).astype(np.float64)
    norms = np.diag(products)
    return np.maximum(norms[:, None] + norms - 2.0 * products, 0.0)


def permute(params: PyTree, groups: Iterable[Group] | Orders) -> PyTree:
    """The same network with its channels in another order, by default one in which neighbours resemble each other.

    A wavelet makes small coefficients of neighbours that resemble each other, and the order in which training left
    the channels is arbitrary. Every coupled leaf is permuted alike: kernels on both sides, biases, batch statistics,
    each row of a flattened image. Attention keeps its heads together: they are units of one group, the places
    within all of them those of another. Axes that couplings freezes stay as they are. The network computes what
    it did, to the rounding of sums in another order; nothing is stored, since the new order is the network's own.

    Args:
      params: the tree that `trace.couplings` was given as `params`, with all collections; arrays of NumPy or JAX.
      groups: of `trace.couplings`, ordered by `similarity_order`; or for each group an order, for example to
        permute an optimizer's moments as the weights were.

    Returns:
      The tree with the groups' leaves permuted; the others are the same arrays.

    Raises:
      LeafError: a leaf of a group is missing, or has another size than it had when it was traced.
      TransformError: what is no order of a group's units, or exchanges units of different kinds.
      NonFiniteError: a leaf to be ordered by similarity holds NaN or infinity.

    A permutation of hidden units does not change the function: Hecht-Nielsen 1990, "On the algebraic structure of
    feedforward network weight spaces". Whether it pays is measured in `docs/wavelets.md`.

    >>> from modelzip_jax import trace
    >>> params = {"up": jnp.array([[1.0, 5.0, 2.0, 6.0]]), "down": jnp.array([[1.0], [2.0], [3.0], [4.0]])}
    >>> model = lambda p, x: x @ p["up"] @ p["down"]
    >>> groups = trace.couplings(model, params, jnp.ones((1, 1))).groups
    >>> {name: x.ravel().tolist() for name, x in permute(params, groups).items()}
    {'down': [1.0, 3.0, 2.0, 4.0], 'up': [1.0, 2.0, 5.0, 6.0]}
    """
    if isinstance(groups, Mapping):
        orders = {group: _checked(group, order) for group, order in groups.items()}
    else:
        orders = {group: similarity_order(params, group) for group in groups}
    leaves = _leaves(orders, params)
    moves: dict[str, dict[int, np.ndarray]] = {}
    for group, order in orders.items():
        for member in group.members:
            size = np.shape(leaves[member.leaf])[member.axis]
            move = np.arange(size)
            move[member.indices] = member.indices[order]
            axes = moves.setdefault(member.leaf, {})
            # Heads, and places within them, move one after the other.
            axes[member.axis] = axes.get(member.axis, np.arange(size))[move]

    def moved(name: str, x: Any) -> Any:
        for axis, move in moves.get(name, {}).items():
            x = x.take(move, axis=axis)
        return x

    return trees.map_named(moved, params)


def _leaves(groups: Iterable[Group], params: PyTree) -> dict[str, Any]:
    check_float_params(params, "an order of units")
    leaves = dict(trees.named_leaves(params))
    for member in (member for group in groups for member in group.members):
        if member.leaf not in leaves:
            raise LeafError(
                f"a group has the leaf {member.leaf!r}, which is not there; pass the tree that couplings was given, "
                "with all collections"
            )
        shape = np.shape(leaves[member.leaf])
        if len(shape) <= member.axis or member.indices.max(initial=-1) >= shape[member.axis]:
            raise LeafError(f"leaf {member.leaf!r} has the shape {shape} and not the one it was traced with")
    return leaves


def _checked(group: Group, order: Any) -> np.ndarray:
    found = np.asarray(order)
    if found.dtype.kind not in "iu" or not np.array_equal(np.sort(found, axis=None), np.arange(group.units)):
        raise TransformError(
            f"an order of group {group.name!r} has each of the units 0 to {group.units - 1} once, not {order!r}"
        )
    if np.any(group.kinds[found] != group.kinds):
        raise TransformError(
            f"group {group.name!r} has units of several kinds, which cannot change places: {group.kinds}"
        )
    return found
