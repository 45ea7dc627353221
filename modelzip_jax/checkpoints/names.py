"""Between nested trees and the flat names of formats that know no nesting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from modelzip_jax.errors import CheckpointError
from modelzip_jax.tree import segment

__all__ = ["flatten", "ordered", "unflatten"]


def flatten(tree: Any, separator: str) -> dict[str, Any]:
    """Leaves by name: the keys and indices of their path, joined by `separator`.

    A key that holds the separator is not escaped, so that flat dicts ("encoder.weight") are written
    under the names they have. `None` and empty containers have no leaves and leave no trace.

    Raises:
      CheckpointError: two leaves would have one name, or the tree is a single leaf and thus has no name.

    >>> flatten({"dense": {"kernel": 1, "bias": 2}, "stack": [3, (4,)]}, ".")
    {'dense.bias': 2, 'dense.kernel': 1, 'stack.0': 3, 'stack.1.0': 4}
    """
    flat: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not path:
            raise CheckpointError("the tree is a single array without a name; put it in a dict")
        name = separator.join(segment(key) for key in _without_value(path))
        if name in flat:
            raise CheckpointError(f"two leaves would both be stored under the name {name!r}")
        flat[name] = leaf
    return flat


def unflatten(flat: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Nested dicts from flat names; every key is a string, also where it is a number.

    Where a name is the beginning of others ("weight" and "weight.absmax", as 4-bit files of bitsandbytes have it),
    the others keep the separator in their last key, so that `flatten` gives all of them back.

    >>> unflatten({"layers.0.bias": 1, "scale": 2}, ".")
    {'layers': {'0': {'bias': 1}}, 'scale': 2}
    >>> unflatten({"head.weight": 1, "head.weight.absmax": 2}, ".")
    {'head': {'weight': 1, 'weight.absmax': 2}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = _keys(name, flat, separator)
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def ordered(flat: dict[str, Any], order: Sequence[int] | None) -> dict[str, Any]:
    """The same names in another order: the index of the first, the second, …; as they are if it is none of theirs.

    >>> ordered({"a": 1, "b": 2}, [1, 0]), ordered({"a": 1, "b": 2}, [1, 1])
    ({'b': 2, 'a': 1}, {'a': 1, 'b': 2})
    """
    names = list(flat)
    if order is None or sorted(order) != list(range(len(names))):
        return flat
    return {names[index]: flat[names[index]] for index in order}


def _keys(name: str, flat: Mapping[str, Any], separator: str) -> list[str]:
    """The keys of a name: all of its parts, or fewer where the first of them are the name of an array."""
    parts = name.split(separator)
    for depth in range(1, len(parts)):
        if separator.join(parts[:depth]) in flat:
            return [*parts[: depth - 1], separator.join(parts[depth - 1 :])]
    return parts


def _without_value(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The path without the ".value" by which NNX variables hold their array."""
    last = path[-1]
    is_value = isinstance(last, jax.tree_util.GetAttrKey) and last.name == "value"
    return path[:-1] if is_value and len(path) > 1 else path
