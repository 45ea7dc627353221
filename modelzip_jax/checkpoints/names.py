"""Between nested trees and the flat names of formats that know no nesting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from modelzip_jax.errors import CheckpointError
from modelzip_jax.tree import segment

__all__ = ["flatten", "unflatten"]


def flatten(tree: Any, separator: str) -> dict[str, Any]:
    """Leaves by name: the keys and indices of their path, joined by `separator`.

    A key that holds the separator is not escaped, so that flat dicts ("encoder.weight") are written
    under the names they have. `None` and empty containers have no leaves and leave no trace.

    Raises:
      CheckpointError: two leaves would have one name, or a leaf's name is the beginning of
        another's ("a" and "a.b"), or the tree is a single leaf and thus has no name.

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
    unflatten(flat, separator)  # refuses names that could not be read back
    return flat


def unflatten(flat: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Nested dicts from flat names; every key is a string, also where it is a number.

    Raises:
      CheckpointError: a name stands both for an array and for a group of arrays.

    >>> unflatten({"layers.0.bias": 1, "scale": 2}, ".")
    {'layers': {'0': {'bias': 1}}, 'scale': 2}
    """
    tree: dict[str, Any] = {}
    groups: set[int] = {id(tree)}  # by identity: a leaf may itself be a dict
    for name, leaf in flat.items():
        *parents, last = name.split(separator)
        node = tree
        for depth, part in enumerate(parents):
            if part not in node:
                node[part] = {}
                groups.add(id(node[part]))
            elif id(node[part]) not in groups:
                prefix = separator.join(parents[: depth + 1])
                raise CheckpointError(f"{prefix!r} is an array and also the parent of {name!r}")
            node = node[part]
        if last in node:
            raise CheckpointError(f"{name!r} is an array and also the parent of other arrays")
        node[last] = leaf
    return tree


def _without_value(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The path without the ".value" by which NNX variables hold their array."""
    last = path[-1]
    is_value = isinstance(last, jax.tree_util.GetAttrKey) and last.name == "value"
    return path[:-1] if is_value and len(path) > 1 else path
