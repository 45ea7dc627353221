"""The structure of a pytree as plain data: its containers and names, without its leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax

from modelzip_jax.errors import FormatError, TreeError
from modelzip_jax.tree import PyTree, segment

__all__ = [
    "check_names",
    "count_leaves",
    "named_characters",
    "outline",
    "outline_names",
    "unflatten_outline",
]

LEAF = None
_SURROGATE = re.compile("[\ud800-\udfff]")
NOTHING = False
BOX = "value"
"""The attribute in which boxes (flax's `Partitioned`, NNX variables) hold their array: no part of its name."""
_LIST, _TUPLE, _OTHER = range(3)


def outline(tree: PyTree, is_leaf: Any = None) -> Any:
    """Plain data: a dict is a map in flattening order, a list `[0, item, …]`, a tuple `[1, item, …]`,
    any other node `[2, type name, map of its children]`, a leaf nil, and None false.

    Raises:
      TreeError: a dict key that is neither a string nor an integer of 64 bits; children of one name.

    >>> outline({"b": (1.0, 2.0), "a": 3.0})
    {'a': None, 'b': [1, None, None]}
    """
    if tree is None:
        return NOTHING
    children = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)[0]
    if (is_leaf is not None and is_leaf(tree)) or (len(children) == 1 and not children[0][0]):
        return LEAF
    parts = [(path[0], outline(child, is_leaf)) for path, child in children]
    if type(tree) is dict or _is_mapping_like_a_box(parts):
        return {_key(path.key): part for path, part in parts}
    if type(tree) in (list, tuple):
        return [_LIST if type(tree) is list else _TUPLE, *(part for _, part in parts)]
    named = {segment(path): part for path, part in parts}
    if len(named) < len(parts):
        raise TreeError(f"a {type(tree).__name__} has several children of one name among {list(named)[:8]}")
    return [_OTHER, type(tree).__name__, named]


def _is_mapping_like_a_box(parts: list[tuple[Any, Any]]) -> bool:
    """Whether a node's only child is a leaf with the *key* "value", whose name keeps that: no box."""
    return len(parts) == 1 and getattr(parts[0][0], "key", None) == BOX and parts[0][1] is LEAF


def _is_box(data: Any) -> bool:
    return isinstance(data, list) and data[0] == _OTHER and data[2] == {BOX: LEAF}


def _key(key: Any) -> str | int:
    if isinstance(key, str) or (type(key) is int and -(2**63) <= key < 2**64):
        return key
    raise TreeError(f"a file can name leaves by strings and integers of 64 bits, not by {key!r}")


def count_leaves(data: Any) -> int:
    """The number of leaves in an outline.

    >>> count_leaves({"a": None, "b": [1, None, False]})
    2
    """
    return 1 if data is LEAF else sum(map(count_leaves, _children(data)))


def _children(data: Any) -> list[Any]:
    """The children of an outline's node; validates it."""
    if data is NOTHING:
        return []
    if isinstance(data, dict) and {type(key) for key in data} in (set(), {str}, {int}):
        return list(data.values())
    if isinstance(data, list) and data and type(data[0]) is int:
        if data[0] in (_LIST, _TUPLE):
            return data[1:]
        if len(data) == 3 and data[0] == _OTHER and isinstance(data[1], str) and isinstance(data[2], dict):
            return _children(data[2])
    raise FormatError(f"not an outline of a tree: {str(data)[:80]}")


def unflatten_outline(data: Any, leaves: Iterator[Any]) -> PyTree:
    """The tree with an outline's containers and the given leaves; boxes are opened, other nodes become dicts.

    >>> unflatten_outline({"a": None, "b": [1, None, False]}, iter("xy"))
    {'a': 'x', 'b': ('y', None)}
    """
    if data is LEAF:
        return next(leaves)
    if _is_box(data):
        return next(leaves)
    children = [unflatten_outline(child, leaves) for child in _children(data)]
    if data is NOTHING:
        return None
    if isinstance(data, dict):
        return dict(zip(data, children, strict=True))
    if data[0] == _OTHER:
        return dict(zip(data[2], children, strict=True))
    return children if data[0] == _LIST else tuple(children)


def outline_names(data: Any, prefix: str = "") -> list[str]:
    """The path of each leaf of an outline.

    >>> outline_names({"a": None, "b": [1, None, False], "c": [2, "Partitioned", {"value": None}]})
    ['a', 'b/0', 'c']
    """
    found: list[str] = []
    _append_names(data, prefix, found)
    return found


def _append_names(data: Any, prefix: str, found: list[str]) -> None:
    if data is LEAF:
        found.append(prefix)
        return
    boxes = isinstance(data, list) and data[0] == _OTHER
    for key, child in zip(_keys(data), _children(data), strict=True):
        if boxes and key == BOX and child is LEAF:
            found.append(prefix)
        else:
            _append_names(child, f"{prefix}/{key}" if prefix else str(key), found)


def _keys(data: Any) -> list[Any]:
    """What the children of a node are called."""
    if isinstance(data, list):
        return list(data[2]) if data[0] == _OTHER else list(range(len(data) - 1))
    return list(data) if isinstance(data, dict) else []


def named_characters(data: Any, above: int = 0) -> int:
    """How long the paths of all leaves are together, without making them.

    >>> named_characters({"a": None, "b": [1, None, False]})
    6
    """
    if data is LEAF:
        return above
    return sum(
        named_characters(child, above + len(str(key)) + 1)
        for key, child in zip(_keys(data), _children(data), strict=True)
    )


def check_names(names: list[str]) -> None:
    """Raises `TreeError` for a path that two leaves have, and for one that is no text without NUL.

    >>> check_names(["a/b", "a/b"])
    Traceback (most recent call last):
    modelzip_jax.errors.TreeError: two leaves have the path 'a/b'; rename one of them
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TreeError(f"two leaves have the path {name[:200]!r}; rename one of them")
        if "\0" in name or (not name.isascii() and _SURROGATE.search(name)):
            raise TreeError(f"the path {name[:200]!r} has characters that are no text; rename the leaf")
        seen.add(name)
