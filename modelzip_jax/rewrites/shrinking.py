"""Physical pruning: channels leave every leaf that is coupled to them."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.trace.coupling.groups import Group
from modelzip_jax.tree import PyTree

__all__ = ["Removals", "shrink", "shrink_nnx", "shrunk_shapes", "silence"]

Removals = Mapping[Group, Any] | Iterable[tuple[Group, Any]]
"""Which units of each group go: a boolean mask `(units,)`, or their indices."""


def shrink(
    variables: PyTree, removals: Removals, rebuild: Callable[[dict[str, tuple[int, ...]]], Any] | None = None
) -> Any:
    """Takes units out of every coupled leaf: kernels on both sides, biases, batch statistics.

    The smaller model computes what the larger one does with those units silenced (`silence`).

    Args:
      variables: the tree that `trace.couplings` was given as `params`, with all collections.
      removals: groups of `trace.couplings`, and the units of each to remove. Several groups may share
        an axis, such as whole heads and places in all heads.
      rebuild: makes the smaller module from the new shapes, `{leaf name: shape}`.

    Returns:
      The smaller variables; `(rebuild(shapes), variables)` if `rebuild` is given.

    Raises:
      TransformError: units that the group does not have, or all of them.
      LeafError: a leaf of a group is missing, or has another size than it had when it was traced.

    >>> import jax
    >>> from modelzip_jax import trace
    >>> params = {"up": jnp.ones((3, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 2))}
    >>> model = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
    >>> (group,) = trace.couplings(model, params, jnp.ones((1, 3))).groups
    >>> {name: x.shape for name, x in shrink(params, {group: [0, 1, 5]}).items()}
    {'bias': (5,), 'down': (5, 2), 'up': (3, 5)}
    """
    gone = _indices(removals, variables)

    def cut(name: str, x: Any) -> Any:
        for axis, indices in gone.get(name, {}).items():
            x = jnp.take(x, np.delete(np.arange(np.shape(x)[axis]), indices), axis=axis)
        return x

    smaller = trees.map_named(cut, variables)
    if rebuild is None:
        return smaller
    return rebuild({name: tuple(np.shape(x)) for name, x in trees.named_leaves(smaller)}), smaller


def shrunk_shapes(variables: PyTree, removals: Removals) -> PyTree:
    """What `shrink` would return, as `jax.ShapeDtypeStruct`s: enough for `trace.cost`, and nothing is computed.

    Args:
      variables, removals: as for `shrink`; shapes suffice.

    Raises:
      As `shrink`.

    >>> from modelzip_jax import trace
    >>> params = {"up": jnp.ones((3, 2)), "down": jnp.ones((2, 1))}
    >>> (group,) = trace.couplings(lambda p, x: x @ p["up"] @ p["down"], params, jnp.ones((1, 3))).groups
    >>> shrunk_shapes(params, {group: [1]})["up"]
    ShapeDtypeStruct(shape=(3, 1), dtype=float32)
    """
    gone = _indices(removals, variables)

    def cut(name: str, x: Any) -> Any:
        shape = list(np.shape(x))
        for axis, indices in gone.get(name, {}).items():
            shape[axis] -= len(indices)
        return jax.ShapeDtypeStruct(tuple(shape), x.dtype if hasattr(x, "dtype") else jnp.result_type(x))

    return trees.map_named(cut, variables)


def shrink_nnx(module: Any, removals: Removals) -> None:
    """Takes units out of an NNX module's variables in place.

    NNX layers compute with their variables' shapes; sizes they were built with (`out_features`) stay as they
    were and are not used. A grouped convolution keeps its number of groups and cannot shrink so.

    Args:
      module: the module. removals: of couplings traced with `nnx.state(module)` as `params`.

    Raises:
      As `shrink`.

    >>> from flax import nnx
    >>> from modelzip_jax import trace
    >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=nnx.Rngs(0)), jax.nn.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1)))
    >>> graph, state = nnx.split(model)
    >>> group = trace.couplings(lambda s, x: nnx.merge(graph, s)(x), state, jnp.ones((1, 3))).groups[0]
    >>> shrink_nnx(model, {group: [0, 1, 5]})
    >>> model.layers[0].kernel.shape, model.layers[2].kernel.shape
    ((3, 5), (5, 2))
    """
    from flax import nnx

    nnx.update(module, shrink(nnx.state(module), removals))


def silence(variables: PyTree, removals: Removals) -> PyTree:
    """The variables with everything that `shrink` would remove set to zero.

    >>> import jax
    >>> from modelzip_jax import trace
    >>> params = {"up": jnp.ones((3, 2)), "down": jnp.ones((2, 1))}
    >>> (group,) = trace.couplings(lambda p, x: x @ p["up"] @ p["down"], params, jnp.ones((1, 3))).groups
    >>> silence(params, {group: [1]})["down"].ravel()
    Array([1., 0.], dtype=float32)
    """
    gone = _indices(removals, variables)

    def clear(name: str, x: Any) -> Any:
        for axis, indices in gone.get(name, {}).items():
            keep = np.ones(np.shape(x)[axis], bool)
            keep[indices] = False
            x = jnp.where(keep.reshape([-1] + [1] * (np.ndim(x) - axis - 1)), x, 0)
        return x

    return trees.map_named(clear, variables)


def _indices(removals: Removals, variables: PyTree) -> dict[str, dict[int, np.ndarray]]:
    """What leaves each axis of each leaf."""
    check_float_params(variables, "a rewrite of units")
    sizes = {name: np.shape(x) for name, x in trees.named_leaves(variables)}
    gone: dict[str, dict[int, set[int]]] = collections.defaultdict(lambda: collections.defaultdict(set))
    for group, units in removals.items() if isinstance(removals, Mapping) else removals:
        chosen = _units(group, units)
        for member in group.members:
            if member.leaf not in sizes:
                raise LeafError(
                    f"group {group.name!r} has the leaf {member.leaf!r}, which is not there; pass the tree that "
                    "couplings was given, with all collections"
                )
            if member.indices.max(initial=-1) >= sizes[member.leaf][member.axis]:
                raise LeafError(
                    f"leaf {member.leaf!r} has the shape {sizes[member.leaf]} and not the one it was traced with; "
                    "trace the couplings of a shrunk model anew"
                )
            gone[member.leaf][member.axis].update(member.removed(chosen).tolist())
    for name, axes in gone.items():
        for axis, indices in axes.items():
            if len(indices) == sizes[name][axis]:
                raise TransformError(
                    f"all of axis {axis} of {name!r} would be removed; keep at least one unit"
                )
    return {name: {a: np.array(sorted(i)) for a, i in axes.items() if i} for name, axes in gone.items()}


def _units(group: Group, units: Any) -> np.ndarray:
    chosen = np.asarray(units)
    if chosen.dtype == bool:
        if chosen.shape != (group.units,):
            raise TransformError(
                f"a mask of group {group.name!r} has {group.units} flags, not {chosen.shape}"
            )
        return np.flatnonzero(chosen)
    chosen = chosen.astype(np.int64).reshape(-1)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < group.units):
        raise TransformError(
            f"group {group.name!r} has the units 0 to {group.units - 1}, not {chosen.tolist()[:8]}"
        )
    return chosen
